package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/bridge/uidl"
	"postern/proxy"
)

// comparedOnReturn is how many messages, the newest, are compared with their fingerprints
// when a UIDVALIDITY returns: a backup that was restored differs there.
const comparedOnReturn = 100

// renumber finds the messages again that have a new UID. Where that is not
// certain they get new unique-ids: a client that fetches a message twice is
// better off than one that never fetches it. What the server does not answer is
// not certain, and temporary: then nothing is changed.
func (p *recordPass) renumber(ctx context.Context) error {
	s := p.session
	p.changed, p.renumbered = true, true
	if g := p.record.Current(); p.known.uidValidity == g.UIDValidity {
		g.UIDNext = max(g.UIDNext, p.known.uidNext)
	}
	if g := p.record.Returns(p.view.UIDValidity, p.view.UIDNext); g != nil {
		same, err := p.matchesGeneration(ctx, g)
		if err != nil {
			return err
		}
		if same {
			return p.restoreGeneration(ctx, g)
		}
	}
	var entries []uidl.Entry
	if len(p.listed.messages) > 0 && p.record.HasFingerprints() {
		after, err := s.fingerprints(ctx, p.listed.uids(), []imap.UIDSet{{{Start: 1}}})
		if err != nil {
			return err
		}
		if entries, err = p.recognize(ctx, after); err != nil {
			return err
		}
	}
	found := 0
	for i := range entries {
		if entries[i].UIDL != "" {
			found++
		}
	}
	p.record.Renumber(p.view.UIDValidity, s.backend.UIDL, entries, today())
	p.record.Separate(p.listed.uids())
	s.notice(proxy.NoticeRenumbered, len(p.listed.messages)-found, nil)
	return nil
}

// recognize finds messages again by their fingerprints. It asks for headers where
// the short ones are not enough, if there are headers to compare them with.
func (p *recordPass) recognize(ctx context.Context, after []uidl.Fingerprint) ([]uidl.Entry, error) {
	entries, more := p.record.Recognize(after)
	if !more {
		return entries, nil
	}
	var uids []uint32
	for i := range entries {
		if entries[i].UIDL == "" && len(uids) < maxHeaders {
			uids = append(uids, entries[i].UID)
		}
	}
	if err := p.session.headerFingerprints(ctx, uids, after); err != nil {
		return nil, err
	}
	entries, _ = p.record.Recognize(after)
	return entries, nil
}

// matchesGeneration reports whether the newest messages are, as far as is known,
// those that had these UIDs in g: none has another fingerprint than it had, and none has
// the fingerprint of a message that had another UID, which is not there.
func (p *recordPass) matchesGeneration(ctx context.Context, g *uidl.Generation) (bool, error) {
	all := p.listed.uids()
	known, _ := slices.BinarySearch(all, g.UIDNext)
	newest := all[max(0, known-comparedOnReturn):known]
	if !slices.ContainsFunc(g.Entries, func(e uidl.Entry) bool { return e.Short != 0 }) {
		return true, nil
	}
	prints, err := p.session.fingerprints(ctx, newest, inbox.Sets(newest))
	if err != nil {
		return false, err
	}
	gone := make(map[uint64]bool)
	for i := range g.Entries {
		if _, there := slices.BinarySearch(all, g.Entries[i].UID); !there && g.Entries[i].Short != 0 {
			gone[g.Entries[i].Short] = true
		}
	}
	for _, now := range prints {
		e := g.Find(now.UID)
		if e == nil || e.Short == 0 {
			e = &uidl.Entry{}
		}
		if e.Short != now.Short && (e.Short != 0 || gone[now.Short]) {
			return false, nil
		}
	}
	return true, nil
}

// restoreGeneration makes g, of before, the present generation again. Messages of which it
// has nothing may have been shown meanwhile, by another UID.
func (p *recordPass) restoreGeneration(ctx context.Context, g *uidl.Generation) error {
	var known, fresh, unknown []uint32
	for _, uid := range p.listed.uids() {
		if uid >= g.UIDNext {
			fresh = append(fresh, uid)
		}
		if uid >= g.UIDNext || g.Find(uid) == nil {
			unknown = append(unknown, uid)
		} else {
			known = append(known, uid)
		}
	}
	p.record.Return(g, today())
	if p.record.HasFingerprints() {
		prints, err := p.session.fingerprintsOfNew(ctx, unknown, known)
		if err != nil {
			return err
		}
		g.Put(p.record.Rejoin(prints, known))
	}
	p.record.Use(p.session.backend.UIDL, p.listed.uidNext)
	p.record.Separate(fresh)
	p.session.notice(proxy.NoticeRenumbered, 0, nil)
	return nil
}

// recentlyRenumbered reports whether UIDs have come to mean other messages so lately that
// messages of before may still come: mail is copied to another server while
// clients poll.
func (p *recordPass) recentlyRenumbered() bool {
	all := p.record.Generations
	return len(all) > 1 && today() <= max(all[0].Since, all[1].Seen)+uidl.KeepFingerprints
}

// rejoin finds messages that have come among those of the generations before.
func (p *recordPass) rejoin(ctx context.Context, fresh []uint32) error {
	s := p.session
	if err := p.load(ctx); err != nil {
		return err
	}
	if p.record == nil {
		return p.newRecord(ctx)
	}
	p.changed = true
	p.record.Use(s.backend.UIDL, p.listed.uidNext)
	if p.record.HasFingerprints() {
		all := p.listed.uids()
		known := all[:len(all)-len(fresh)]
		prints, err := s.fingerprintsOfNew(ctx, fresh, known)
		if err != nil {
			return err
		}
		p.record.Current().Put(p.record.Rejoin(prints, known))
		for _, now := range prints {
			find(p.listed.messages, now.UID).marks |= fingerprinted
		}
	}
	p.record.Separate(fresh)
	return nil
}

// uids returns the UIDs of all messages, ascending.
func (s *snapshot) uids() []uint32 {
	uids := make([]uint32, len(s.messages))
	for i := range s.messages {
		uids[i] = s.messages[i].uid
	}
	return uids
}

// refusableOf is how many of so many messages a server may refuse for good.
func refusableOf(messages int) int { return max(3, messages/100) }

// errUnanswered says that a server has not answered about all messages: what it
// has left out may be there.
var errUnanswered = errors.New("the server has not answered about all messages")

// fingerprints returns the short fingerprints of messages, by ascending UID, which it
// asks for with a command for each of sets. A message
// without an answer is asked for again, alone. That the server refuses a few of
// them for good is believed; all else that lacks an answer is an error.
func (s *session) fingerprints(ctx context.Context, uids []uint32, sets []imap.UIDSet) ([]uidl.Fingerprint, error) {
	if len(uids) == 0 {
		return nil, nil
	}
	var prints []uidl.Fingerprint
	fetch := func(set imap.UIDSet) error {
		some, err := s.shortFingerprints(ctx, set)
		prints = append(prints, some...)
		return err
	}
	return fetchComplete(uids, fetch, sets, func() []uint32 {
		slices.SortStableFunc(prints, compareFingerprints)
		prints = slices.CompactFunc(prints, func(a, b uidl.Fingerprint) bool { return a.UID == b.UID })
		prints = slices.DeleteFunc(prints, func(p uidl.Fingerprint) bool {
			_, listed := slices.BinarySearch(uids, p.UID)
			return !listed
		})
		return slices.DeleteFunc(slices.Clone(uids), func(uid uint32) bool {
			_, came := slices.BinarySearchFunc(prints, uidl.Fingerprint{UID: uid}, compareFingerprints)
			return came
		})
	}, func() []uidl.Fingerprint { return prints })
}

// fingerprintsOfNew is fingerprints of messages beside those that are known. Where
// the server has answered about none of a few, it is asked about a known message,
// too: if it answers about that one, what it refuses are the messages.
func (s *session) fingerprintsOfNew(ctx context.Context, uids, known []uint32) ([]uidl.Fingerprint, error) {
	prints, err := s.fingerprints(ctx, uids, inbox.Sets(uids))
	if !errors.Is(err, errUnanswered) || len(known) == 0 || len(uids) > refusableOf(len(uids)) {
		return prints, err
	}
	other := known[len(known)-1]
	all := append([]uint32{other}, uids...)
	slices.Sort(all)
	prints, err = s.fingerprints(ctx, all, inbox.Sets(all))
	return slices.DeleteFunc(prints, func(p uidl.Fingerprint) bool { return p.UID == other }), err
}

// headerFingerprints adds the fingerprints of the headers of messages to prints, as
// fingerprints does.
func (s *session) headerFingerprints(ctx context.Context, uids []uint32, prints []uidl.Fingerprint) error {
	var sets []imap.UIDSet
	for some := range slices.Chunk(uids, headersAtOnce) {
		sets = append(sets, inbox.Sets(some)...)
	}
	_, err := fetchComplete(uids, func(set imap.UIDSet) error { return s.addHeaders(ctx, set, prints) }, sets, func() []uint32 {
		return slices.DeleteFunc(slices.Clone(uids), func(uid uint32) bool {
			i, ok := slices.BinarySearchFunc(prints, uidl.Fingerprint{UID: uid}, compareFingerprints)
			return ok && prints[i].Header != 0
		})
	}, func() []uidl.Fingerprint { return nil })
	return err
}

// attemptsAlone is how often a message is asked for in all before no answer is taken
// for the last word: a new UIDL is for good.
const attemptsAlone = 3

// fetchComplete fetches sets of uids, then what is missing twice more.
func fetchComplete(uids []uint32, fetch func(imap.UIDSet) error, sets []imap.UIDSet, missing func() []uint32, result func() []uidl.Fingerprint) ([]uidl.Fingerprint, error) {
	for _, set := range sets {
		if err := fetch(set); err != nil && !refusedForGood(err) {
			return nil, err
		}
	}
	left := missing()
	if len(left) == 0 {
		return result(), nil
	}
	for asked := 1; asked < attemptsAlone && len(left) > 0 && len(left) <= refusableOf(len(uids)); asked++ {
		for _, uid := range left {
			if err := fetch(imap.UIDSet{{Start: imap.UID(uid), Stop: imap.UID(uid)}}); err != nil && !refusedForGood(err) {
				return nil, err
			}
		}
		left = missing()
	}
	if len(left) > refusableOf(len(uids)) || len(left) == len(uids) {
		return nil, fmt.Errorf("%w: %d of %d are missing", errUnanswered, len(left), len(uids))
	}
	return result(), nil
}

// refusedForGood reports whether an error is a refusal that may be about a
// message, and not about the moment.
func refusedForGood(err error) bool { return inbox.Refused(err) && !inbox.RefusedForNow(err) }
