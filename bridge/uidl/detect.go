package uidl

import "slices"

// A Guess is a format and the number of unique-ids of another server that it computes.
type Guess struct {
	Name    string   // the first of Names, or the pattern of Format
	Names   []string // of Format; none: it is none of the named ones
	Format  Format
	Matched int
}

// Detect compares the unique-ids that another server shows for a mailbox with the
// unique-ids that each named format, each format of more, and the formats that the
// unique-ids themselves suggest compute for it. It returns the best guess first, and
// leaves out formats without a match.
func Detect(shown []string, uids []uint32, uidValidity uint32, more ...Format) []Guess {
	wanted := make(map[string]bool, len(shown))
	for _, id := range shown {
		wanted[id] = true
	}
	var guesses []Guess
	try := func(name string, f Format) {
		if slices.ContainsFunc(guesses, func(g Guess) bool { return g.Format.String() == f.String() }) {
			return
		}
		g := Guess{Name: name, Names: f.names(), Format: f}
		var b []byte
		for _, uid := range uids {
			if b = f.Append(b[:0], uid, uidValidity); wanted[string(b)] {
				g.Matched++
			}
		}
		if g.Matched > 0 {
			guesses = append(guesses, g)
		}
	}
	for _, name := range Names() {
		try(name, must(name))
	}
	for _, f := range more {
		try(f.String(), f)
	}
	best := 0
	for _, g := range guesses {
		best = max(best, g.Matched)
	}
	if best*10 < len(shown)*9 {
		for _, f := range infer(shown, uids, uidValidity) {
			try(f.String(), f)
		}
	}
	slices.SortStableFunc(guesses, func(a, b Guess) int { return b.Matched - a.Matched })
	return guesses
}

// names returns the names of the format.
func (f Format) names() (all []string) {
	for _, name := range Names() {
		if names[name] == f.String() {
			all = append(all, name)
		}
	}
	return all
}
