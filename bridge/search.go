package bridge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/emersion/go-imap/v2"

	"postern/proxy/wire"
)

// errAnswer says that a command was answered OK, but not with what it asks for.
// The connection is as good as before; what was asked is not known.
var errAnswer = errors.New("answer of the server cannot be used")

var (
	errNoResult = fmt.Errorf("%w: SEARCH without a result", errAnswer)
	errNotUIDs  = fmt.Errorf("%w: ESEARCH without UID", errAnswer)
)

// A uidSet is UIDs as ranges. It is sorted, and its ranges neither touch nor
// overlap, after normalize.
type uidSet imap.UIDSet

// count returns how many UIDs are in a set of which each is in one range.
func (s uidSet) count() int {
	n := 0
	for _, r := range s {
		n += int(r.Stop-r.Start) + 1
	}
	return n
}

// has reports whether uid is in s, which is normalized.
func (s uidSet) has(uid uint32) bool {
	i, _ := slices.BinarySearchFunc(s, imap.UID(uid), func(r imap.UIDRange, uid imap.UID) int { return cmp.Compare(r.Stop, uid) })
	return i < len(s) && uint32(s[i].Start) <= uid
}

// normalize sorts the ranges of s and unites them, in place.
func (s uidSet) normalize() uidSet {
	if !slices.IsSortedFunc(s, byStart) {
		slices.SortFunc(s, byStart)
	}
	united := s[:0]
	for _, r := range s {
		if last := len(united) - 1; last >= 0 && uint64(r.Start) <= uint64(united[last].Stop)+1 {
			united[last].Stop = max(united[last].Stop, r.Stop)
			continue
		}
		united = append(united, r)
	}
	return united
}

func byStart(a, b imap.UIDRange) int { return cmp.Compare(a.Start, b.Start) }

// A result is what a server answers to one UID SEARCH. An answer may be of
// several rows: RFC 3501 section 7.2.5 does not say that there is one only.
type result struct {
	mu    sync.Mutex
	tag   string // of the command
	rows  int    // that tell something
	found uidSet // as it came
	err   error  // the first row that cannot be believed
}

// search takes "1 2 3 (MODSEQ 4)".
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
			err = fmt.Errorf("%w: UID 0", errAnswer)
		}
		if err != nil {
			r.fail(fmt.Errorf("SEARCH: %w", err))
			return
		}
		if last := len(r.found) - 1; last >= 0 && uint32(r.found[last].Stop)+1 == uid {
			r.found[last].Stop++
		} else if len(r.found) < maxMessages {
			r.found = append(r.found, imap.UIDRange{Start: imap.UID(uid), Stop: imap.UID(uid)})
		} else {
			r.fail(errTooMany)
			return
		}
	}
}

// esearch takes `(TAG "T2") UID ALL 1:3,5`, RFC 9051 section 7.3.4. Without UID
// the numbers may be those of the messages.
func (r *result) esearch(text []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text = bytes.TrimLeft(text, " ")
	if bytes.HasPrefix(text, []byte("(")) {
		correlator, rest, ok := bytes.Cut(text[1:], []byte(")")) // no tag of ours has one
		name, tag := nextWord(correlator)
		if !ok || !bytes.EqualFold(name, []byte("TAG")) {
			r.fail(fmt.Errorf("%w: ESEARCH %.40q", errAnswer, text))
			return
		}
		if string(bytes.Trim(tag, `" `)) != r.tag {
			return // of another command
		}
		text = rest
	}
	uids, all, others := false, uidSet(nil), false
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
	case all == nil && others: // something was found, and is not told
		r.fail(errNoResult)
	case len(r.found)+len(all) > maxMessages:
		r.fail(errTooMany)
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

// asked tells the tag of the command, before it is sent.
func (r *result) asked(tag string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tag = tag
}

// uids returns what was found, once the command was answered OK. Without a row
// it is an error: nothing found is a row, too.
func (r *result) uids() (imap.UIDSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return nil, r.err
	case r.rows == 0:
		return nil, errNoResult
	}
	r.found = r.found.normalize()
	if r.found.count() > maxMessages {
		return nil, errTooMany
	}
	return imap.UIDSet(r.found), nil
}

// parseSet reads "1:3,5", RFC 9051 section 9: sequence-set, without *. A range
// may be written either way round.
func parseSet(text []byte) (uidSet, error) {
	var set uidSet
	for part := range bytes.SplitSeq(text, []byte(",")) {
		first, second, isRange := bytes.Cut(part, []byte(":"))
		if !isRange {
			second = first
		}
		start, err := parseUint32(first)
		stop, err2 := parseUint32(second)
		if err = cmp.Or(err, err2); err != nil {
			return nil, err
		}
		if start, stop = min(start, stop), max(start, stop); start == 0 {
			return nil, fmt.Errorf("%w: UID 0", errAnswer)
		}
		if len(set) >= maxMessages {
			return nil, errTooMany
		}
		set = append(set, imap.UIDRange{Start: imap.UID(start), Stop: imap.UID(stop)})
	}
	return set, nil
}

// beginSearch sends UID SEARCH, and returns what waits for its answer. One
// search is under way at a time.
func (in *inbox) beginSearch(criteria *imap.SearchCriteria, options *imap.SearchOptions) (wait func() (imap.UIDSet, error)) {
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

// search returns the UIDs that match, ascending, out of all or of those given.
// An answer without a result is an error.
func (in *inbox) search(ctx context.Context, among ...imap.UIDSet) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	found, err := in.beginSearch(&imap.SearchCriteria{UID: among}, nil)()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH: %w", in.explain(ctx, err))
	}
	return found, nil
}

// searchHidden returns which of the messages have the keyword hidden.
func (in *inbox) searchHidden(ctx context.Context, among imap.UIDSet) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	found, err := in.beginSearch(&imap.SearchCriteria{UID: []imap.UIDSet{among}, Flag: []imap.Flag{hidden}}, nil)()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH KEYWORD: %w", in.explain(ctx, err))
	}
	return found, nil
}

// all returns the UIDs of all messages, ascending. A server whose ESEARCH is of
// no use is asked once more without.
func (in *inbox) all(ctx context.Context) (imap.UIDSet, error) {
	if strings.Contains(in.capabilities, "ESEARCH") { // RFC 4731: ranges
		found, err := in.allRanges(ctx)
		if !errors.Is(err, errAnswer) {
			return found, err
		}
	}
	return in.search(ctx)
}

func (in *inbox) allRanges(ctx context.Context) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	found, err := in.beginSearch(&imap.SearchCriteria{}, &imap.SearchOptions{ReturnAll: true})()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH RETURN (ALL): %w", in.explain(ctx, err))
	}
	return found, nil
}
