package uidl

import (
	"cmp"
	"slices"
)

// Recognize finds messages again that have new UIDs. It searches the messages of the
// current generation first, then the vanished messages of that generation, then the
// earlier generations, the newest first. after are the present fingerprints of the
// messages; UIDs ascend. Recognize returns an entry for each message; a message that was
// found has its former unique-id. Each unique-id is given once; exact copies that shared a
// unique-id share it again. more reports whether hashes of headers of the messages that
// were not found could find more. All generations must be loaded.
func (r *Record) Recognize(after []Fingerprint) (entries []Entry, more bool) {
	return recognize(r.Generations, after)
}

// Rejoin is like Recognize, for new messages of the current generation that may have been
// shown in another generation before. listed are the UIDs of the other messages,
// ascending: Rejoin gives none of their names.
func (r *Record) Rejoin(after []Fingerprint, listed []uint32) []Entry {
	p := r.Current()
	held := make(map[string]bool, len(listed))
	for _, uid := range listed {
		held[string(p.Append(nil, uid))] = true
	}
	rest := *p
	rest.Entries = slices.DeleteFunc(slices.Clone(p.Entries), func(e Entry) bool {
		_, there := slices.BinarySearch(listed, e.UID)
		return there
	})
	entries, _ := recognize(append([]*Generation{&rest}, r.Generations[1:]...), after)
	for i := range entries {
		if held[entries[i].UIDL] {
			entries[i].UIDL = ""
		}
	}
	return entries
}

// RecognizeCopies is like Rejoin, for messages that another server has shown: after has the
// hashes of their headers. A unique-id that a message of the current generation has or had
// is not given again. All generations must be loaded.
func (r *Record) RecognizeCopies(after []Fingerprint) []Entry {
	g := r.foreign()
	if g == nil {
		return nil
	}
	given := make(map[string]bool)
	for i := range r.Current().Entries {
		given[r.Current().Entries[i].UIDL] = true
	}
	rest := *g
	rest.Entries = slices.DeleteFunc(slices.Clone(g.Entries), func(e Entry) bool { return given[e.UIDL] })
	entries, _ := recognize([]*Generation{&rest}, after)
	return entries
}

// recognize does the work of Recognize in some generations.
func recognize(generations []*Generation, after []Fingerprint) (entries []Entry, more bool) {
	entries = make([]Entry, len(after))
	rest := make([]int, len(after)) // indexes of the messages of after that are not found
	for i, p := range after {
		entries[i], rest[i] = Entry{UID: p.UID, Short: p.Short, Header: p.Header}, i
	}
	given, unclear := make(map[string]bool), make(map[uint64]bool)
	for _, g := range generations {
		for _, vanished := range []bool{false, true} {
			before, names := g.recognizable(vanished, given)
			if len(before) == 0 {
				continue
			}
			found := make(map[int]bool) // indexes of before
			give := func(i, j int) {
				e := &entries[j]
				e.UIDL, e.Header = names[i], cmp.Or(e.Header, before[i].Header)
				found[i], given[names[i]] = true, true
			}
			giveCopies(before, names, after, rest, give)
			left := func(j int) bool { return entries[j].UIDL == "" }
			rest = slices.DeleteFunc(rest, func(j int) bool { return !left(j) })
			old, places := make([]Fingerprint, 0, len(before)), make([]int, 0, len(before))
			for i, p := range before {
				if !found[i] && !given[names[i]] {
					old, places = append(old, p), append(places, i)
				}
			}
			fresh := make([]Fingerprint, len(rest))
			for k, j := range rest {
				fresh[k] = after[j]
				if unclear[fresh[k].Short] {
					fresh[k].Short = 0
				}
				if unclear[fresh[k].Header] {
					fresh[k].Header = 0
				}
			}
			for _, m := range Matches(old, fresh) {
				give(places[m.Old], rest[m.New])
			}
			rest = slices.DeleteFunc(rest, func(j int) bool { return !left(j) })
			// A fingerprint that is left here is ambiguous: it must not match a message
			// of an earlier generation.
			for i, p := range before {
				if !found[i] {
					unclear[p.Short], unclear[p.Header] = true, true
					more = more || p.Header != 0
				}
			}
			delete(unclear, 0)
		}
	}
	return entries, more && len(rest) > 0
}

// recognizable returns the fingerprints and names of the messages, vanished or not, whose
// name is not in given.
func (g *Generation) recognizable(vanished bool, given map[string]bool) (prints []Fingerprint, names []string) {
	var b []byte
	for i := range g.Entries {
		e := &g.Entries[i]
		if e.Vanished != 0 != vanished || e.Short == 0 && e.Header == 0 {
			continue
		}
		name := e.UIDL
		if name == "" {
			b = g.compute(b[:0], e.UID)
			name = string(b)
		}
		if !given[name] {
			prints, names = append(prints, Fingerprint{UID: e.UID, Short: e.Short, Header: e.Header}), append(names, name)
		}
	}
	return prints, names
}

// giveCopies calls give for messages that shared a name and a fingerprint. Such messages
// need not be told apart.
func giveCopies(before []Fingerprint, names []string, after []Fingerprint, rest []int, give func(i, j int)) {
	type copies struct {
		name  string
		short uint64
	}
	count := make(map[copies]int)
	shorts := make(map[uint64]int)
	for i, p := range before {
		count[copies{names[i], p.Short}]++
		shorts[p.Short]++
	}
	places := make(map[uint64][]int)
	for i, p := range before {
		if n := count[copies{names[i], p.Short}]; p.Short != 0 && n > 1 && n == shorts[p.Short] {
			places[p.Short] = append(places[p.Short], i)
		}
	}
	if len(places) == 0 {
		return
	}
	for _, j := range rest {
		if some := places[after[j].Short]; len(some) > 0 {
			give(some[0], j)
			places[after[j].Short] = some[1:]
		}
	}
}

// Undo gives messages the unique-ids that they had in the generation before the current
// one, as their fingerprints show, and returns the number of changed unique-ids. Undo
// begins a generation, so that the unique-ids shown since stay in the record and are never
// given to another message. All generations must be loaded.
func (r *Record) Undo() (changed int) {
	if len(r.Generations) < 2 {
		return 0
	}
	present := r.Current()
	var after []Fingerprint
	for i := range present.Entries {
		e := &present.Entries[i]
		if e.Short != 0 || e.Header != 0 {
			after = append(after, Fingerprint{UID: e.UID, Short: e.Short, Header: e.Header})
		}
	}
	found, _ := recognize(r.Generations[1:2], after)
	byUID := make(map[uint32]string, len(found))
	for _, e := range found {
		byUID[e.UID] = e.UIDL
	}
	// A name that a message has now stays with that message.
	holder := make(map[string]uint32)
	for i := range present.Entries {
		e := &present.Entries[i]
		holder[string(present.Append(nil, e.UID))] = e.UID
	}
	entries := slices.Clone(present.Entries)
	for i := range entries {
		e := &entries[i]
		name := byUID[e.UID]
		was := string(present.Append(nil, e.UID))
		if name == "" || name == was {
			continue
		}
		if _, held := holder[name]; held {
			continue
		}
		if uid, held := present.computed(name); held && uid != e.UID {
			continue
		}
		e.UIDL = name
		changed++
	}
	if changed > 0 {
		r.rename(entries)
	}
	return changed
}
