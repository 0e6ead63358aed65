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

// A record is stored as a head and blocks. The head, which is small, has the
// generations and their eras. A block has the entries of 64 consecutive UIDs of one
// generation: so a change of one message writes a block of at most 6 KB and the
// head, and no index is needed to find the block. The head and each block end with a
// checksum; the checksum of a block depends on its name, too. For each generation
// the head has the number of blocks and the sum of their checksums, so that Decode
// notices a block that is missing, older or of another record.

const (
	// headVersion is the first octet of a head. For version 1 see former.go.
	headVersion = 2
	// perBlock is the number of UIDs of a block.
	perBlock = 64
	// blockNameLength is the length of a block's name: two numbers.
	blockNameLength = 16
	// maxEntries bounds the counts in a head.
	maxEntries = 4 << 20
)

// The bits for the parts of an entry that are stored.
const (
	hasName = 1 << iota
	hasShort
	hasHeader
	hasVanished
	hasAll = 1<<iota - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Block is a part of a record. A nil Value removes the block from the store.
type Block struct {
	Name  string // 16 octets
	Value []byte
}

func blockName(serial, number uint32) string { return fmt.Sprintf("%08x%08x", serial, number) }

func parseBlockName(name string) (serial, number uint32, ok bool) {
	if len(name) != blockNameLength {
		return 0, 0, false
	}
	a, err := strconv.ParseUint(name[:8], 16, 32)
	b, err2 := strconv.ParseUint(name[8:], 16, 32)
	return uint32(a), uint32(b), err == nil && err2 == nil && blockName(uint32(a), uint32(b)) == name
}

// Encode increments Version and returns the record in its stored form: the head, and the
// blocks that differ from the loaded ones. All of them must be written at once, in the
// place of the head that the record was read from.
func (r *Record) Encode() (head []byte, blocks []Block) {
	r.Version++
	r.former = false
	for _, g := range r.Generations {
		r.serial = max(r.serial, g.serial)
	}
	written := make(map[string]bool)
	for _, g := range slices.Backward(r.Generations) {
		if g.serial == 0 {
			r.serial++
			g.serial = r.serial
		}
		if !g.loaded {
			continue
		}
		for _, b := range g.encodeBlocks() {
			blocks = append(blocks, b)
			written[b.Name] = true
		}
	}
	for _, name := range r.removed {
		if !written[name] {
			blocks = append(blocks, Block{Name: name})
		}
	}
	r.removed = nil
	return r.encodeHead(), blocks
}

// Clone returns a copy of a loaded record. The copy counts as never stored.
func (r *Record) Clone() *Record {
	c := &Record{Past: slices.Clone(r.Past), SuffixesGiven: r.SuffixesGiven}
	for _, g := range r.Generations {
		c.Generations = append(c.Generations, &Generation{
			UIDValidity: g.UIDValidity, UIDNext: g.UIDNext, Since: g.Since, Seen: g.Seen,
			Eras: slices.Clone(g.Eras), Entries: slices.Clone(g.Entries), loaded: true,
		})
	}
	return c
}

// Supersede makes the record, which comes from outside, the next version of the stored
// record: value is the stored head, which may be damaged, and blocks are the names of the
// stored blocks.
func (r *Record) Supersede(value []byte, blocks []string) {
	if old, err := DecodeHead(value); err == nil {
		r.Version = old.Version
	}
	r.removed = append(r.removed, blocks...)
	for _, name := range blocks {
		if serial, _, ok := parseBlockName(name); ok && serial < math.MaxUint32-maxGenerations {
			r.serial = max(r.serial, serial)
		}
	}
}

// encodeBlocks returns the blocks that differ from the stored ones, and sets the counts
// and the sum for the head.
func (g *Generation) encodeBlocks() (blocks []Block) {
	g.counts, g.blocks, g.sum = g.Counts(), 0, 0
	stored := make(map[uint32]uint32, len(g.stored))
	for rest := g.Entries; len(rest) > 0; {
		number := rest[0].UID / perBlock
		n := 1
		for n < len(rest) && rest[n].UID/perBlock == number {
			n++
		}
		value := encodeBlock(g.serial, number, rest[:n])
		rest = rest[n:]
		sum := checksum(value)
		if old, ok := g.stored[number]; !ok || old != sum {
			blocks = append(blocks, Block{blockName(g.serial, number), value})
		}
		stored[number] = sum
		g.blocks++
		g.sum += sum
	}
	for number := range g.stored {
		if _, ok := stored[number]; !ok {
			blocks = append(blocks, Block{Name: blockName(g.serial, number)})
		}
	}
	g.stored = stored
	return blocks
}

// checksum returns the checksum at the end of a block.
func checksum(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(value[len(value)-4:])
}

func seal(serial, number uint32, content []byte) uint32 {
	var name [8]byte
	binary.LittleEndian.PutUint32(name[:4], serial)
	binary.LittleEndian.PutUint32(name[4:], number)
	return crc32.Update(crc32.Checksum(name[:], castagnoli), castagnoli, content)
}

func encodeBlock(serial, number uint32, entries []Entry) []byte {
	b := make([]byte, 0, 12*len(entries)+8)
	last := ""
	for i := range entries {
		e := &entries[i]
		parts := byte(0)
		if e.UIDL != "" {
			parts |= hasName
		}
		if e.Short != 0 {
			parts |= hasShort
		}
		if e.Header != 0 {
			parts |= hasHeader
		}
		if e.Vanished != 0 {
			parts |= hasVanished
		}
		b = append(b, byte(e.UID%perBlock), parts)
		if e.UIDL != "" { // the common prefix with the name before is left out
			same := 0
			for same < min(len(e.UIDL), len(last)) && e.UIDL[same] == last[same] {
				same++
			}
			b = append(b, byte(same), byte(len(e.UIDL)-same))
			b = append(b, e.UIDL[same:]...)
			last = e.UIDL
		}
		if e.Short != 0 {
			b = binary.LittleEndian.AppendUint64(b, e.Short)
		}
		if e.Header != 0 {
			b = binary.LittleEndian.AppendUint64(b, e.Header)
		}
		if e.Vanished != 0 {
			b = binary.LittleEndian.AppendUint16(b, uint16(e.Vanished))
		}
	}
	return binary.LittleEndian.AppendUint32(b, seal(serial, number, b))
}

// decodeBlock calls each for every entry of a block. The name is valid until
// each returns; e.UIDL is empty.
func decodeBlock(serial, number uint32, value []byte, each func(e Entry, name []byte)) error {
	if len(value) < 4+2 || seal(serial, number, value[:len(value)-4]) != checksum(value) {
		return errors.New("the checksum of a block is wrong")
	}
	d := decoder{b: value[:len(value)-4]}
	var name []byte
	last := -1
	for len(d.b) > 0 {
		place, parts := d.octet(), d.octet()
		if place <= last || place >= perBlock || parts&^hasAll != 0 || number == 0 && place == 0 || number > math.MaxUint32/perBlock {
			return errors.New("a block has what is no entry")
		}
		last = place
		e := Entry{UID: number*perBlock + uint32(place)}
		if parts&hasName != 0 {
			same, rest := d.octet(), d.take(d.octet())
			if same > len(name) {
				return errors.New("a unique-id has no beginning")
			}
			name = append(name[:same], rest...)
			if !valid(name) {
				return fmt.Errorf("unique-id %q is not valid", name)
			}
		}
		if parts&hasShort != 0 {
			e.Short = d.fixed()
		}
		if parts&hasHeader != 0 {
			e.Header = d.fixed()
		}
		if parts&hasVanished != 0 {
			e.Vanished = Day(d.short())
		}
		if d.err != nil || parts&hasShort != 0 && e.Short == 0 || parts&hasHeader != 0 && e.Header == 0 || parts&hasVanished != 0 && e.Vanished == 0 {
			return errors.New("a block is cut short")
		}
		if parts&hasName != 0 {
			each(e, name)
		} else {
			each(e, nil)
		}
	}
	return nil
}

func (r *Record) encodeHead() []byte {
	b := []byte{headVersion}
	b = binary.AppendUvarint(b, r.Version)
	b = binary.AppendUvarint(b, uint64(r.serial))
	b = binary.AppendUvarint(b, uint64(r.SuffixesGiven))
	b = binary.AppendUvarint(b, uint64(len(r.Past)))
	for _, v := range r.Past {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = append(b, byte(len(r.Generations)))
	for _, g := range r.Generations {
		c := g.Counts()
		for _, n := range []uint32{
			g.serial, g.UIDValidity, g.UIDNext, uint32(g.Since), uint32(g.Seen),
			uint32(g.blocks), uint32(c.Entries), uint32(c.Named), uint32(c.Vanished), uint32(c.VanishedNamed), uint32(len(g.Eras)),
		} {
			b = binary.AppendUvarint(b, uint64(n))
		}
		b = binary.LittleEndian.AppendUint32(b, g.sum)
		for _, e := range g.Eras {
			b = binary.AppendUvarint(b, uint64(e.From))
			b = appendString(appendString(b, e.Format.String()), e.Suffix)
		}
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func appendString(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// DecodeHead decodes the head of a record, or a whole record in the form of version 1.
// An error has ErrDamaged in its tree.
func DecodeHead(b []byte) (*Record, error) {
	if len(b) < 5 || crc32.Checksum(b[:len(b)-4], castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	d := decoder{b: b[1 : len(b)-4]}
	var r *Record
	switch b[0] {
	case formerVersion:
		r = d.former()
	case headVersion:
		r = d.head()
	default:
		return nil, fmt.Errorf("%w: version %d, which this Postern does not know", ErrDamaged, b[0])
	}
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

// Decode decodes a record with all its entries. blocks must be all blocks of the record,
// in the order of their names. An error has ErrDamaged in its tree.
func Decode(head []byte, blocks []Block) (*Record, error) {
	r, err := DecodeHead(head)
	if err != nil {
		return nil, err
	}
	for _, g := range r.Generations {
		if !g.loaded {
			if err := g.load(blocks); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
			}
		}
	}
	known := 0
	for _, g := range r.Generations {
		known += g.blocks
	}
	if len(blocks) != known {
		return nil, fmt.Errorf("%w: there are %d blocks, want %d", ErrDamaged, len(blocks), known)
	}
	return r, nil
}

// each calls each for the entries of g, in their order. blocks may have blocks of other
// generations. each returns an error if a block of g is missing or not as it was written.
func (g *Generation) each(blocks []Block, each func(e Entry, name []byte)) error {
	n, sum := 0, uint32(0)
	last := int64(-1)
	for _, b := range blocks {
		serial, number, ok := parseBlockName(b.Name)
		if !ok {
			return fmt.Errorf("%q is no block", b.Name)
		}
		if serial != g.serial {
			continue
		}
		if int64(number) <= last {
			return errors.New("blocks do not ascend")
		}
		last = int64(number)
		if err := decodeBlock(serial, number, b.Value, each); err != nil {
			return err
		}
		n++
		sum += checksum(b.Value)
	}
	if n != g.blocks || sum != g.sum {
		return fmt.Errorf("%d blocks of %d are as they were written", n, g.blocks)
	}
	return nil
}

func (g *Generation) load(blocks []Block) error {
	want := g.counts
	g.Entries, g.stored = make([]Entry, 0, min(g.counts.Entries, perBlock*len(blocks))), make(map[uint32]uint32, g.blocks)
	var text []byte
	var ends []int
	err := g.each(blocks, func(e Entry, name []byte) {
		g.Entries = append(g.Entries, e)
		text = append(text, name...)
		ends = append(ends, len(text))
	})
	if err != nil {
		return err
	}
	all, begin := string(text), 0 // one string for all names
	for i, end := range ends {
		g.Entries[i].UIDL = all[begin:end]
		begin = end
	}
	for _, b := range blocks {
		if serial, number, _ := parseBlockName(b.Name); serial == g.serial {
			g.stored[number] = checksum(b.Value)
		}
	}
	if g.loaded = true; g.Counts() != want {
		return errors.New("the head has other counts")
	}
	return nil
}

// A decoder decodes numbers and strings. After the first error all values are zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) head() *Record {
	r := &Record{Version: d.large(), serial: d.number(), SuffixesGiven: d.number()}
	for range d.count() {
		r.Past = append(r.Past, d.number())
	}
	for range d.octet() {
		g := &Generation{
			serial: d.number(), UIDValidity: d.number(), UIDNext: d.number(), Since: Day(d.number()), Seen: Day(d.number()),
			blocks: d.atMost(maxEntries),
			counts: Counts{Entries: d.atMost(maxEntries), Named: d.atMost(maxEntries), Vanished: d.atMost(maxEntries), VanishedNamed: d.atMost(maxEntries)},
		}
		eras := d.count()
		if sum := d.take(4); len(sum) == 4 {
			g.sum = binary.LittleEndian.Uint32(sum)
		}
		g.Eras = d.eras(eras)
		if d.err == nil && (g.serial == 0 || g.serial > r.serial || slices.ContainsFunc(r.Generations, func(other *Generation) bool { return other.serial == g.serial })) {
			d.err = errors.New("a generation has no number of its own")
		}
		r.Generations = append(r.Generations, g)
		if d.err != nil {
			break
		}
	}
	return r
}

func (d *decoder) eras(n uint32) (eras []Era) {
	for range n {
		e := Era{From: d.number()}
		pattern := d.string()
		if d.err == nil {
			e.Format, d.err = Parse(pattern)
		}
		e.Suffix = d.string()
		eras = append(eras, e)
	}
	return eras
}

func (d *decoder) large() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		return uint64(d.fail())
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) atMost(most uint64) int {
	n := d.large()
	if n > most {
		return d.fail()
	}
	return int(n)
}

func (d *decoder) number() uint32 { return uint32(d.atMost(math.MaxUint32)) }

// count decodes the number of the items that follow, each of at least one octet.
func (d *decoder) count() uint32 {
	n := d.number()
	if n > maxEntries || int(n) > len(d.b) {
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

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		n = d.fail()
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) string() string { return string(d.take(d.octet())) }

func (d *decoder) fixed() uint64 {
	if b := d.take(8); len(b) == 8 {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) short() uint16 {
	if b := d.take(2); len(b) == 2 {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) fail() int {
	if d.err == nil {
		d.err = errors.New("it is cut short")
	}
	d.b = nil
	return 0
}
