package uidl

import (
	"fmt"
	"slices"
)

// UIDLs are the unique-ids of the messages of one generation, without their fingerprints:
// the form for a session. UIDLs must be used by one goroutine at a time.
type UIDLs struct {
	uidValidity uint32
	eras        []Era
	uids        []uint32 // of the messages with a name of their own, ascending
	ends        []uint32 // ends of their names in text
	text        []byte
	next        int // index after that of the last name returned
}

// Computed returns the names of a generation in which no message has a name of its own.
// The generation need not be loaded.
func (g *Generation) Computed() *UIDLs { return &UIDLs{uidValidity: g.UIDValidity, eras: g.Eras} }

// UIDLs returns the names of a loaded generation.
func (g *Generation) UIDLs() *UIDLs {
	n := g.Computed()
	n.grow(g.Counts().Named)
	for i := range g.Entries {
		if e := &g.Entries[i]; e.UIDL != "" {
			n.uids = append(n.uids, e.UID)
			n.text = append(n.text, e.UIDL...)
			n.ends = append(n.ends, uint32(len(n.text)))
		}
	}
	return n
}

// DecodeUIDLs decodes the names of a generation, of which only the head was read, from
// the blocks of its record. An error has ErrDamaged in its tree.
func (g *Generation) DecodeUIDLs(blocks []Block) (*UIDLs, error) {
	n := g.Computed()
	n.grow(min(g.counts.Named, perBlock*len(blocks)))
	err := g.each(blocks, func(e Entry, name []byte) {
		if name != nil {
			n.uids = append(n.uids, e.UID)
			n.text = append(n.text, name...)
			n.ends = append(n.ends, uint32(len(n.text)))
		}
	})
	if err == nil && len(n.uids) != g.counts.Named {
		err = fmt.Errorf("there are %d names of %d", len(n.uids), g.counts.Named)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, nil
}

func (n *UIDLs) grow(names int) {
	n.uids, n.ends, n.text = make([]uint32, 0, names), make([]uint32, 0, names), make([]byte, 0, 16*names)
}

// Append appends the unique-id of the message with a UID to dst.
func (n *UIDLs) Append(dst []byte, uid uint32) []byte {
	i := n.next // most callers append names in the order of UIDs
	if i >= len(n.uids) || n.uids[i] != uid {
		var ok bool
		if i, ok = slices.BinarySearch(n.uids, uid); !ok {
			return compute(dst, n.eras, n.uidValidity, uid)
		}
	}
	n.next = i + 1
	begin := uint32(0)
	if i > 0 {
		begin = n.ends[i-1]
	}
	return append(dst, n.text[begin:n.ends[i]]...)
}
