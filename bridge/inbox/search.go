package inbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/emersion/go-imap/v2"

	"postern/proxy/wire"
)

// ErrAnswer says that a command was answered OK, but not with the data that it asks
// for. The connection is as good as before; the data is not known.
var ErrAnswer = errors.New("answer of the server cannot be used")

var (
	errNoResult = fmt.Errorf("%w: SEARCH without a result", ErrAnswer)
	errNotUIDs  = fmt.Errorf("%w: ESEARCH without UID", ErrAnswer)
)

// A result is the answer to one UID SEARCH. It may consist of several SEARCH
// responses: RFC 3501 section 7.2.5 does not say that there is one only.
type result struct {
	mu    sync.Mutex
	tag   string      // of the command
	rows  int         // responses with a result
	found imap.UIDSet // as it came
	err   error       // why the first response that is not valid is not
}

// search reads "1 2 3 (MODSEQ 4)".
func (r *result) search(text []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for word, rest := nextWord(text); ; word, rest = nextWord(rest) {
		switch {
		case len(word) == 0 && rest == nil, len(word) > 0 && word[0] == '(': // RFC 7162 section 3.1.5
			r.rows++
			return
		case len(word) == 0:
			continue
		}
		uid, err := parseUint32(word)
		if err == nil && uid == 0 {
			err = fmt.Errorf("%w: UID 0", ErrAnswer)
		}
		if err != nil {
			r.fail(fmt.Errorf("SEARCH: %w", err))
			return
		}
		if last := len(r.found) - 1; last >= 0 && uint32(r.found[last].Stop)+1 == uid {
			r.found[last].Stop++
		} else if len(r.found) < MaxMessages {
			r.found = append(r.found, imap.UIDRange{Start: imap.UID(uid), Stop: imap.UID(uid)})
		} else {
			r.fail(ErrTooMany)
			return
		}
	}
}

// esearch reads `(TAG "T2") UID ALL 1:3,5`, RFC 9051 section 7.3.4. Without UID
// the numbers may be those of the messages.
func (r *result) esearch(text []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text = bytes.TrimLeft(text, " ")
	if bytes.HasPrefix(text, []byte("(")) {
		correlator, rest, ok := bytes.Cut(text[1:], []byte(")")) // no tag of ours has one
		name, tag := nextWord(correlator)
		if !ok || !bytes.EqualFold(name, []byte("TAG")) {
			r.fail(fmt.Errorf("%w: ESEARCH %.40q", ErrAnswer, text))
			return
		}
		if string(bytes.Trim(tag, `" `)) != r.tag {
			return // of another command
		}
		text = rest
	}
	uids, all, others := false, imap.UIDSet(nil), false
	for word, rest := nextWord(text); len(word) > 0; word, rest = nextWord(rest) {
		name := wire.Keyword(word)
		if name == "UID" {
			uids = true
			continue
		}
		var value []byte
		value, rest = nextWord(rest)
		switch name {
		case "ALL":
			set, err := parseSet(value)
			if err != nil {
				r.fail(fmt.Errorf("ESEARCH: %w", err))
				return
			}
			all = append(all, set...)
		case "MODSEQ":
		default:
			others = others || string(value) != "0"
		}
	}
	switch {
	case !uids:
		r.fail(errNotUIDs)
	case all == nil && others: // something was found, and the UIDs are missing
		r.fail(errNoResult)
	case len(r.found)+len(all) > MaxMessages:
		r.fail(ErrTooMany)
	default:
		r.rows++
		r.found = append(r.found, all...)
	}
}

func (r *result) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// setTag sets the tag of the command, before it is sent.
func (r *result) setTag(tag string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tag = tag
}

// uids returns what was found, once the command was answered OK. Without a response
// it returns an error: if no message matches, the server sends an empty one.
func (r *result) uids() (imap.UIDSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return nil, r.err
	case r.rows == 0:
		return nil, errNoResult
	}
	r.found = normalize(r.found)
	if Count(r.found) > MaxMessages {
		return nil, ErrTooMany
	}
	return r.found, nil
}

// sendSearch sends UID SEARCH, and returns what waits for its answer. One search may
// run at a time. The set ascends.
func (in *Inbox) sendSearch(criteria *imap.SearchCriteria, options *imap.SearchOptions) (wait func() (imap.UIDSet, error)) {
	r := &result{}
	in.link.responses.result.Store(r)
	command := in.client.UIDSearch(criteria, options)
	return func() (imap.UIDSet, error) {
		_, err := command.Wait()
		in.link.responses.result.CompareAndSwap(r, nil)
		if err != nil {
			return nil, err
		}
		return r.uids()
	}
}

// Search returns which messages there are, ascending, of all or of those given. An
// answer without a result is an error.
func (in *Inbox) Search(ctx context.Context, among ...imap.UIDSet) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	found, err := in.sendSearch(&imap.SearchCriteria{UID: among}, nil)()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH: %w", in.explain(ctx, err))
	}
	return found, nil
}

// SearchKeyword returns which of the messages have Options.Keyword.
func (in *Inbox) SearchKeyword(ctx context.Context, among imap.UIDSet) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	found, err := in.sendSearch(&imap.SearchCriteria{UID: []imap.UIDSet{among}, Flag: []imap.Flag{in.options.Keyword}}, nil)()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH KEYWORD: %w", in.explain(ctx, err))
	}
	return found, nil
}

// All returns the UIDs of all messages, ascending. If the answer of ESEARCH cannot be
// used, it searches once more without ESEARCH.
func (in *Inbox) All(ctx context.Context) (imap.UIDSet, error) {
	if in.traits.ESearch { // RFC 4731: ranges
		found, err := in.allRanges(ctx)
		if !errors.Is(err, ErrAnswer) {
			return found, err
		}
	}
	return in.Search(ctx)
}

func (in *Inbox) allRanges(ctx context.Context) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	found, err := in.sendSearch(&imap.SearchCriteria{}, &imap.SearchOptions{ReturnAll: true})()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH RETURN (ALL): %w", in.explain(ctx, err))
	}
	return found, nil
}

// Present is All, and reports whether the server says that there are as many
// messages, before or after the search.
func (in *Inbox) Present(ctx context.Context) (uids imap.UIDSet, agrees bool, err error) {
	before, known := in.link.responses.mailbox.count()
	if uids, err = in.All(ctx); err != nil {
		return nil, false, err
	}
	after, _ := in.link.responses.mailbox.count()
	n := Count(uids)
	return uids, known && (n == uint64(before) || n == uint64(after)), nil
}
