package bridge

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/uidl"
	"postern/proxy"
)

// A Store remembers values by key. Get returns nil if there is none; Put is on
// the disk when it returns; Update is a Put of what change makes of the old
// value, with nobody in between.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
}

func (s *session) notice(kind string, count int, err error) {
	s.backend.observe(proxy.MaildropNoticed{Client: s.login.Client, Account: s.login.Account, Kind: kind, Messages: count, Err: err})
}

// inboxOf is at the end of the keys of an account in every store.
const inboxOf = "\x00INBOX"

// key is that of an account's INBOX.
func key(account string) string { return account + inboxOf }

// remembered returns what is known of INBOX, maybe nothing.
func (s *session) remembered(ctx context.Context) snapshot {
	if s.backend.Cache == nil {
		return snapshot{}
	}
	value, err := s.backend.Cache.Get(ctx, key(s.login.Account))
	if err != nil || value == nil {
		if err != nil {
			s.notice(proxy.NoticeCache, 0, err)
		}
		return snapshot{}
	}
	known, err := decodeSnapshot(value)
	if err != nil {
		s.notice(proxy.NoticeCache, 0, err)
	}
	s.found = head(value)
	return known
}

// remember keeps what the session has learnt. The session may be over, so the
// end of ctx does not stop it.
func (s *session) remember(ctx context.Context) {
	if s.drop == nil || !s.drop.changed {
		return
	}
	s.drop.changed = false
	s.keep(ctx, s.drop.snapshot())
}

// keep puts a snapshot into the cache, unless another session has meanwhile.
func (s *session) keep(ctx context.Context, known snapshot) {
	if s.backend.Cache == nil {
		return
	}
	value := known.encode()
	err := s.backend.Cache.Update(context.WithoutCancel(ctx), key(s.login.Account), func(old []byte) ([]byte, error) {
		if head(old) != s.found {
			return nil, errOvertaken
		}
		return value, nil
	})
	switch {
	case err == nil:
		s.found = head(value)
	case !errors.Is(err, errOvertaken):
		s.notice(proxy.NoticeCache, len(known.messages), err)
	}
}

// errOvertaken says that another session was faster.
var errOvertaken = errors.New("another session has written meanwhile")

// identify gives the messages that are listed their unique-ids. What of them is
// new, or was computed otherwise before, is on the disk before it is shown.
func (s *session) identify(ctx context.Context, known snapshot, v view, listed *snapshot, asked bool) (err error) {
	if s.backend.Record == nil {
		return nil
	}
	for range 3 {
		if err = s.tryIdentify(ctx, known, v, listed, asked); !errors.Is(err, errOvertaken) {
			break
		}
	}
	if err != nil {
		s.notice(proxy.NoticeRecord, len(listed.messages), err)
	}
	return err
}

func (s *session) tryIdentify(ctx context.Context, known snapshot, v view, listed *snapshot, asked bool) error {
	stored, err := s.backend.Record.Get(ctx, key(s.login.Account))
	if err != nil {
		return err
	}
	record, err := s.decodeRecord(stored)
	if err != nil {
		return err
	}
	changed, renumbered := false, false
	switch {
	case record == nil:
		record, changed = uidl.New(v.uidValidity, s.backend.UIDL), true
	case record.UIDValidity != v.uidValidity || known.uidValidity == v.uidValidity && !v.continues(known):
		if record, err = s.renumber(ctx, record, v, listed); err != nil {
			return err
		}
		changed, renumbered = true, true
	default:
		changed = record.Use(s.backend.UIDL, listed.uidNext)
	}
	if (changed || asked) && !record.Plain() {
		uids := make([]uint32, len(listed.messages))
		for i := range listed.messages {
			uids[i] = listed.messages[i].uid
		}
		changed = record.Separate(uids) || changed
	}
	if changed {
		err = s.backend.Record.Update(ctx, key(s.login.Account), func(old []byte) ([]byte, error) {
			if !bytes.Equal(old, stored) {
				return nil, errOvertaken
			}
			return record.Encode(), nil
		})
	}
	if err != nil {
		return err
	}
	if !record.Plain() || record.Eras[0].Suffix != "" { // else the present format computes all
		s.ids = record
	}
	if renumbered {
		s.keep(ctx, *listed) // or the next session would do it again
	}
	return nil
}

// decodeRecord returns the record as it is stored; nil if there is none, or if
// it cannot be read and the operator wants to begin anew.
func (s *session) decodeRecord(stored []byte) (*uidl.Record, error) {
	if stored == nil {
		return nil, nil //nolint:nilnil // no record is no error
	}
	record, err := uidl.Decode(stored)
	if err != nil && s.backend.Recompute {
		s.notice(proxy.NoticeRecomputed, 0, err)
		return nil, nil //nolint:nilnil // as above
	}
	return record, err
}

// renumber finds the messages again that have a new UID. Where that is not
// certain they get new unique-ids: a client that fetches a message twice is
// better off than one that never fetches it.
func (s *session) renumber(ctx context.Context, old *uidl.Record, v view, listed *snapshot) (*uidl.Record, error) {
	before := s.prints(ctx)
	var after []uidl.Print
	if len(before) > 0 && len(listed.messages) > 0 {
		var err error
		if after, err = s.inbox.prints(ctx, imap.UIDSet{{Start: 1}}); err != nil && (!refused(err) || len(after) == 0) {
			return nil, err
		}
		slices.SortFunc(after, comparePrints)
		after = slices.DeleteFunc(after, func(p uidl.Print) bool { return v.uidNext != 0 && p.UID >= v.uidNext })
		if err := s.compareHeaders(ctx, before, after); err != nil {
			return nil, err
		}
	}
	var kept []uidl.Named
	for _, m := range uidl.Matches(before, after) {
		a, b := before[m.Old], &after[m.New]
		b.Header = max(a.Header, b.Header)
		kept = append(kept, uidl.Named{UID: b.UID, UIDL: string(old.Append(nil, a.UID))})
	}
	s.keepPrints(ctx, after)
	for i := range listed.messages {
		if _, ok := slices.BinarySearchFunc(after, uidl.Print{UID: listed.messages[i].uid}, comparePrints); ok {
			listed.messages[i].marks |= printed
		} else {
			listed.messages[i].marks &^= printed | headed
		}
	}
	s.notice(proxy.NoticeRenumbered, len(listed.messages)-len(kept), nil)
	return old.Renumber(v.uidValidity, s.backend.UIDL, kept), nil
}

// compareHeaders looks at the headers of messages whose short print was not
// enough, if there are headers to compare them with.
func (s *session) compareHeaders(ctx context.Context, before, after []uidl.Print) error {
	old, fresh := make(map[int]bool), make(map[int]bool)
	for _, m := range uidl.Matches(before, after) {
		old[m.Old], fresh[m.New] = true, true
	}
	worth := false
	for i, p := range before {
		worth = worth || !old[i] && p.Header != 0
	}
	var uids []uint32
	for j, p := range after {
		if worth && !fresh[j] && len(uids) < maxHeaders {
			uids = append(uids, p.UID)
		}
	}
	for some := range slices.Chunk(uids, headersAtOnce) {
		if err := s.inbox.headers(ctx, uidSets(some)[0], after); err != nil && !refused(err) {
			return err
		}
	}
	return nil
}
