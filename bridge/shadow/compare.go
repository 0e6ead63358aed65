package shadow

import (
	"context"
	"errors"
	"slices"
	"time"

	"postern/bridge"
	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/proxy"
)

// lateTime is how long a message may be late before it is missing.
const lateTime = 3 * 24 * time.Hour

// errWanted ends a comparison for which headers are wanted that no session has seen yet.
var errWanted = errors.New("headers are wanted")

var errUnread = errors.New("the IMAP server does not give the headers of all messages")

var errNoSizes = errors.New("the session has shown unique ids without sizes")

// gather keeps the headers that the session has brought.
func (c *comparison) gather(ctx context.Context) error {
	shown, compares, err := c.shown()
	if err != nil {
		return err
	}
	c.event.Result, c.event.Messages, c.event.Unproven = proxy.ShadowUnproven, len(shown), len(shown)
	if !compares {
		return nil
	}
	wanted, left := set(c.state.Wanted), []string(nil)
	for _, m := range shown {
		if wanted[m.UIDL] && !c.state.headers.Get(m).Known {
			left = append(left, m.UIDL)
		}
	}
	c.state.Stalled = len(left) >= len(c.state.Wanted)
	c.state.Wanted, c.state.Messages = left, len(shown)
	c.save(ctx)
	return nil
}

// compare compares INBOX with what the session has shown, and fills in the event.
func (c *comparison) compare(ctx context.Context, in *bridge.Reader) error {
	shown, compares, err := c.shown()
	if err != nil {
		return err
	}
	c.event.Messages = len(shown)
	if !compares {
		c.event.Result = proxy.ShadowNoUIDLs
		if c.state.Compared.IsZero() {
			c.state.Unasked, c.state.Messages = time.Now(), len(shown)
			c.save(ctx)
		}
		return nil
	}
	if err := in.List(ctx); err != nil {
		c.backend.Limits.pause()
		c.save(ctx) // the headers
		return err
	}
	record, err := c.record(ctx)
	if err != nil {
		return err
	}
	p := pairing{
		shown: shown, record: record, headers: c.state.headers, known: c.state.Sums, watcher: c.watcher,
		in: oldserver.Inbox{UIDValidity: in.UIDValidity, UIDNext: in.UIDNext, UIDs: in.UIDs, Side: oldserver.NewSide(in.Sizes, in.Headers, in.Contents)},
	}
	err = p.match(ctx)
	c.state.Stalled = false
	c.state.Wanted, c.state.Bodies = p.wanted[:min(len(p.wanted), maxWanted)], p.bodies[:min(len(p.bodies), maxWanted)]
	switch {
	case errors.Is(err, errWanted):
		c.event.Result, c.event.Found, c.event.Unproven = proxy.ShadowUnproven, len(p.result.Pairs), len(shown)-len(p.result.Pairs)
		c.state.Compared, c.state.Clean, c.state.Messages = time.Now(), false, len(shown)
		c.save(ctx)
		return nil
	case err != nil:
		return err
	}
	c.count(&p)
	if c.event.Found > 0 { // else a record would only say that there is none
		if record, err = c.learn(ctx, &p); err != nil {
			return err
		}
	}
	c.event.UIDLs = p.otherUIDLs(record, c.backend.Bridge.UIDL)
	c.judge()
	c.state.Compared, c.state.Clean, c.state.Messages = time.Now(), c.event.Result == proxy.ShadowClean, len(shown)
	c.save(ctx)
	return nil
}

// shown returns the messages that the session has shown and has not deleted. compares is
// false if the client does not ask for unique ids.
func (c *comparison) shown() (messages []oldserver.Message, compares bool, err error) {
	w := c.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return nil, false, w.err
	case w.unknown:
		return nil, false, errQuit
	}
	deleted := make(map[int]bool, len(w.deleted))
	for _, number := range w.deleted {
		deleted[number] = true
	}
	left := w.count - len(deleted)
	if left == 0 {
		return nil, true, nil
	}
	if !w.asksUID || w.uidls.known == 0 {
		return make([]oldserver.Message, left), false, nil
	}
	for i := range w.count {
		if deleted[i+1] {
			continue
		}
		m := oldserver.Message{Number: i + 1, UIDL: w.uidls.values[i]}
		if m.UIDL == "" {
			return nil, false, errListing
		}
		if w.sizes.known > 0 {
			m.Size = w.sizes.values[i]
		}
		if m.Size == 0 {
			return nil, false, errNoSizes
		}
		messages = append(messages, m)
	}
	c.state.headers.Confirm(messages)
	c.keep(messages)
	return messages, true, nil
}

// keep keeps what the session has shown of messages. Messages that share a UIDL are not
// kept: nobody knows which is which in the next session.
func (c *comparison) keep(messages []oldserver.Message) {
	seen, sums := make(map[string]int), make(map[string][]byte)
	for _, m := range messages {
		seen[m.UIDL]++
	}
	for _, m := range messages {
		if seen[m.UIDL] > 1 {
			continue
		}
		if h := c.watcher.headers[m.Number]; h.Known {
			c.state.headers.Put(m, h)
		}
		if sum := c.watcher.sums[m.Number]; sum != (oldserver.Sum{}) {
			sums[m.UIDL] = sum[:]
		} else if kept := c.state.Sums[m.UIDL]; kept != nil && c.state.headers.Get(m).Known {
			sums[m.UIDL] = kept
		}
	}
	c.state.Sums = sums
}

// record returns the record of the account; nil: it has none.
func (c *comparison) record(ctx context.Context) (*uidl.Record, error) {
	stored, err := bridge.Lookup(ctx, nil, c.backend.Bridge.Record, c.login.Account)
	return stored.Record, err
}

// learn records the UIDLs that the old server shows, and returns the record.
func (c *comparison) learn(ctx context.Context, p *pairing) (*uidl.Record, error) {
	fresh, _, err := oldserver.NewRecord(p.shown, p.result, p.in, c.backend.Bridge.UIDL)
	if err != nil {
		return nil, err
	}
	// Not that of INBOX: a later session may show what this one has not, or prove it.
	fresh.Current().UIDNext = p.firstOther()
	if c.event.Learnt, err = bridge.Learn(ctx, c.backend.Bridge.Record, c.login.Account, fresh); err != nil {
		return nil, err
	}
	return c.record(ctx)
}

// count counts what was found, and what was not.
func (c *comparison) count(p *pairing) {
	e := &c.event
	e.Found = len(p.result.Pairs)
	lastOld, lastNew := -1, -1
	for _, pair := range p.result.Pairs {
		if pair.Old < lastOld {
			e.Order++
		}
		lastOld, lastNew = max(lastOld, pair.Old), pair.New
		if old, here := p.shown[pair.Old].Size, p.in.Side.Sizes[pair.New]; here != 0 && old != here {
			e.Sizes++
		}
	}
	late := ""
	for i, m := range p.shown {
		why, left := p.result.Left[i]
		switch {
		case !left:
		case why != oldserver.Missing:
			e.Unproven++
		case i > lastOld:
			if e.Late++; late == "" {
				late = m.UIDL
			}
		default:
			e.Missing++
		}
	}
	if e.Messages > 0 && e.Late == e.Messages {
		e.Result = proxy.ShadowNotCopied
	}
	c.countLate(late)
	c.countExtra(p, lastNew)
}

// countLate counts messages that have been late for too long as missing.
func (c *comparison) countLate(first string) {
	switch now := time.Now(); {
	case first == "" || c.event.Result == proxy.ShadowNotCopied:
		c.state.Late = ""
	case c.state.Late != first:
		c.state.Late, c.state.LateSince = first, now
	case now.Sub(c.state.LateSince) > lateTime:
		c.event.Missing, c.event.Late = c.event.Missing+c.event.Late, 0
	}
}

// countExtra counts the messages that only INBOX has. The ones behind all that were found
// may have come after the old server had counted its messages: they are extra if INBOX had
// them already at a comparison before this session. Without such a comparison nobody knows.
func (c *comparison) countExtra(p *pairing, lastNew int) {
	e, s := &c.event, &c.state
	found := make(map[int]bool, len(p.result.Pairs))
	for _, pair := range p.result.Pairs {
		found[pair.New] = true
	}
	extra, unclear := 0, 0
	known := s.UIDNext != 0 && s.UIDValidity == p.in.UIDValidity && s.Compared.Before(c.begun)
	for j, uid := range p.in.UIDs {
		switch {
		case found[j]:
		case j < lastNew, known && uid < s.UIDNext:
			extra++
		case !known:
			unclear++
		}
	}
	// Some of them may be the old messages that could not be matched.
	same := min(unclear, e.Unproven)
	e.Extra = max(0, extra-(e.Unproven-same))
	e.Unproven += unclear - same
	s.UIDValidity, s.UIDNext = p.in.UIDValidity, p.in.UIDNext
	if n := len(p.in.UIDs); s.UIDNext == 0 && n > 0 {
		s.UIDNext = p.in.UIDs[n-1] + 1
	}
	if s.UIDNext == 0 {
		s.UIDNext = 1
	}
}

// judge sets the result.
func (c *comparison) judge() {
	switch e := &c.event; {
	case e.Result == proxy.ShadowNotCopied:
	case e.Missing+e.Extra+e.UIDLs > 0:
		e.Result = proxy.ShadowDiffers
	case e.Unproven > 0:
		e.Result = proxy.ShadowUnproven
	default:
		e.Result = proxy.ShadowClean
	}
}

// A pairing finds the messages that the old server has shown among those of INBOX.
type pairing struct {
	shown   []oldserver.Message
	in      oldserver.Inbox
	record  *uidl.Record // nil: none
	headers *oldserver.Headers
	known   map[string][]byte // hashes of whole messages, by UIDL
	watcher *Watcher

	result oldserver.Matching
	wanted []string // UIDLs of messages whose headers are wanted
	bodies []string // UIDLs of messages of which the whole is wanted
}

// match fills in result. It returns errWanted if headers are wanted; result then has the
// messages that were found before.
func (p *pairing) match(ctx context.Context) error {
	known := p.recorded()
	old, new := p.others(known)
	shared := make(map[int]bool)
	first := make(map[string]int)
	for k, i := range old {
		if j, again := first[p.shown[i].UIDL]; again {
			shared[k], shared[j] = true, true
		}
		first[p.shown[i].UIDL] = k
	}
	before := oldserver.Side{
		Headers:  func(_ context.Context, some []int) ([]oldserver.Header, error) { return p.headersOf(old, some) },
		Contents: func(_ context.Context, some []int) ([]oldserver.Sum, error) { return p.contentsOf(old, some) },
	}
	after := oldserver.Side{
		Headers: func(ctx context.Context, some []int) ([]oldserver.Header, error) {
			all, err := p.in.Side.Headers(ctx, places(new, some))
			if err == nil && slices.ContainsFunc(all, func(h oldserver.Header) bool { return !h.Known }) {
				err = errUnread // its message would seem to be missing
			}
			return all, err
		},
		Contents: func(ctx context.Context, some []int) ([]oldserver.Sum, error) {
			return p.in.Side.Contents(ctx, places(new, some))
		},
	}
	for _, i := range old {
		before.Sizes = append(before.Sizes, p.shown[i].Size)
	}
	for _, j := range new {
		after.Sizes = append(after.Sizes, p.in.Side.Sizes[j])
	}
	found, err := oldserver.Match(ctx, before, after, oldserver.Options{Sample: len(old) >= sampleFrom, ByContent: shared})
	p.result = oldserver.Matching{Pairs: known, Left: make(map[int]oldserver.Reason), Headers: make(map[int]oldserver.Header)}
	if err != nil {
		return err
	}
	for _, pair := range found.Pairs {
		pair.Old, pair.New = old[pair.Old], new[pair.New]
		p.result.Pairs = append(p.result.Pairs, pair)
	}
	for k, why := range found.Left {
		p.result.Left[old[k]] = why
	}
	for _, i := range old {
		p.result.Headers[i] = p.header(p.shown[i]) // a message that comes later is known by it
	}
	slices.SortFunc(p.result.Pairs, func(a, b oldserver.Pair) int { return a.New - b.New })
	return nil
}

func places(indexes, some []int) (all []int) {
	for _, k := range some {
		all = append(all, indexes[k])
	}
	return all
}

// headersOf returns the headers of some of the old messages.
func (p *pairing) headersOf(old, some []int) ([]oldserver.Header, error) {
	all := make([]oldserver.Header, len(some))
	var err error
	for k, i := range places(old, some) {
		m := p.shown[i]
		if all[k] = p.header(m); all[k].Known || !uidl.Valid(m.UIDL) {
			continue
		}
		p.wanted = append(p.wanted, m.UIDL)
		if !p.watcher.refuses(m.Number) {
			err = errWanted
		}
	}
	return all, err
}

// header returns the header of an old message, from this session or from one before.
func (p *pairing) header(m oldserver.Message) oldserver.Header {
	if h := p.watcher.headers[m.Number]; h.Known {
		return h
	}
	return p.headers.Get(m)
}

// contentsOf returns the hashes of some of the old messages. Those that are too large to be
// asked for are not known.
func (p *pairing) contentsOf(old, some []int) ([]oldserver.Sum, error) {
	all := make([]oldserver.Sum, len(some))
	var err error
	for k, i := range places(old, some) {
		m := p.shown[i]
		if all[k] = p.watcher.sums[m.Number]; all[k] != (oldserver.Sum{}) {
			continue
		}
		if copy(all[k][:], p.known[m.UIDL]) > 0 || m.Size > maxWhole {
			continue
		}
		p.bodies = append(p.bodies, m.UIDL)
		if !p.watcher.refuses(m.Number) {
			err = errWanted
		}
	}
	return all, err
}

// recorded returns the messages that were found before: the record has the UIDL for the
// message in INBOX. A UIDL that is only computed may be that of another message on the old
// server: then the header has to be the same, too.
func (p *pairing) recorded() (pairs []oldserver.Pair) {
	if p.record == nil || p.record.Current().UIDValidity != p.in.UIDValidity {
		return nil
	}
	g := p.record.Current()
	here, shown := make(map[string][]int, len(p.in.UIDs)), make(map[string][]int, len(p.shown))
	for j, uid := range p.in.UIDs {
		if g.Find(uid) != nil {
			name := string(g.Append(nil, uid))
			here[name] = append(here[name], j)
		}
	}
	for i, m := range p.shown {
		shown[m.UIDL] = append(shown[m.UIDL], i)
	}
	for name, old := range shown {
		new := here[name]
		if len(old) != len(new) {
			continue
		}
		for k, i := range old { // copies of one message may share a UIDL
			if e := g.Find(p.in.UIDs[new[k]]); sameHeader(e, p.header(p.shown[i])) {
				pairs = append(pairs, oldserver.Pair{Old: i, New: new[k], Proof: oldserver.ByHeader, Header: e.Header})
			}
		}
	}
	slices.SortFunc(pairs, func(a, b oldserver.Pair) int { return a.New - b.New })
	return pairs
}

// sameHeader reports whether an entry of the record is that of an old message with its UIDL.
func sameHeader(e *uidl.Entry, h oldserver.Header) bool {
	if h.Known && e.Header != 0 {
		return h.Hash == e.Header
	}
	return e.UIDL != ""
}

// others returns the indexes of the messages that are in no pair.
func (p *pairing) others(pairs []oldserver.Pair) (old, new []int) {
	inOld, inNew := make([]bool, len(p.shown)), make([]bool, len(p.in.UIDs))
	for _, pair := range pairs {
		inOld[pair.Old], inNew[pair.New] = true, true
	}
	for i, done := range inOld {
		if !done {
			old = append(old, i)
		}
	}
	for j, done := range inNew {
		if !done {
			new = append(new, j)
		}
	}
	return old, new
}

// firstOther returns the lowest UID of INBOX, or behind it, that was not found.
func (p *pairing) firstOther() uint32 {
	for j, uid := range p.in.UIDs {
		if j >= len(p.result.Pairs) || p.result.Pairs[j].New != j {
			return uid
		}
	}
	if n := len(p.in.UIDs); n > 0 {
		return p.in.UIDs[n-1] + 1
	}
	return 1
}

// otherUIDLs returns how many messages the bridge would show with another UIDL.
func (p *pairing) otherUIDLs(record *uidl.Record, f uidl.Format) (n int) {
	name := func(uid uint32) string { return string(f.Append(nil, uid, p.in.UIDValidity)) }
	if record != nil && record.Current().UIDValidity == p.in.UIDValidity {
		name = func(uid uint32) string { return string(record.Current().Append(nil, uid)) }
	}
	for _, pair := range p.result.Pairs {
		if name(p.in.UIDs[pair.New]) != p.shown[pair.Old].UIDL {
			n++
		}
	}
	return n
}
