package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"postern/bridge/inbox"
	"postern/bridge/uidl"
	"postern/proxy"
)

// A Bucket stores values by key, as state.Bucket does. Get returns nil if there is no
// value. When Put returns, the value is on the disk. Update replaces the old value by
// the result of change; nobody else writes the key in between. UpdateAll does the same
// for all keys or for none, in the given order. A value of nil removes the key. Scan
// calls each for the keys with a prefix, in order, as they are at one moment; a value
// is valid until each returns.
type Bucket interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
	UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error
	Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error
}

func (s *session) notice(kind string, count int, err error) {
	s.backend.observe(proxy.MaildropNoticed{Client: s.login.Client, Account: s.login.Account, Kind: kind, Messages: count, Err: err})
}

// inboxOf follows the account in its keys, in every store.
const inboxOf = "\x00INBOX"

// key returns the key of an account's INBOX.
func key(account string) string { return account + inboxOf }

// errConflict reports that another session has written the value first.
var errConflict = errors.New("another session has written meanwhile")

// errRecordLost reports that an account has no record, though there was one before.
var errRecordLost = errors.New("the record of unique-ids was lost: the cache knows that there was one")

// A stamp identifies one version of the record of an account. The zero value stands
// for no record.
type stamp struct {
	version uint64
	sum     uint32 // the checksum of its head
}

// formerStamp is the stamp of snapshots that belong to no known version of the record:
// snapshots of earlier Posterns, and snapshots whose UIDLs must be computed again.
var formerStamp = stamp{sum: 1}

func stampOf(r *uidl.Record, head []byte) stamp {
	return stamp{r.Version, binary.LittleEndian.Uint32(head[len(head)-4:])}
}

// A recordState is a session's knowledge of the record of its account.
type recordState struct {
	stamp        stamp
	generation   uint32      // number of the generation of the session's UIDs; 0: of a record of version 1
	former       bool        // the record has the form of version 1
	seen         uidl.Day    // Seen of the current generation
	uidls        *uidl.UIDLs // nil: the present format computes all names, or unread is set
	unread       bool        // the names have not been read: no command needed them
	unchanged    bool        // the record and the messages are as the last session left them
	messagesGone bool        // messages of the last session are gone
}

func today() uidl.Day { return uidl.DayOf(time.Now()) }

// identify gives the listed messages their unique-ids. A unique-id that is new, or that
// differs from the computed one, is on the disk before the client sees it.
func (s *session) identify(ctx context.Context, known snapshot, v inbox.View, listed *snapshot, asked bool) (err error) {
	if s.backend.Record == nil {
		return nil
	}
	for range 3 {
		if err = s.tryIdentify(ctx, known, v, listed, asked); !errors.Is(err, errConflict) {
			break
		}
	}
	if _, refused := errors.AsType[*proxy.Refusal](err); err != nil && !refused { // a refusal is that of the old server
		s.notice(proxy.NoticeRecord, len(listed.messages), err)
	}
	return err
}

func (s *session) tryIdentify(ctx context.Context, known snapshot, v inbox.View, listed *snapshot, asked bool) error {
	head, err := s.backend.Record.Get(ctx, key(s.login.Account))
	if err != nil {
		return err
	}
	p := recordPass{session: s, known: known, view: v, listed: listed, stored: stored{head: head}}
	if p.record, err = s.decodeHead(head); err != nil {
		return err
	}
	if p.record != nil {
		p.sameRecord = stampOf(p.record, head) == known.record && known.continuesIn(v)
	}
	p.unchanged = p.sameRecord && !asked && len(known.messages) == len(listed.messages)
	if err := p.decide(ctx); err != nil {
		return err
	}
	if p.changed {
		if err := p.write(ctx); err != nil {
			return err
		}
	}
	if err := p.setState(ctx); err != nil {
		return err
	}
	if p.renumbered {
		listed.record = formerStamp // the hash of the UIDLs is not known yet
		s.putSnapshot(ctx, *listed) // else the next session would renumber again
	}
	return nil
}

// forgotten reports whether the record of an account was removed on purpose.
func (b *Backend) forgotten(ctx context.Context, account string) (bool, error) {
	if b.Forgotten == nil {
		return false, nil
	}
	return b.Forgotten(ctx, account)
}

// decodeHead returns the head of a record. It returns nil if there is no record, or if
// the record is damaged and Backend.Recompute is set.
func (s *session) decodeHead(head []byte) (*uidl.Record, error) {
	if head == nil {
		return nil, nil //nolint:nilnil // no record is no error
	}
	record, err := uidl.DecodeHead(head)
	return record, s.recompute(&record, err)
}

// recompute treats a damaged record as absent if Backend.Recompute is set: it sets
// record to nil and returns nil. It returns any other error unchanged.
func (s *session) recompute(record **uidl.Record, err error) error {
	if errors.Is(err, uidl.ErrDamaged) && s.backend.Recompute {
		s.notice(proxy.NoticeRecomputed, 0, err)
		*record = nil
		return nil
	}
	return err
}

// A recordPass brings the record of an account up to date with one listing: decide
// changes the record, write stores it, and setState makes it what the session shows.
type recordPass struct {
	session *session
	known   snapshot
	view    inbox.View
	listed  *snapshot

	stored     stored       // the stored form of record
	record     *uidl.Record // nil: there is no record
	sameRecord bool         // the record is as the last session has left it
	unchanged  bool         // the record and the mailbox are as the last session has left them

	adopted    bool // the fingerprints of the cache are in the record
	changed    bool // the record is to be written
	renumbered bool // the UIDs now belong to other messages
}

// load reads the whole record. It returns errConflict if the head has changed since.
func (p *recordPass) load(ctx context.Context) error {
	s := p.session
	st, err := readStored(ctx, s.backend.Record, s.login.Account)
	if err != nil {
		return err
	}
	if !bytes.Equal(st.head, p.stored.head) {
		return errConflict
	}
	p.stored = st
	if p.record == nil {
		return nil
	}
	record, err := uidl.Decode(st.head, st.blocks)
	if err = s.recompute(&record, err); err != nil {
		return err
	}
	if p.record = record; record != nil {
		p.adoptFingerprints(ctx)
	}
	return nil
}

// adoptFingerprints adds the fingerprints in the cache to a record in the form of
// version 1, once.
func (p *recordPass) adoptFingerprints(ctx context.Context) {
	if p.record.Former() && !p.adopted {
		p.session.adoptFingerprints(ctx, p.record, p.known)
		p.adopted = true
	}
}

// decide changes the record so that it has the unique-ids of the listed messages.
func (p *recordPass) decide(ctx context.Context) error {
	s := p.session
	if p.record == nil {
		if p.stored.head == nil && p.known.record != (stamp{}) && len(p.known.messages) > 0 {
			forgotten, err := s.backend.forgotten(ctx, s.login.Account)
			if err != nil {
				return err
			}
			if !forgotten {
				if !s.backend.Recompute {
					return errRecordLost
				}
				s.notice(proxy.NoticeRecomputed, 0, errRecordLost)
			}
		}
		if p.stored.head == nil && s.backend.Learner != nil {
			if err := s.backend.learn(ctx, s.login); err != nil {
				return err
			}
			return errConflict // the record that was learnt is read
		}
		return p.newRecord(ctx)
	}
	again, err := s.backend.learnsAgain(ctx, s.login.Account)
	if err != nil {
		return err
	}
	if again {
		if err := s.backend.learn(ctx, s.login); err != nil {
			return err
		}
		return errConflict
	}
	if err := p.catchUp(ctx); err != nil {
		return err
	}
	if p.uidsChanged() {
		if err := p.load(ctx); err != nil {
			return err
		}
		if p.record == nil {
			return p.newRecord(ctx)
		}
		return p.renumber(ctx)
	}
	fresh := p.newUIDs()
	if len(fresh) > 0 && !p.unchanged && (p.recentlyRenumbered() || p.record.AwaitsCopies(today())) {
		return p.rejoin(ctx, fresh)
	}
	p.changed = p.record.Use(s.backend.UIDL, p.listed.uidNext)
	if p.unchanged || len(fresh) == 0 || p.record.Plain() {
		return nil
	}
	if err := p.load(ctx); err != nil {
		return err
	}
	if p.record == nil {
		return p.newRecord(ctx)
	}
	p.changed = p.record.Use(s.backend.UIDL, p.listed.uidNext)
	p.changed = p.record.Separate(fresh) || p.changed
	return nil
}

// newRecord makes an empty record, which replaces any stored one.
func (p *recordPass) newRecord(ctx context.Context) error {
	if err := p.load(ctx); err != nil {
		return err
	}
	p.record, p.changed = uidl.New(p.view.UIDValidity, p.session.backend.UIDL), true
	p.record.Current().Since = today()
	p.record.Supersede(p.stored.head, p.stored.names())
	return nil
}

// catchUp opens INBOX again if its UIDNEXT was lower than that of the record. Another
// session of the account, or the learning of its UIDLs, may have seen messages that came
// since: then UIDNEXT is not lower now, and the UIDs have not changed.
func (p *recordPass) catchUp(ctx context.Context) error {
	s, g := p.session, p.record.Current()
	if p.view.UIDValidity != g.UIDValidity || p.view.UIDNext == 0 || p.view.UIDNext >= g.UIDNext {
		return nil
	}
	v, err := s.inbox.Open(ctx, s.backend.noUIDNext.Load())
	if err != nil {
		return err
	}
	if v.UIDValidity == g.UIDValidity && v.UIDNext >= g.UIDNext {
		p.view.UIDNext = v.UIDNext
	}
	return nil
}

// uidsChanged reports whether the UIDs may belong to other messages than in the present
// generation.
func (p *recordPass) uidsChanged() bool {
	g, v := p.record.Current(), p.view
	back := p.sameRecord || p.known.record == stampOf(p.record, p.stored.head) || p.known.record == formerStamp || p.known.record == (stamp{})
	return g.UIDValidity != v.UIDValidity || v.UIDNext != 0 && v.UIDNext < g.UIDNext ||
		back && p.known.uidValidity == v.UIDValidity && !p.known.continuesIn(v)
}

// newUIDs returns the listed UIDs from the record's UIDNEXT on.
func (p *recordPass) newUIDs() (uids []uint32) {
	from := p.record.Current().UIDNext
	for i := range p.listed.messages {
		if uid := p.listed.messages[i].uid; uid >= from {
			uids = append(uids, uid)
		}
	}
	return uids
}

// write stores the record. When write returns, the record is on the disk.
func (p *recordPass) write(ctx context.Context) error {
	p.adoptFingerprints(ctx)
	g := p.record.Current()
	g.UIDNext, g.Seen = max(g.UIDNext, p.listed.uidNext), today()
	return p.stored.write(ctx, p.session.backend.Record, p.session.login.Account, p.record)
}

// setState makes the record the one that the session shows.
func (p *recordPass) setState(ctx context.Context) error {
	if err := p.loadEntries(ctx); err != nil {
		return err
	}
	g := p.record.Current()
	r := recordState{
		stamp: stampOf(p.record, p.stored.head), generation: g.Number(), former: p.record.Former(), seen: g.Seen, unchanged: p.unchanged,
	}
	switch {
	case g.Counts().Named > 0 && g.Loaded():
		r.uidls = g.UIDLs()
	case g.Counts().Named > 0:
		r.unread = true
	case len(g.Eras) > 1 || g.Eras[0].Suffix != "":
		r.uidls = g.Computed()
	}
	if !p.sameRecord && !p.record.Former() {
		p.setFingerprintMarks(g)
	}
	r.messagesGone = !p.sameRecord && g.Counts().Entries > 0 || p.countKnown() != len(p.known.messages)
	p.session.record = r
	return nil
}

// loadEntries reads the entries of the record if the session needs them: for the marks
// after the record has changed, or for the names after the messages have changed.
func (p *recordPass) loadEntries(ctx context.Context) error {
	counts := p.record.Current().Counts()
	marks := !p.sameRecord && !p.record.Former() && counts.Entries > 0
	if names := !p.unchanged && counts.Named > 0; !marks && !names || p.record.Current().Loaded() {
		return nil
	}
	if err := p.load(ctx); err != nil || p.record != nil {
		return err
	}
	if err := p.newRecord(ctx); err != nil { // the entries are damaged
		return err
	}
	return p.write(ctx)
}

// setFingerprintMarks marks the messages that have fingerprints in g, and no others.
func (p *recordPass) setFingerprintMarks(g *uidl.Generation) {
	for i := range p.listed.messages {
		m := &p.listed.messages[i]
		m.marks &^= fingerprinted | headerHashed
		e := g.Find(m.uid)
		if e != nil && e.Short != 0 {
			m.marks |= fingerprinted
		}
		if e != nil && e.Header != 0 {
			m.marks |= headerHashed
		}
	}
}

// countKnown returns the number of listed messages below the UIDNEXT of the last session.
func (p *recordPass) countKnown() (n int) {
	for i := range p.listed.messages {
		if p.listed.messages[i].uid < p.known.uidNext {
			n++
		}
	}
	return n
}

// readUIDLs reads the names of the messages, unless the session has read them before.
func (s *session) readUIDLs(ctx context.Context) error {
	if !s.record.unread {
		return nil
	}
	err := s.tryReadUIDLs(ctx)
	if err != nil {
		// The next session reads the whole record, and finds the cause.
		s.maildrop.changed, s.record.stamp = true, formerStamp
		s.notice(proxy.NoticeRecord, len(s.maildrop.messages), err)
	}
	return err
}

func (s *session) tryReadUIDLs(ctx context.Context) error {
	st, err := readStored(ctx, s.backend.Record, s.login.Account)
	if err != nil {
		return err
	}
	if st.head == nil {
		return errRecordLost
	}
	record, err := uidl.DecodeHead(st.head)
	if err != nil {
		return err
	}
	g := s.generationOf(record)
	if g == nil {
		return errConflict
	}
	uidls := g.UIDLs()
	if !g.Loaded() {
		if uidls, err = g.DecodeUIDLs(st.blocks); err != nil {
			return err
		}
	}
	s.record.uidls, s.record.unread = uidls, false
	if s.hashUIDLs(s.maildrop.messages)+s.hashUIDLs(s.maildrop.hidden) != s.maildrop.hash {
		s.record.uidls, s.record.unread = nil, true
		return errors.New("the unique-ids are not those that were shown")
	}
	return nil
}

// generationOf returns the generation of the session's UIDs, or nil.
func (s *session) generationOf(record *uidl.Record) *uidl.Generation {
	for _, g := range record.Generations {
		if g.Number() == s.record.generation {
			return g
		}
	}
	if s.record.generation == 0 && len(record.Generations) == 1 && record.Current().UIDValidity == s.maildrop.uidValidity {
		return record.Current() // another session has converted the record
	}
	return nil
}

// stored is the record of one account in the form of a Bucket.
type stored struct {
	head   []byte // nil: there is no record
	blocks []uidl.Block
}

// blocksOf stands in the keys of blocks before the name of the block.
const blocksOf = "\x00names\x00"

// readStored reads the record of an account as it is at one moment.
func readStored(ctx context.Context, bucket Bucket, account string) (st stored, err error) {
	all := key(account)
	err = bucket.Scan(ctx, all, func(k string, value []byte) error {
		st.add(k[len(all):], value)
		return nil
	})
	if err != nil {
		return stored{}, fmt.Errorf("read record of unique-ids: %w", err)
	}
	return st, nil
}

// add adds the value of one key of an account to st. The part of the key after
// key(account) is of.
func (st *stored) add(of string, value []byte) {
	if of == "" {
		st.head = append([]byte{}, value...)
	} else if name, ok := strings.CutPrefix(of, blocksOf); ok {
		st.blocks = append(st.blocks, uidl.Block{Name: name, Value: bytes.Clone(value)})
	}
}

func (st *stored) names() (names []string) {
	for _, b := range st.blocks {
		names = append(names, b.Name)
	}
	return names
}

// write replaces st in the bucket by record, which was read from st, and sets st.head
// to the new head. It returns errConflict if another session has written meanwhile.
func (st *stored) write(ctx context.Context, bucket Bucket, account string, record *uidl.Record) error {
	head, blocks := record.Encode()
	keys, values := []string{key(account)}, map[string][]byte{}
	for _, b := range blocks {
		k := key(account) + blocksOf + b.Name
		keys, values[k] = append(keys, k), b.Value
	}
	err := bucket.UpdateAll(ctx, keys, func(k string, old []byte) ([]byte, error) {
		if k != keys[0] {
			return values[k], nil
		}
		if !bytes.Equal(old, st.head) {
			return nil, errConflict
		}
		return head, nil
	})
	if err == nil {
		st.head, st.blocks = head, nil
	}
	return err
}
