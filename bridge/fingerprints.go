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
	// fingerprintsVersion is the first octet of fingerprints in the cache.
	fingerprintsVersion = 1
	// maxFingerprints bounds the messages whose fingerprints a session fetches after QUIT.
	// fingerprintsAtOnce bounds the messages of one command: the next session of the
	// account may have to wait for the end of one command.
	maxFingerprints, fingerprintsAtOnce = 1000, 20
	// fingerprintsTime bounds the time of these commands: the client's connection is
	// closed after them.
	fingerprintsTime = 3 * time.Second
	// fingerprintsPause is the wait before more than one command: a client that logs in
	// again at once would find the mailbox busy, at servers where sessions of an account
	// wait for each other.
	fingerprintsPause = time.Second
	// headersAtOnce bounds the headers that are fetched with one command.
	headersAtOnce = 100
	// maxHeaders bounds the headers that are fetched to find messages again.
	maxHeaders = 5000
)

func fingerprintsKey(account string) string { return key(account) + "\x00prints" }

// decodeFingerprints decodes fingerprints, ascending by UID, that earlier versions of
// Postern have stored in the cache.
func decodeFingerprints(b []byte) ([]uidl.Fingerprint, error) {
	_, r, err := openFrame(b, fingerprintsVersion)
	if err != nil {
		return nil, err
	}
	prints := make([]uidl.Fingerprint, r.uvarint(min(inbox.MaxMessages, uint64(len(r.b)/9))))
	uid := uint64(0)
	for i := range prints {
		delta := r.uvarint(math.MaxUint32<<1 | 1)
		uid += delta >> 1
		p := uidl.Fingerprint{UID: uint32(uid), Short: r.uint64()}
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

// adoptFingerprints adds the fingerprints in the cache to a record in the form of
// version 1. The UIDs of these fingerprints belong to the snapshot known.
func (s *session) adoptFingerprints(ctx context.Context, record *uidl.Record, known snapshot) {
	g := record.Current()
	if s.backend.Cache == nil || known.uidValidity != g.UIDValidity {
		return
	}
	value, err := s.backend.Cache.Get(ctx, fingerprintsKey(s.login.Account))
	var prints []uidl.Fingerprint
	if err == nil && value != nil {
		prints, err = decodeFingerprints(value)
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

// recordFingerprints adds prints, fingerprints ascending by UID, to the record, and marks
// the messages that are gone. Names of gone messages are kept for uidl.KeepNames days.
// recordFingerprints does nothing if another session has begun a generation, or an
// operator has removed the record.
func (s *session) recordFingerprints(ctx context.Context, prints []uidl.Entry) (err error) {
	for range 3 {
		if err = s.tryRecordFingerprints(ctx, prints); !errors.Is(err, errConflict) {
			break
		}
	}
	if err != nil && !errors.Is(err, errConflict) {
		s.notice(proxy.NoticeRecord, len(prints), err)
	}
	return err
}

func (s *session) tryRecordFingerprints(ctx context.Context, prints []uidl.Entry) error {
	st, err := readStored(ctx, s.backend.Record, s.login.Account)
	if err != nil || st.head == nil {
		return err
	}
	record, err := uidl.Decode(st.head, st.blocks)
	if err != nil {
		s.record.stamp, s.maildrop.changed = formerStamp, true // the next session reads the whole record
		return err
	}
	g := record.Current()
	if s.generationOf(record) != g {
		return nil
	}
	own := stampOf(record, st.head) == s.record.stamp
	if record.Former() {
		s.adoptFingerprints(ctx, record, s.maildrop.snapshot())
	}
	d := s.maildrop
	g.Put(prints)
	if g.Seen != today() {
		s.requestAgain(g)
	}
	g.Mark(today(), func(uid uint32) int {
		switch m := d.findAny(uid); {
		case m != nil && m.marks&gone == 0:
			return 1
		case m != nil || d.lacks(uid):
			return -1
		}
		return 0
	}, func(uid uint32) bool { return d.findAny(uid) != nil })
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
		_ = s.backend.Cache.Put(ctx, fingerprintsKey(s.login.Account), nil) // an error only leaves unused fingerprints
	}
	return nil
}

func compareFingerprints(a, b uidl.Fingerprint) int { return cmp.Compare(a.UID, b.UID) }

// collectFingerprints fetches the missing fingerprints, by which messages are found again
// after a change of UIDVALIDITY, and adds them to the record. The newest messages come
// first: not all clients have fetched these yet. The record also gets the hashes of the
// headers that were sent, and the messages that are gone.
func (s *session) collectFingerprints() {
	if !s.updated || s.backend.Cache == nil || s.backend.Record == nil || s.renumbered {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), fingerprintsTime)
	defer cancel()
	fresh := s.fetchMissing(ctx)
	for uid, h := range s.headerHashes {
		if m := s.maildrop.find(uid); m != nil && m.marks&deleted == 0 {
			fresh = append(fresh, uidl.Fingerprint{UID: uid, Header: h})
			m.marks |= headerHashed
		}
	}
	if len(fresh) == 0 && !s.record.former && !s.record.messagesGone && s.record.seen == today() && !s.maildrop.anyGone() {
		return
	}
	entries := mergeFingerprints(fresh)
	if len(fresh) > 0 {
		s.maildrop.changed = true
	}
	if s.recordFingerprints(context.WithoutCancel(ctx), entries) != nil { // the next session tries again
		for _, e := range entries {
			s.maildrop.find(e.UID).marks &^= fingerprinted | headerHashed
		}
	}
}

// mergeFingerprints returns one entry for each message of fresh, by ascending UID.
func mergeFingerprints(fresh []uidl.Fingerprint) (entries []uidl.Entry) {
	slices.SortStableFunc(fresh, compareFingerprints)
	for _, f := range fresh {
		if last := len(entries) - 1; last >= 0 && entries[last].UID == f.UID {
			entries[last].Header = cmp.Or(entries[last].Header, f.Header)
			entries[last].Short = cmp.Or(entries[last].Short, f.Short)
			continue
		}
		entries = append(entries, uidl.Entry{UID: f.UID, Short: f.Short, Header: f.Header})
	}
	return entries
}

// fetchMissing fetches the short fingerprints of messages without one, the newest first,
// until ctx is over or the account logs in again.
func (s *session) fetchMissing(ctx context.Context) (fresh []uidl.Fingerprint) {
	var lacking []*message
	for i := range s.maildrop.messages {
		if m := &s.maildrop.messages[i]; m.marks&(fingerprinted|deleted) == 0 {
			lacking = append(lacking, m)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	alone, end := s.backend.queue().startBackground(s.login.Account)
	defer end()
	if len(lacking) > fingerprintsAtOnce {
		select {
		case <-time.After(fingerprintsPause):
		case <-alone.Done():
		}
	}
	lacking = lacking[max(0, len(lacking)-maxFingerprints):]
	var missing []*message
	for len(lacking) > 0 && alone.Err() == nil {
		some := lacking[max(0, len(lacking)-fingerprintsAtOnce):]
		lacking = lacking[:len(lacking)-len(some)]
		prints, ok := s.fetchFingerprints(ctx, some)
		fresh = append(fresh, prints...)
		if !ok {
			return fresh
		}
		for _, m := range some {
			if m.marks&fingerprinted == 0 {
				missing = append(missing, m)
			}
		}
	}
	// A few messages without an answer twice are gone, or the server cannot read them:
	// Postern does not request them again today. Many such messages mean a fault of
	// the server.
	if len(missing) > refusableOf(len(missing)+len(fresh)) {
		return fresh
	}
	for some := range slices.Chunk(missing, fingerprintsAtOnce) {
		if alone.Err() != nil {
			break
		}
		prints, ok := s.fetchFingerprints(ctx, some)
		fresh = append(fresh, prints...)
		for _, m := range some {
			if ok {
				m.marks |= fingerprinted
				s.maildrop.changed = true
			}
		}
	}
	return fresh
}

// requestAgain makes the next session fetch the fingerprints of messages without one in g.
func (s *session) requestAgain(g *uidl.Generation) {
	for i := range s.maildrop.messages {
		m := &s.maildrop.messages[i]
		if e := g.Find(m.uid); m.marks&fingerprinted != 0 && (e == nil || e.Short == 0) {
			m.marks &^= fingerprinted
			s.maildrop.changed = true
		}
	}
}

// fetchFingerprints fetches the fingerprints of messages, and marks the messages with
// one. ok reports whether the server has answered, if only with a refusal for good.
func (s *session) fetchFingerprints(ctx context.Context, some []*message) (prints []uidl.Fingerprint, ok bool) {
	uids := make([]uint32, len(some))
	for i, m := range some {
		uids[i] = m.uid
	}
	all, err := s.shortFingerprints(ctx, inbox.Sets(uids)[0])
	for _, p := range all {
		if i := slices.Index(uids, p.UID); i >= 0 {
			prints = append(prints, p)
			some[i].marks |= fingerprinted
		}
	}
	return prints, err == nil || refusedForGood(err)
}

// A headerTap writes a message to w, and hashes its header.
type headerTap struct {
	w      io.Writer
	header uidl.HeaderHash
}

func (w *headerTap) Write(p []byte) (int, error) {
	if !w.header.Done() {
		_, _ = w.header.Write(p)
	}
	return w.w.Write(p)
}

// hashHeader returns a headerTap that writes to to. It returns to itself if the hash of
// the header is known or would not be stored.
func (s *session) hashHeader(m *message, to io.Writer) io.Writer {
	if s.backend.Cache == nil || s.backend.Record == nil || m.marks&headerHashed != 0 || len(s.headerHashes) >= maxFingerprints {
		return to
	}
	return &headerTap{w: to}
}

// keepHeaderHash stores the hash of the header in the session, after the message was
// sent without an error. to is the result of hashHeader.
func (s *session) keepHeaderHash(m *message, to io.Writer) {
	w, ok := to.(*headerTap)
	if !ok || w.header.Sum() == 0 {
		return
	}
	if s.headerHashes == nil {
		s.headerHashes = make(map[uint32]uint64)
	}
	s.headerHashes[m.uid] = w.header.Sum()
}

// shortFingerprints fetches the short fingerprints of messages. With an error it also
// returns the complete fingerprints that came before.
func (s *session) shortFingerprints(ctx context.Context, uids imap.UIDSet) (prints []uidl.Fingerprint, err error) {
	err = s.inbox.Fingerprints(ctx, uids, func(f inbox.Fingerprint) {
		if len(prints) < inbox.MaxMessages {
			prints = append(prints, uidl.Fingerprint{UID: f.UID, Short: uidl.ShortHash(f.Size, f.Date, f.MessageID)})
		}
	})
	return prints, err
}

// addHeaders fetches headers and adds their hashes to prints, which ascend by UID. It marks
// the messages whose headers came.
func (s *session) addHeaders(ctx context.Context, uids imap.UIDSet, prints []uidl.Fingerprint, answered map[uint32]bool) error {
	var header uidl.HeaderHash
	return s.inbox.Headers(ctx, uids, func() io.Writer {
		header = uidl.HeaderHash{}
		return &header
	}, func(uid uint32) {
		answered[uid] = true
		if i, ok := slices.BinarySearchFunc(prints, uidl.Fingerprint{UID: uid}, compareFingerprints); ok {
			prints[i].Header = header.Sum()
		}
	})
}
