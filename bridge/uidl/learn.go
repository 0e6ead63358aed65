package uidl

import "slices"

// Learn completes r by fresh, the record of what an old server shows of the same mailbox.
// It returns how many UIDLs of messages are new in r, and whether r has changed. Both are
// loaded.
//
// UIDLs that clients may have been shown stay: those of the UIDs below UIDNEXT. If fresh
// has another UIDVALIDITY, it becomes the current generation.
func (r *Record) Learn(fresh *Record, today Day) (n int, changed bool) {
	from, to := fresh.Current(), r.Current()
	entries := make([]Entry, 0, len(from.Entries))
	for _, e := range from.Entries {
		e.UIDL = string(from.Append(nil, e.UID))
		entries = append(entries, e)
	}
	if from.UIDValidity != to.UIDValidity {
		r.Renumber(from.UIDValidity, from.Eras[len(from.Eras)-1].Format, entries, today)
		r.Current().UIDNext = from.UIDNext
		r.addForeignOf(fresh)
		return len(entries), true
	}
	names := r.names()
	next := to.UIDNext
	if last := len(to.Entries); next == 0 && last > 0 {
		next = to.Entries[last-1].UID + 1
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		known := to.Find(e.UID)
		return e.UID < next || known != nil && (known.UIDL != "" || known.Header == e.Header) || !r.mayLearn(e, names)
	})
	for i := range entries {
		if e := &entries[i]; string(to.compute(nil, e.UID)) == e.UIDL {
			e.UIDL = "" // the eras compute it
		}
	}
	to.Put(entries)
	to.UIDNext = max(to.UIDNext, from.UIDNext)
	foreign := r.addForeignOf(fresh)
	if changed = len(entries) > 0 || foreign; changed {
		to.Seen = today
	}
	return len(entries), changed
}

// names returns the entries of all generations that have a UIDL of their own, by UIDL.
func (r *Record) names() map[string][]Entry {
	names := make(map[string][]Entry)
	for _, g := range r.Generations {
		for _, e := range g.Entries {
			if e.UIDL != "" {
				names[e.UIDL] = append(names[e.UIDL], e)
			}
		}
	}
	return names
}

// mayLearn reports whether no other message has, or may have been shown with, the UIDL of
// e: copies of one message may share it, RFC 1939 section 7.
func (r *Record) mayLearn(e Entry, names map[string][]Entry) bool {
	for _, other := range names[e.UIDL] {
		if other.Header != 0 && e.Header != 0 && other.Header != e.Header {
			return false
		}
	}
	uid, computed := r.Current().computed(e.UIDL)
	return !computed || uid == e.UID
}

// addForeignOf adds the UIDLs without a message of fresh that r does not have, and reports
// whether there were any.
func (r *Record) addForeignOf(fresh *Record) bool {
	names := r.names()
	var added []Entry
	for _, g := range fresh.Generations[1:] {
		for _, e := range g.Entries {
			if e.UIDL != "" && names[e.UIDL] == nil {
				added = append(added, e)
			}
		}
	}
	if len(added) == 0 {
		return false
	}
	i := slices.IndexFunc(r.Generations, func(g *Generation) bool { return g.UIDValidity == foreignUIDValidity && g.UIDNext == 1 })
	if i < 0 {
		if len(r.Generations) == maxGenerations {
			r.drop(maxGenerations - 1)
		}
		r.AddForeign(renumbered(added, 0))
		return true
	}
	g, last := r.Generations[i], uint32(0)
	if n := len(g.Entries); n > 0 {
		last = g.Entries[n-1].UID
	}
	g.Put(renumbered(added, last))
	return true
}

// renumbered gives entries the UIDs behind last.
func renumbered(entries []Entry, last uint32) []Entry {
	for i := range entries {
		entries[i].UID = last + uint32(i) + 1
	}
	return entries
}
