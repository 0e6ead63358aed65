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

// comparedOnReturn is the number of newest messages whose fingerprints are compared when
// a UIDVALIDITY returns: a restored backup differs in the newest messages.
const comparedOnReturn = 100

// renumber finds messages again after their UIDs have changed. A message that is not
// found with certainty gets a new unique-id: a client that fetches a message twice is
// better off than one that never fetches the message. If the server does not answer
// about all messages, renumber returns an error and changes nothing.
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

// recognize finds messages again by their fingerprints. It fetches headers where the
// short fingerprints are not enough and the record has hashes of headers.
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

// matchesGeneration reports whether the newest messages may be the messages that had
// the same UIDs in g: no message has a fingerprint that differs from the one in g, and no
// message has the fingerprint of a message whose UID in g is not listed.
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

// restoreGeneration makes g, an earlier generation, the present one again. A message
// without an entry in g may have been shown meanwhile, under another UID.
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

// recentlyRenumbered reports whether the UIDs have changed within the last
// uidl.KeepFingerprints days. Messages of an earlier generation may still arrive then:
// mail is copied to another server while clients poll.
func (p *recordPass) recentlyRenumbered() bool {
	all := p.record.Generations
	return len(all) > 1 && today() <= max(all[0].Since, all[1].Seen)+uidl.KeepFingerprints
}

// rejoin looks for the new messages, fresh, among those of earlier generations and of the
// old server.
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
		if p.recentlyRenumbered() {
			p.record.Current().Put(p.record.Rejoin(prints, known))
		}
		for _, now := range prints {
			find(p.listed.messages, now.UID).marks |= fingerprinted
		}
		if p.record.AwaitsCopies(today()) {
			if err := s.headersOfNew(ctx, prints, known); err != nil {
				return err
			}
			p.record.Current().Put(p.record.RecognizeCopies(prints))
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

// refusableOf returns how many messages, of the given number, a server may refuse for
// good: 1 %, or 3.
func refusableOf(messages int) int { return max(3, messages/100) }

// errUnanswered reports that a server has not answered about all messages. The messages
// left out may exist.
var errUnanswered = errors.New("the server has not answered about all messages")

// fingerprints returns the short fingerprints of messages, by ascending UID. It sends
// one command for each of sets, and another one for each message without an answer. A
// server may refuse a few messages for good, see refusableOf; if more messages lack an
// answer, the error is errUnanswered.
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

// fingerprintsOfNew is like fingerprints, for messages beside the known ones. If the
// server answers about none of a few messages, fingerprintsOfNew asks about a known
// message, too: an answer about that one proves that the server refuses the others.
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

// headersOfNew adds the hashes of headers to prints, up to maxHeaders. It asks about a known
// message, too, as fingerprintsOfNew does.
func (s *session) headersOfNew(ctx context.Context, prints []uidl.Fingerprint, known []uint32) error {
	var uids []uint32
	for _, p := range prints[:min(len(prints), maxHeaders)] {
		uids = append(uids, p.UID)
	}
	if len(uids) == 0 {
		return nil
	}
	err := s.headerFingerprints(ctx, uids, prints)
	if !errors.Is(err, errUnanswered) || len(known) == 0 || len(uids) > refusableOf(len(uids)) {
		return err
	}
	return s.headerFingerprints(ctx, append([]uint32{known[len(known)-1]}, uids...), prints) // known ones have lower UIDs
}

// headerFingerprints adds the hashes of the headers of messages to prints. It repeats
// commands and returns errors as fingerprints does.
func (s *session) headerFingerprints(ctx context.Context, uids []uint32, prints []uidl.Fingerprint) error {
	answered := make(map[uint32]bool) // also of headers without a hash
	var sets []imap.UIDSet
	for some := range slices.Chunk(uids, headersAtOnce) {
		sets = append(sets, inbox.Sets(some)...)
	}
	_, err := fetchComplete(uids, func(set imap.UIDSet) error { return s.addHeaders(ctx, set, prints, answered) }, sets, func() []uint32 {
		return slices.DeleteFunc(slices.Clone(uids), func(uid uint32) bool { return answered[uid] })
	}, func() []uidl.Fingerprint { return nil })
	return err
}

// attemptsAlone is the number of requests for a message, the first one included, before
// a missing answer is final: a new UIDL cannot be taken back.
const attemptsAlone = 3

// fetchComplete fetches sets of uids. Then it fetches the missing ones twice more, alone.
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

// refusedForGood reports whether err is a refusal that may concern a message, and is
// not temporary.
func refusedForGood(err error) bool { return inbox.Refused(err) && !inbox.RefusedForNow(err) }
