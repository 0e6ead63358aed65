package uidl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
)

// recordVersion is the first octet of an encoded record.
const recordVersion = 1

// maxNamed bounds a record that is read.
const maxNamed = 4 << 20

// ErrDamaged is in the tree of an error about a record that cannot be read.
var ErrDamaged = errors.New("record of unique-ids is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Record says which unique-ids the messages of a mailbox have been shown
// with, and which ones new messages get. It is authoritative: where there is
// one, nothing is computed but what it says.
type Record struct {
	UIDValidity uint32  `json:"uidvalidity"`
	Eras        []Era   `json:"eras"`            // at least one; From ascends
	Named       []Named `json:"named,omitempty"` // what no Era computes; UID ascends

	// Past are the UIDVALIDITYs of before, for a server may come back to one.
	Past []uint32 `json:"past,omitempty"`
}

// An Era is the format of the messages with a UID from From on.
type Era struct {
	From   uint32 `json:"from"`
	Format Format `json:"format"`
	Suffix string `json:"suffix,omitempty"` // of each, because the format alone has been used up
}

// A Named is a message with a unique-id of its own.
type Named struct {
	UID  uint32 `json:"uid"`
	UIDL string `json:"uidl"`
}

// New returns the record of a mailbox of which nothing was shown yet.
func New(uidValidity uint32, f Format) *Record {
	return &Record{UIDValidity: uidValidity, Eras: []Era{{From: 1, Format: f}}}
}

// Append appends the unique-id of the message with a UID.
func (r *Record) Append(dst []byte, uid uint32) []byte {
	if len(r.Named) > 0 {
		if i, ok := slices.BinarySearchFunc(r.Named, uid, compareUID); ok {
			return append(dst, r.Named[i].UIDL...)
		}
	}
	era := len(r.Eras) - 1
	for era > 0 && r.Eras[era].From > uid {
		era--
	}
	e := &r.Eras[era]
	return append(e.Format.Append(dst, uid, r.UIDValidity), e.Suffix...)
}

func compareUID(n Named, uid uint32) int { return int(int64(n.UID) - int64(uid)) }

// Use makes f the format of the messages from UID next on, and reports whether
// that is a change. All before keep what they have.
func (r *Record) Use(f Format, next uint32) bool {
	last := &r.Eras[len(r.Eras)-1]
	if last.Format.String() == f.String() {
		return false
	}
	e := Era{From: max(next, 1), Format: f}
	if len(r.Past) > 0 && !f.distinct() {
		e.Suffix = r.suffix()
	}
	if last.From >= e.From {
		e.From = last.From
		*last = e
	} else {
		r.Eras = append(r.Eras, e)
	}
	return true
}

// suffix tells what is computed now from what was before.
func (r *Record) suffix() string { return "-" + strconv.Itoa(len(r.Past)+1) }

// Renumber returns the record of the mailbox after its UIDs have come to mean
// other messages: UIDVALIDITY has changed, or UIDNEXT has gone back. kept are
// the messages that are known to have been there before, by new UID and with
// their unique-ids. The others get new ones, which nobody had.
func (r *Record) Renumber(uidValidity uint32, f Format, kept []Named) *Record {
	fresh := New(uidValidity, f)
	fresh.Past = append(slices.Clone(r.Past), r.UIDValidity)
	if !f.distinct() || slices.Contains(fresh.Past, uidValidity) {
		fresh.Eras[0].Suffix = fresh.suffix()
	}
	slices.SortFunc(kept, func(a, b Named) int { return compareUID(a, b.UID) })
	for _, n := range kept {
		if n.UIDL != string(fresh.Append(nil, n.UID)) {
			fresh.Named = append(fresh.Named, n)
		}
	}
	return fresh
}

// Plain reports whether all is computed by one format, so that no two
// unique-ids can be the same.
func (r *Record) Plain() bool { return len(r.Eras) == 1 && len(r.Named) == 0 }

// Separate gives other unique-ids to messages whose computed one belongs to
// another message, forgets those that have been removed, and reports whether
// anything has become different. UIDs ascend.
func (r *Record) Separate(uids []uint32) bool {
	if r.Plain() {
		return false
	}
	kept := make([]Named, 0, len(r.Named))
	taken := make(map[string]bool, len(uids))
	for _, n := range r.Named {
		if _, ok := slices.BinarySearch(uids, n.UID); ok {
			kept = append(kept, n)
			taken[n.UIDL] = true
		}
	}
	changed := len(kept) != len(r.Named)
	r.Named = kept
	var added []Named
	var b []byte
	for _, uid := range uids {
		if _, ok := slices.BinarySearchFunc(kept, uid, compareUID); ok {
			continue
		}
		b = r.Append(b[:0], uid)
		if taken[string(b)] {
			n := Named{UID: uid, UIDL: other(string(b), taken)}
			added = append(added, n)
			b = append(b[:0], n.UIDL...)
		}
		taken[string(b)] = true
	}
	if len(added) > 0 {
		r.Named = append(r.Named, added...)
		slices.SortFunc(r.Named, func(a, b Named) int { return compareUID(a, b.UID) })
	}
	return changed || len(added) > 0
}

// other returns id with a suffix that makes it another one.
func other(id string, taken map[string]bool) string {
	for n := 2; ; n++ {
		suffix := "-" + strconv.Itoa(n)
		if s := id[:min(len(id), MaxLength-len(suffix))] + suffix; !taken[s] {
			return s
		}
	}
}

// Check returns what is wrong with a record that comes from outside.
func (r *Record) Check() error {
	if r.UIDValidity == 0 {
		return errors.New("UIDVALIDITY is 0")
	}
	if len(r.Eras) == 0 || r.Eras[0].From > 1 {
		return errors.New("there is no format for the first message")
	}
	for i, e := range r.Eras {
		if i > 0 && e.From <= r.Eras[i-1].From {
			return errors.New("eras do not ascend")
		}
		if e.Suffix != "" && (!Valid(e.Suffix) || len(e.Suffix) > MaxLength-maxComputed) {
			return fmt.Errorf("suffix %q is not valid", e.Suffix)
		}
	}
	seen := make(map[string]bool, len(r.Named))
	for i, n := range r.Named {
		switch {
		case n.UID == 0 || i > 0 && n.UID <= r.Named[i-1].UID:
			return fmt.Errorf("UID %d is not greater than the one before", n.UID)
		case !Valid(n.UIDL):
			return fmt.Errorf("unique-id %q is not of 1 to %d octets from 0x21 to 0x7E", n.UIDL, MaxLength)
		case seen[n.UIDL]:
			return fmt.Errorf("unique-id %q is there twice", n.UIDL)
		}
		seen[n.UIDL] = true
	}
	return nil
}

// Encode returns the record as Decode reads it, with a checksum.
func (r *Record) Encode() []byte {
	b := []byte{recordVersion}
	b = binary.AppendUvarint(b, uint64(r.UIDValidity))
	b = binary.AppendUvarint(b, uint64(len(r.Past)))
	for _, v := range r.Past {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Eras)))
	for _, e := range r.Eras {
		b = binary.AppendUvarint(b, uint64(e.From))
		b = appendString(appendString(b, e.Format.String()), e.Suffix)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Named)))
	last := Named{}
	for _, n := range r.Named { // what a unique-id has in common with the one before is left out
		same := 0
		for same < min(len(n.UIDL), len(last.UIDL)) && n.UIDL[same] == last.UIDL[same] {
			same++
		}
		b = binary.AppendUvarint(b, uint64(n.UID-last.UID))
		b = appendString(append(b, byte(same)), n.UIDL[same:])
		last = n
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func appendString(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// Decode is the inverse of Encode. An error has ErrDamaged in its tree.
func Decode(b []byte) (*Record, error) {
	if len(b) < 5 || crc32.Checksum(b[:len(b)-4], castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	if b[0] != recordVersion {
		return nil, fmt.Errorf("%w: version %d, which this Postern does not know", ErrDamaged, b[0])
	}
	d := decoder{b: b[1 : len(b)-4]}
	r := d.record()
	if d.err == nil && len(d.b) > 0 {
		d.err = errors.New("there is more than a record")
	}
	if d.err == nil {
		d.err = r.Check()
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, d.err)
	}
	return r, nil
}

// A decoder reads what Encode writes. After the first error all is zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) record() *Record {
	r := &Record{UIDValidity: d.number()}
	for range d.count() {
		r.Past = append(r.Past, d.number())
	}
	for range d.count() {
		e := Era{From: d.number()}
		pattern := d.string()
		if d.err == nil {
			e.Format, d.err = Parse(pattern)
		}
		e.Suffix = d.string()
		r.Eras = append(r.Eras, e)
	}
	last := Named{}
	if n := d.count(); n > 0 {
		r.Named = make([]Named, 0, n)
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
			r.Named = append(r.Named, last)
		}
	}
	return r
}

func (d *decoder) number() uint32 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 || n > math.MaxUint32 {
		return uint32(d.fail())
	}
	d.b = d.b[size:]
	return uint32(n)
}

func (d *decoder) count() uint32 {
	n := d.number()
	if n > maxNamed || int(n) > len(d.b) {
		return uint32(d.fail())
	}
	return n
}

func (d *decoder) octet() int {
	if len(d.b) == 0 {
		return d.fail()
	}
	n := int(d.b[0])
	d.b = d.b[1:]
	return n
}

func (d *decoder) string() string {
	n := d.octet()
	if n > len(d.b) {
		n = d.fail()
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) fail() int {
	if d.err == nil {
		d.err = errors.New("it is cut short")
	}
	d.b = nil
	return 0
}

// MarshalText implements encoding.TextMarshaler.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Format) UnmarshalText(text []byte) (err error) {
	*f, err = Parse(string(text))
	return err
}
