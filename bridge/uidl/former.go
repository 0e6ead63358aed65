package uidl

import (
	"errors"
	"slices"
)

// formerVersion is the first octet of a record in the form before blocks: one value with
// the whole record. This form is only read; Encode writes the present form.
const formerVersion = 1

// former reads a record of version 1.
func (d *decoder) former() *Record {
	g := &Generation{UIDValidity: d.number(), loaded: true}
	r := &Record{Generations: []*Generation{g}, former: true}
	for range d.count() {
		r.Past = append(r.Past, d.number())
	}
	r.SuffixesGiven = uint32(len(r.Past))
	r.Past = slices.Compact(slices.Sorted(slices.Values(r.Past)))
	r.Past = r.Past[max(0, len(r.Past)-maxPast):]
	g.Eras = d.eras(d.count())
	n := d.count()
	g.Entries = make([]Entry, 0, n)
	last := Entry{}
	for range n {
		last.UID += d.number()
		same := d.octet()
		rest := d.string()
		if same > len(last.UIDL) {
			d.err = errors.New("a unique-id has no beginning")
		}
		if d.err != nil {
			return r
		}
		last.UIDL = last.UIDL[:same] + rest
		if last.UIDL == "" {
			d.err = errors.New("a unique-id is empty")
			return r
		}
		g.Entries = append(g.Entries, last)
	}
	return r
}
