package oldserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"postern/bridge/uidl"
)

const (
	// sampleFrom is the number of messages from which a sample of headers is enough, if the
	// old server takes one command at a time.
	sampleFrom = 2000
	// maxExamples bounds the messages that a Report names.
	maxExamples = 20
)

// Reasons of Carry beside those of Match.
const (
	NoUIDL      Reason = "the old server shows no unique id for it"
	InvalidUIDL Reason = "its unique id is not one of 1 to 70 characters from ! to ~"
	SharedUIDL  Reason = "the old server shows its unique id for another message, too"
)

// gone is the reason of a message that is not left: it was removed.
const gone Reason = "gone"

// An Inbox is the INBOX that takes the place of an old maildrop. bridge.Reader is read
// into one.
type Inbox struct {
	UIDValidity uint32
	UIDNext     uint32   // 0: not known
	UIDs        []uint32 // ascending
	Side        Side     // by the index in UIDs
}

// A Reader reads messages by their index: each is written to the writer that begin
// returns, and end is called with its index when it is whole.
type Reader func(ctx context.Context, indexes []int, begin func() io.Writer, end func(i int)) error

// NewSide returns the Side of messages with sizes that are read by headers and contents.
func NewSide(sizes []int64, headers, contents Reader) Side {
	return Side{
		Sizes: sizes,
		Headers: func(ctx context.Context, indexes []int) ([]Header, error) {
			var hash *uidl.HeaderHash
			return readAll(ctx, indexes, headers, func() io.Writer {
				hash = new(uidl.HeaderHash)
				return hash
			}, func() Header {
				hash.End()
				return Header{Known: true, Hash: hash.Sum(), Distinct: hash.Distinct()}
			})
		},
		Contents: func(ctx context.Context, indexes []int) ([]Sum, error) {
			var hash *uidl.ContentHash
			return readAll(ctx, indexes, contents, func() io.Writer {
				hash = new(uidl.ContentHash)
				return hash
			}, func() Sum { return hash.Sum() })
		},
	}
}

// readAll returns what result returns after each message, in the order of indexes.
func readAll[T any](ctx context.Context, indexes []int, read Reader, begin func() io.Writer, result func() T) ([]T, error) {
	all, places := make([]T, len(indexes)), make(map[int]int, len(indexes))
	for k, i := range indexes {
		places[i] = k
	}
	begun := false
	err := read(ctx, indexes, func() io.Writer {
		begun = true
		return begin()
	}, func(i int) {
		if k, ok := places[i]; ok && begun {
			all[k] = result()
		}
		begun = false
	})
	return all, err
}

// A Report says what Carry has done for an account.
type Report struct {
	Old       int            `json:"old"`               // messages of the old maildrop
	New       int            `json:"new"`               // messages of INBOX
	ByOrder   int            `json:"by_order"`          // found again by size and order, with a sample of headers
	ByHeader  int            `json:"by_header"`         // found again by the header, or by CarryList
	ByContent int            `json:"by_content"`        // found again by the whole message
	ByFile    int            `json:"by_file,omitempty"` // the same file
	Gone      int            `json:"gone,omitempty"`    // removed messages, whose UIDLs are kept; Old does not count them
	Left      map[Reason]int `json:"left,omitempty"`
	Examples  []Example      `json:"examples,omitempty"` // up to 20 of Left
	Disagreed bool           `json:"disagreed,omitempty"`
	Unread    int            `json:"unread,omitempty"`    // messages of INBOX whose headers the server did not give
	Reordered int            `json:"reordered,omitempty"` // messages that INBOX has in another place of the order
	Offset    int64          `json:"offset,omitempty"`
	Constant  bool           `json:"-"`             // Offset is that of all messages
	IDs       IDs            `json:"ids,omitempty"` // of CarryMaildir
}

// An Example is an old message whose unique id is not carried over.
type Example struct {
	UIDL   string `json:"uidl"`
	Octets int64  `json:"octets,omitempty"` // 0: not known
	Reason Reason `json:"reason"`
}

// Found returns the number of messages that keep their unique id.
func (r *Report) Found() int { return r.ByOrder + r.ByHeader + r.ByContent + r.ByFile }

// ErrNotCopied is in the tree of an error about an INBOX that has none of the messages of
// the old maildrop.
var ErrNotCopied = errors.New("the mail is not copied yet")

// maxUnread bounds the messages of a side whose headers are not given, of which clients may
// see new UIDLs: single messages are damaged. Of more than these, or one of ten, the server is
// in trouble, and answers later.
const maxUnread = 20

// Copied returns an error if none of the messages of the old maildrop, of which there are
// some, was found: most often INBOX is not mounted, or the mail is copied later. A record
// would say of each message that it is gone. Headers that a server did not give, if they are more
// than 20 or one of ten, are an error, too. So it is if messages were found, and all that have a
// usable UIDL share it with others: most often that is a passing fault of the old server.
func (r *Report) Copied() error {
	if n := r.Left[Unread]; n > max(1, min(maxUnread, r.Old/10)) {
		return fmt.Errorf("%w: it does not give the headers (TOP) of %d of %d messages", ErrAnswer, n, r.Old)
	}
	if n := r.Unread; n > max(1, min(maxUnread, r.New/10)) && r.Left[Missing] > 0 {
		return fmt.Errorf("the IMAP server does not give the headers of %d of %d messages: try again later", n, r.New)
	}
	if n := r.Left[SharedUIDL]; n > 0 && r.Found() == 0 {
		return fmt.Errorf("the old server shows one unique id for different messages, %d of %d: repair it, or record the account by postern uidl import --old with --none-found", n, r.Old)
	}
	unusable := r.Left[NoUIDL] + r.Left[InvalidUIDL] + r.Left[SharedUIDL] // were found
	if r.Old == 0 || r.Found()+unusable > 0 {
		return nil
	}
	return fmt.Errorf("%w: INBOX has %d messages, and none of the %d of the old server", ErrNotCopied, r.New, r.Old)
}

func (r *Report) leave(m Message, why Reason) {
	if r.Left == nil {
		r.Left = make(map[Reason]int)
	}
	r.Left[why]++
	if len(r.Examples) < maxExamples {
		r.Examples = append(r.Examples, Example{m.UIDL, m.Size, why})
	}
}

// Carry makes the record of an INBOX in which the messages of the old maildrop have the
// UIDLs that clients know. Messages that are not found again for certain get new UIDLs by
// f: the Report counts them. offset is the difference in size that an earlier Report of
// the same servers has learnt; 0: none.
func Carry(ctx context.Context, d *Maildrop, in Inbox, f uidl.Format, offset int64) (*uidl.Record, Report, error) {
	shared := sharedUIDLs(d.Messages)
	o := Options{Offset: offset, ByContent: shared, Sample: len(d.Messages) >= sampleFrom && !d.Pipelined()}
	matching, err := Match(ctx, d.Side(), d.meanwhile(in.Side), o)
	if err != nil {
		return nil, Report{}, err
	}
	return NewRecord(d.Messages, matching, in, f)
}

// meanwhile returns a Side that keeps d alive while it reads.
func (d *Maildrop) meanwhile(s Side) Side {
	headers, contents := s.Headers, s.Contents
	s.Headers = func(ctx context.Context, indexes []int) (all []Header, err error) {
		err = d.Meanwhile(func() error {
			all, err = headers(ctx, indexes)
			return err
		})
		return all, err
	}
	s.Contents = func(ctx context.Context, indexes []int) (all []Sum, err error) {
		err = d.Meanwhile(func() error {
			all, err = contents(ctx, indexes)
			return err
		})
		return all, err
	}
	return s
}

// NewRecord makes the record of an INBOX in which the messages of pairs have the UIDLs of
// old ones.
func NewRecord(messages []Message, matching Matching, in Inbox, f uidl.Format) (*uidl.Record, Report, error) {
	report := Report{
		Old: len(messages), New: len(in.UIDs), Unread: matching.Unread, Disagreed: matching.Disagreed, Offset: matching.Offset, Constant: matching.Constant,
	}
	left, shared := matching.Left, sharedUIDLs(messages)
	copies := exactCopies(messages, shared, matching.Pairs)
	var entries []uidl.Entry
	for k, p := range matching.Pairs {
		m := messages[p.Old]
		switch {
		case m.UIDL == "":
			left[p.Old] = NoUIDL
		case !uidl.Valid(m.UIDL):
			left[p.Old] = InvalidUIDL
		case shared[p.Old] && !copies[m.UIDL]:
			left[p.Old] = SharedUIDL
		default:
			report.count(p.Proof)
			if k > 0 && p.Old < matching.Pairs[k-1].Old {
				report.Reordered++
			}
			e := uidl.Entry{UID: in.UIDs[p.New], UIDL: m.UIDL, Header: p.Header}
			if string(f.Append(nil, e.UID, in.UIDValidity)) == m.UIDL {
				e.UIDL = "" // the format computes it
			}
			if e.UIDL != "" || e.Header != 0 {
				entries = append(entries, e)
			}
		}
	}
	var others []uidl.Entry
	reserved := make(map[string]bool)
	for i, m := range messages {
		why := left[i]
		switch why {
		case "":
			continue
		case gone:
			report.Old, report.Gone = report.Old-1, report.Gone+1
		default:
			report.leave(m, why)
		}
		if !uidl.Valid(m.UIDL) || reserved[m.UIDL] {
			continue
		}
		reserved[m.UIDL] = true
		e := uidl.Entry{UID: uint32(m.Number), UIDL: m.UIDL}
		if why == Missing {
			e.Header = matching.Headers[i].Hash
		}
		others = append(others, e)
	}
	record := uidl.New(in.UIDValidity, f)
	g := record.Current()
	g.UIDNext, g.Since = in.UIDNext, uidl.DayOf(time.Now())
	g.Seen = g.Since
	g.Put(entries)
	record.AddForeign(others)
	record.Separate(in.UIDs)
	return record, report, record.Check()
}

func (r *Report) count(p Proof) {
	switch p {
	case ByOrder:
		r.ByOrder++
	case ByHeader:
		r.ByHeader++
	case ByContent:
		r.ByContent++
	case ByFile:
		r.ByFile++
	}
}

// sharedUIDLs returns the messages whose UIDL another message has, too.
func sharedUIDLs(messages []Message) map[int]bool {
	first, shared := make(map[string]int), make(map[int]bool)
	for i, m := range messages {
		if m.UIDL == "" {
			continue
		}
		if j, again := first[m.UIDL]; again {
			shared[i], shared[j] = true, true
			continue
		}
		first[m.UIDL] = i
	}
	return shared
}

// exactCopies returns the shared UIDLs whose messages were all found, and are copies of
// one message: RFC 1939 section 7 allows one UIDL for those.
func exactCopies(messages []Message, shared map[int]bool, pairs []Pair) map[string]bool {
	sums := make(map[int]Sum)
	for _, p := range pairs {
		sums[p.Old] = p.Sum
	}
	of := make(map[string][]Sum)
	for i := range shared {
		of[messages[i].UIDL] = append(of[messages[i].UIDL], sums[i])
	}
	copies := make(map[string]bool)
	for id, all := range of {
		copies[id] = all[0] != Sum{} && len(slices.Compact(all)) == 1
	}
	return copies
}
