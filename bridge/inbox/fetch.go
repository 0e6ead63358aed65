package inbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
	"postern/proxy/wire"
)

// Messages are requested by UID FETCH, one or many by a command, and a command may
// follow another one before that is answered. The responses are read here, in
// whatever order they come: a response belongs to the request with its UID, and one
// that is passed over (the caller waits for another message) is read to its end and
// forgotten. Dovecot sends the responses of several commands before the first of
// their completions, which is why Await waits for a tag only if the response of its
// message is missing.

// What can be requested of messages; neither sets \Seen.
const (
	Body   = "BODY.PEEK[]"       // the message
	Header = "BODY.PEEK[HEADER]" // its header, with the blank line
)

// ErrItems says that the server has sent other items than were requested.
var ErrItems = errors.New("server answers with other parts than were asked for")

// A fetching is the part of an Inbox that belongs to FETCH.
type fetching struct {
	lastTag       uint64         // of FETCH
	pending       []pendingFetch // in the order of the requests
	pendingOctets int64          // of pending
	response      *FetchResponse // that is being read
	line          []byte         // commands that are not sent yet
	malformed     uint32         // UID of the response that broke the grammar; 0: none, or not known
}

// A Request is one message that is to be fetched.
type Request struct {
	UID    uint32
	Octets int64 // of the response, as far as known; more may come
}

// A pendingFetch is a Request whose response has not come.
type pendingFetch struct {
	Request
	tag   uint64
	items string
}

// Fetch requests items of messages, the UIDs of which ascend. Await returns the
// responses; it needs the tag.
func (in *Inbox) Fetch(items string, messages ...Request) (tag uint64, err error) {
	tag = in.addFetch(items, messages...)
	return tag, in.sendFetch()
}

// addFetch is Fetch without sendFetch.
func (in *Inbox) addFetch(items string, messages ...Request) (tag uint64) {
	in.lastTag++
	b := append(strconv.AppendUint(append(in.line, 'F'), in.lastTag, 10), " UID FETCH "...)
	for i, m := range messages {
		b = appendUID(b, messages, i)
		in.pending = append(in.pending, pendingFetch{m, in.lastTag, items})
		in.pendingOctets += m.Octets
		if in.options.Budget != nil {
			in.options.Budget.Add(m.Octets)
		}
	}
	in.line = append(append(append(b, " (UID "...), items...), ")\r\n"...)
	return in.lastTag
}

func (in *Inbox) sendFetch() error {
	_, err := in.link.Write(in.line)
	in.line = in.line[:0]
	return err
}

// appendUID appends the i-th UID as part of a set: alone, or as the begin or the
// end of a range.
func appendUID(b []byte, messages []Request, i int) []byte {
	uid := messages[i].UID
	follows := i > 0 && messages[i-1].UID+1 == uid
	goesOn := i+1 < len(messages) && messages[i+1].UID == uid+1
	switch {
	case follows && goesOn:
		return b
	case follows:
		b = append(b, ':')
	case i > 0:
		b = append(b, ',')
	}
	return strconv.AppendUint(b, uint64(uid), 10)
}

// Requested returns the tag of a request whose response has not come.
func (in *Inbox) Requested(uid uint32, items string) (tag uint64, ok bool) {
	for _, p := range in.pending {
		if p.UID == uid && p.items == items {
			return p.tag, true
		}
	}
	return 0, false
}

// PendingOctets returns the octets of the requests whose responses have not come.
func (in *Inbox) PendingOctets() int64 { return in.pendingOctets }

// MalformedUID returns the UID of the message whose response broke the grammar; 0:
// there was none, or the UID is not known.
func (in *Inbox) MalformedUID() uint32 { return in.malformed }

// removePending removes the i-th request.
func (in *Inbox) removePending(i int) {
	octets := in.pending[i].Octets
	in.pendingOctets -= octets
	if in.options.Budget != nil {
		in.options.Budget.Add(-octets)
	}
	if i == 0 {
		in.pending = in.pending[1:]
		return
	}
	in.pending = slices.Delete(in.pending, i, i+1)
}

// forgetPending removes all requests.
func (in *Inbox) forgetPending() {
	for len(in.pending) > 0 {
		in.removePending(0)
	}
	in.pending, in.line, in.response = nil, nil, nil
}

// Await returns the response to the request of a message with tag, at its first
// section. It returns ErrVanished if the command has ended without the response, and
// an *imap.Error if the server refused the command. Responses to other requests that
// come before are passed over. Await emits a proxy.IMAPCommand.
func (in *Inbox) Await(ctx context.Context, uid uint32, tag uint64) (*FetchResponse, error) {
	begun := time.Now()
	r, err := in.await(ctx, uid, tag)
	in.observeFetch(ctx, proxy.CommandBody, err, begun)
	return r, err
}

// observeFetch emits how the server has answered FETCH.
func (in *Inbox) observeFetch(ctx context.Context, command string, err error, begun time.Time) {
	if result := resultOf(err); result != "" && ctx.Err() == nil {
		in.options.Observe(proxy.IMAPCommand{Command: command, Result: result, Duration: time.Since(begun)})
	}
}

// await is Await without the event.
func (in *Inbox) await(ctx context.Context, uid uint32, tag uint64) (*FetchResponse, error) {
	for {
		r, err := in.readResponse(uid, tag)
		if errors.Is(err, ErrVanished) {
			return nil, err
		}
		if err != nil {
			return nil, in.explain(ctx, err)
		}
		if r == nil {
			continue
		}
		if i := in.findPending(r.UID); i >= 0 {
			p := in.pending[i]
			in.removePending(i)
			r.requested = p.UID
			if p.tag == tag && p.UID == uid {
				return r, nil
			}
		}
	}
}

// findPending returns which request a response is for, or -1. The UID may come after
// the body: then the response can only be for the only request.
func (in *Inbox) findPending(uid uint32) int {
	if uid == 0 && len(in.pending) == 1 {
		return 0
	}
	return slices.IndexFunc(in.pending, func(p pendingFetch) bool { return p.UID == uid })
}

// readResponse reads one response, and returns a FETCH response at its first
// section; nil for another response. The error is ErrVanished or an *imap.Error if
// the command with tag ends and the response for uid has not come.
func (in *Inbox) readResponse(uid uint32, tag uint64) (*FetchResponse, error) {
	r, end, err := in.read()
	if r != nil || err != nil {
		return r, err
	}
	if end.status != nil && in.endCommand(end.tag, uid) && end.tag == tag {
		return nil, end.status
	}
	return nil, nil
}

// A completion is the tagged response to a FETCH.
type completion struct {
	tag    uint64
	status error // ErrVanished: OK; an *imap.Error; nil: there was none
}

// read reads one response, after the rest of the one before: a FETCH response up to
// its first section, the completion of a FETCH, or another response.
func (in *Inbox) read() (_ *FetchResponse, _ completion, err error) {
	defer in.recovered(&err)
	if err := in.Finish(); err != nil {
		return nil, completion{}, err
	}
	line, err := in.link.responses.line()
	if err != nil {
		return nil, completion{}, err
	}
	if tag, ok, status := parseTagged(line); ok {
		if refusal, refused := errors.AsType[*imap.Error](status); refused {
			in.link.responses.reportRefusal([]byte(refusal.Text))
		}
		return nil, completion{tag, status}, nil
	}
	r, ok := in.parseFetch(line)
	if !ok {
		return nil, completion{}, in.skipResponse(line)
	}
	in.response = r
	if err := r.next(); err != nil {
		return nil, completion{}, err
	}
	if r.Section == nil {
		in.response = nil
		return nil, completion{}, nil
	}
	return r, completion{}, nil
}

// endCommand removes the requests of a command that has ended. It reports whether
// the one for uid is among them.
func (in *Inbox) endCommand(tag uint64, uid uint32) (missing bool) {
	for i := 0; i < len(in.pending); {
		if in.pending[i].tag != tag {
			i++
			continue
		}
		missing = missing || in.pending[i].UID == uid
		in.removePending(i)
	}
	return missing
}

// skipResponse reads a response that is not FETCH.
func (in *Inbox) skipResponse(line []byte) error {
	err := in.link.responses.take(line)
	in.link.responses.pending = nil // no imapclient waits for it
	return err
}

// parseTagged reads the completion of a FETCH. The status is ErrVanished if it was
// OK, and an *imap.Error if it was not.
func parseTagged(line []byte) (tag uint64, ok bool, status error) {
	if line[0] != 'F' {
		return 0, false, nil
	}
	text, _ := wire.TrimLine(line)
	word, text := nextWord(text)
	n, ok := parseNumber(word[1:])
	if !ok {
		return 0, false, nil
	}
	word, text = nextWord(text)
	name := wire.Keyword(word)
	if results[name] == "" {
		return 0, false, nil
	}
	status = ErrVanished
	if name != "OK" {
		code, _ := cutCode(text)
		status = &imap.Error{
			Type: imap.StatusResponseType(name), Code: imap.ResponseCode(code), Text: string(text[:min(len(text), maxText)]),
		}
	}
	return uint64(n), true, status
}

// drain reads to the end of the last response that was requested. Completions may
// still come: imapclient does not get to see them.
func (in *Inbox) drain() error {
	for len(in.pending) > 0 {
		r, err := in.readResponse(0, 0)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		if i := in.findPending(r.UID); i >= 0 {
			r.requested = in.pending[i].UID
			in.removePending(i)
		}
	}
	return in.Finish()
}

// DrainCompletions reads, when no request is pending, the responses that have come
// and that nobody waits for: the completions of FETCH. It does not wait for more.
func (in *Inbox) DrainCompletions() {
	for len(in.pending) == 0 && bytes.IndexByte(in.link.responses.buffered(), '\n') >= 0 {
		if _, err := in.readResponse(0, 0); err != nil {
			in.Abort()
			return
		}
	}
}

// logout sends LOGOUT and waits for its completion.
func (in *Inbox) logout() (err error) {
	defer in.recovered(&err)
	if _, err := io.WriteString(in.link, "Q LOGOUT\r\n"); err != nil {
		return err
	}
	for {
		line, err := in.link.responses.line()
		if err != nil || bytes.HasPrefix(line, []byte("Q ")) {
			return err
		}
		if err := in.skipResponse(line); err != nil {
			return err
		}
	}
}

// fetchAll requests items of messages and reads all responses: section gets each
// section of a response and reads of it what it needs, whole gets the response when
// it has come to its end. The error is an *imap.Error if the server refuses some.
func (in *Inbox) fetchAll(ctx context.Context, uids imap.UIDSet, items string, section func(*Section) error, whole func(*FetchResponse)) (err error) {
	defer context.AfterFunc(ctx, in.Abort)()
	begun := time.Now()
	if err = in.drain(); err == nil {
		in.lastTag++
		in.line = fmt.Appendf(in.line, "F%d UID FETCH %s (UID %s)\r\n", in.lastTag, uids, items)
		err = in.sendFetch()
	}
	if err == nil {
		err = in.readAll(in.lastTag, section, whole)
	}
	if !errors.Is(err, ErrVanished) {
		err = in.explain(ctx, err)
	}
	in.observeFetch(ctx, "FETCH", err, begun)
	if errors.Is(err, ErrVanished) {
		return nil
	}
	return err
}

// readAll reads the responses to the command with tag. The error is ErrVanished when
// the command was answered OK.
func (in *Inbox) readAll(tag uint64, section func(*Section) error, whole func(*FetchResponse)) (err error) {
	defer in.recovered(&err)
	for {
		r, end, err := in.read()
		if err != nil {
			return err
		}
		if end.status != nil && end.tag == tag {
			return end.status
		}
		if r == nil {
			continue
		}
		for r.Section != nil && err == nil {
			if err = section(r.Section); err == nil {
				err = r.next()
			}
		}
		in.response = nil
		if err != nil {
			return err
		}
		if r.UID != 0 {
			whole(r)
		}
	}
}

// LastOctets fetches the last two octets of messages, and calls each with those of
// every message that the server sends. The Octets of a Request are the size of the
// message. If the server is lost, at is the UID of the message that the server was to
// send next; else 0.
func (in *Inbox) LastOctets(ctx context.Context, messages []Request, each func(uid uint32, octets []byte)) (at uint32, err error) {
	defer context.AfterFunc(ctx, in.Abort)()
	if err = in.readLastOctets(messages, each); err == nil {
		return 0, nil
	}
	in.Abort()
	if len(in.pending) > 0 && ctx.Err() == nil {
		at = in.pending[0].UID
	}
	return at, in.explain(ctx, err)
}

// readLastOctets sends a command for each message: where its end is depends on the
// message.
func (in *Inbox) readLastOctets(messages []Request, each func(uid uint32, octets []byte)) (err error) {
	defer in.recovered(&err)
	requested := make(map[uint32]bool, len(messages))
	for _, m := range messages {
		requested[m.UID] = true
		in.addFetch(Body+"<"+strconv.FormatInt(m.Octets-2, 10)+".2>", Request{UID: m.UID})
	}
	if err := in.sendFetch(); err != nil {
		return err
	}
	for len(in.pending) > 0 {
		r, err := in.readResponse(0, 0)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		i := in.findPending(r.UID)
		if i < 0 {
			continue
		}
		uid := in.pending[i].UID
		r.requested = uid
		if requested[uid] && r.Section.Size == 2 && r.Section.Is("BODY[]<") { // else RFC822.SIZE was a guess
			octets, err := r.Section.Peek(2)
			if err != nil {
				return err
			}
			octets = bytes.Clone(octets)
			if err := in.Finish(); err != nil { // else these may be other octets
				return err
			}
			each(uid, octets)
		}
		in.removePending(i)
	}
	return nil
}
