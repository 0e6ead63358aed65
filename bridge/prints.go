package bridge

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/bridge/uidl"
	"postern/proxy"
)

const (
	// printsVersion is the first octet of prints in the cache.
	printsVersion = 1
	// maxPrints is how many messages a session looks at after QUIT, and
	// printsAtOnce how many with one command: for so long the next session of
	// the account may have to wait for the server.
	maxPrints, printsAtOnce = 1000, 20
	// printsTime bounds it: the connection of the client closes after it.
	printsTime = 3 * time.Second
	// headersAtOnce is how many headers are fetched with one command.
	headersAtOnce = 100
	// maxHeaders bounds how many headers are fetched to find messages again.
	maxHeaders = 5000
)

func printsKey(account string) string { return key(account) + "\x00prints" }

// decodePrints reads prints, ascending by UID, as they stood in the cache before
// they were part of the record.
func decodePrints(b []byte) ([]uidl.Print, error) {
	_, r, err := openFrame(b, printsVersion)
	if err != nil {
		return nil, err
	}
	prints := make([]uidl.Print, r.uvarint(min(inbox.MaxMessages, uint64(len(r.b)/9))))
	uid := uint64(0)
	for i := range prints {
		delta := r.uvarint(math.MaxUint32<<1 | 1)
		uid += delta >> 1
		p := uidl.Print{UID: uint32(uid), Short: r.uint64()}
		if delta&1 != 0 {
			p.Header = r.uint64()
		}
		if delta>>1 == 0 || uid > math.MaxUint32 {
			return nil, errDamaged
		}
		prints[i] = p
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return prints, nil
}

// adoptPrints makes the prints that the cache has part of a record in the form of
// before. They are of the UIDs that the listing beside them has.
func (s *session) adoptPrints(ctx context.Context, record *uidl.Record, known snapshot) {
	g := record.Present()
	if s.backend.Cache == nil || known.uidValidity != g.UIDValidity {
		return
	}
	value, err := s.backend.Cache.Get(ctx, printsKey(s.login.Account))
	var prints []uidl.Print
	if err == nil && value != nil {
		prints, err = decodePrints(value)
	}
	if err != nil {
		s.notice(proxy.NoticeCache, 0, err)
		return
	}
	entries := make([]uidl.Entry, 0, len(prints))
	for _, p := range prints {
		if p.UID < known.uidNext {
			entries = append(entries, uidl.Entry{UID: p.UID, Short: p.Short, Header: p.Header})
		}
	}
	g.Put(entries)
}

// note makes what the session has learnt of its messages part of the record:
// prints, ascending by UID, and which messages are gone. Names of those that are
// gone are kept for a while, see uidl.KeepNames. It does nothing if another
// session has found that UIDs mean other messages now, or an operator has
// forgotten the record.
func (s *session) note(ctx context.Context, prints []uidl.Entry) (err error) {
	for range 3 {
		if err = s.tryNote(ctx, prints); !errors.Is(err, errOvertaken) {
			break
		}
	}
	if err != nil && !errors.Is(err, errOvertaken) {
		s.notice(proxy.NoticeRecord, len(prints), err)
	}
	return err
}

func (s *session) tryNote(ctx context.Context, prints []uidl.Entry) error {
	st, err := readStored(ctx, s.backend.Record, s.login.Account)
	if err != nil || st.head == nil {
		return err
	}
	record, err := uidl.Decode(st.head, st.blocks)
	if err != nil {
		s.record.stamp, s.drop.changed = formerStamp, true // the next session reads all
		return err
	}
	g := record.Present()
	if s.generationOf(record) != g {
		return nil
	}
	own := stampOf(record, st.head) == s.record.stamp
	if record.Former() {
		s.adoptPrints(ctx, record, s.drop.snapshot())
	}
	d := s.drop
	g.Put(prints)
	if g.Seen != today() {
		s.askAgain(g)
	}
	g.Mark(today(), func(uid uint32) int {
		switch m := d.any(uid); {
		case m != nil && m.marks&gone == 0:
			return 1
		case m != nil || d.lacks(uid):
			return -1
		}
		return 0
	}, func(uid uint32) bool { return d.any(uid) != nil })
	g.UIDNext, g.Seen = max(g.UIDNext, d.uidNext), today()
	former := record.Former()
	if err := st.write(ctx, s.backend.Record, s.login.Account, record); err != nil {
		return err
	}
	if own {
		s.record.stamp, s.record.generation = stampOf(record, st.head), g.Number()
		d.changed = true
	}
	if former && s.backend.Cache != nil {
		_ = s.backend.Cache.Put(ctx, printsKey(s.login.Account), nil) // else they are there in vain
	}
	return nil
}

func comparePrints(a, b uidl.Print) int { return cmp.Compare(a.UID, b.UID) }

// gather looks at messages that are not known well enough to be found again
// after a change of UIDVALIDITY. The newest come first: they are those that
// clients have not fetched everywhere yet. What it finds becomes part of the
// record, with what else the session has learnt.
func (s *session) gather() {
	if !s.quitted || s.backend.Cache == nil || s.backend.Record == nil || s.renumbered {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), printsTime)
	defer cancel()
	fresh := s.fetchLacking(ctx)
	for uid, h := range s.headers {
		if m := s.drop.find(uid); m != nil && m.marks&deleted == 0 {
			fresh = append(fresh, uidl.Print{UID: uid, Header: h})
			m.marks |= headed
		}
	}
	if len(fresh) == 0 && !s.record.former && !s.record.dwindled && s.record.seen == today() && !s.drop.lostAny() {
		return
	}
	slices.SortStableFunc(fresh, comparePrints)
	var entries []uidl.Entry
	for _, p := range fresh {
		if last := len(entries) - 1; last >= 0 && entries[last].UID == p.UID {
			entries[last].Header = cmp.Or(entries[last].Header, p.Header)
			entries[last].Short = cmp.Or(entries[last].Short, p.Short)
			continue
		}
		entries = append(entries, uidl.Entry{UID: p.UID, Short: p.Short, Header: p.Header})
	}
	if len(fresh) > 0 {
		s.drop.changed = true
	}
	if s.note(context.WithoutCancel(ctx), entries) != nil { // the next session tries
		for _, e := range entries {
			s.drop.find(e.UID).marks &^= printed | headed
		}
	}
}

// fetchLacking returns the short prints of messages that have none, as far as
// there is time.
func (s *session) fetchLacking(ctx context.Context) (fresh []uidl.Print) {
	var lacking []*message
	for i := range s.drop.messages {
		if m := &s.drop.messages[i]; m.marks&(printed|deleted) == 0 {
			lacking = append(lacking, m)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	alone, end := s.backend.queue().linger(s.login.Account)
	defer end()
	lacking = lacking[max(0, len(lacking)-maxPrints):]
	var missing []*message
	for len(lacking) > 0 && alone.Err() == nil {
		some := lacking[max(0, len(lacking)-printsAtOnce):]
		lacking = lacking[:len(lacking)-len(some)]
		prints, ok := s.fetchPrints(ctx, some)
		fresh = append(fresh, prints...)
		if !ok {
			return fresh
		}
		for _, m := range some {
			if m.marks&printed == 0 {
				missing = append(missing, m)
			}
		}
	}
	// A few that have no answer twice have gone, or may never have one: they are not
	// asked for again today. Many say something of the server.
	if len(missing) > refusable(len(missing)+len(fresh)) {
		return fresh
	}
	for some := range slices.Chunk(missing, printsAtOnce) {
		if alone.Err() != nil {
			break
		}
		prints, ok := s.fetchPrints(ctx, some)
		fresh = append(fresh, prints...)
		for _, m := range some {
			if ok {
				m.marks |= printed
				s.drop.changed = true
			}
		}
	}
	return fresh
}

// askAgain makes the next session ask for the prints of messages that g has none of.
func (s *session) askAgain(g *uidl.Generation) {
	for i := range s.drop.messages {
		m := &s.drop.messages[i]
		if e := g.Find(m.uid); m.marks&printed != 0 && (e == nil || e.Short == 0) {
			m.marks &^= printed
			s.drop.changed = true
		}
	}
}

// fetchPrints asks for the prints of messages, and marks those that came. It
// reports whether the server has answered.
func (s *session) fetchPrints(ctx context.Context, some []*message) (prints []uidl.Print, ok bool) {
	uids := make([]uint32, len(some))
	for i, m := range some {
		uids[i] = m.uid
	}
	all, err := s.shortPrints(ctx, inbox.Sets(uids)[0])
	for _, p := range all {
		if i := slices.Index(uids, p.UID); i >= 0 {
			prints = append(prints, p)
			some[i].marks |= printed
		}
	}
	return prints, err == nil || refusedForGood(err)
}

// A watcher passes a message on, and looks at its header.
type watcher struct {
	w      io.Writer
	header uidl.HeaderHash
}

func (w *watcher) Write(p []byte) (int, error) {
	if !w.header.Done() {
		_, _ = w.header.Write(p)
	}
	return w.w.Write(p)
}

// watch returns to where a message is to be sent so that the print of its
// header is known then, if that is worth it.
func (s *session) watch(m *message, to io.Writer) io.Writer {
	if s.backend.Cache == nil || s.backend.Record == nil || m.marks&headed != 0 || len(s.headers) >= maxPrints {
		return to
	}
	return &watcher{w: to}
}

// watched takes the print, when all went well.
func (s *session) watched(m *message, to io.Writer) {
	w, ok := to.(*watcher)
	if !ok || w.header.Sum() == 0 {
		return
	}
	if s.headers == nil {
		s.headers = make(map[uint32]uint64)
	}
	s.headers[m.uid] = w.header.Sum()
}

// shortPrints asks for what the short prints of messages are made of. With an error
// it returns those that have come whole.
func (s *session) shortPrints(ctx context.Context, uids imap.UIDSet) (prints []uidl.Print, err error) {
	err = s.inbox.Fingerprints(ctx, uids, func(f inbox.Fingerprint) {
		if len(prints) < inbox.MaxMessages {
			prints = append(prints, uidl.Print{UID: f.UID, Short: uidl.Short(f.Size, f.Date, f.MessageID)})
		}
	})
	return prints, err
}

// addHeaders adds the hashes of whole headers to prints, which ascend by UID.
func (s *session) addHeaders(ctx context.Context, uids imap.UIDSet, prints []uidl.Print) error {
	var header uidl.HeaderHash
	return s.inbox.Headers(ctx, uids, func() io.Writer {
		header = uidl.HeaderHash{}
		return &header
	}, func(uid uint32) {
		if i, ok := slices.BinarySearchFunc(prints, uidl.Print{UID: uid}, comparePrints); ok {
			prints[i].Header = header.Sum()
		}
	})
}
