package oldserver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
)

const (
	// probeEvery is the distance between the messages of a run whose headers are compared.
	probeEvery = 50
	// learnFrom is the least number of proven pairs from which a size offset is learnt.
	learnFrom = 5
	// MaxContent bounds the octets that Match reads of each side to compare whole
	// messages.
	MaxContent = 256 << 20
)

// A Header is what Match knows of the header of a message.
type Header struct {
	Known    bool   // the header was read
	Hash     uint64 // as of uidl.HeaderHash; 0: of a header without a hash, which proves nothing
	Distinct bool   // has Message-ID or Received: another message hardly has the same header
}

// A Sum is the hash of a whole message, as of uidl.ContentHash; zero: not known.
type Sum [sha256.Size]byte

// A Side has the messages of a maildrop, by their index in the order of the server. It
// reads headers and contents on request.
type Side struct {
	Sizes []int64 // octets; 0: not known
	// Headers and Contents return an element for each index. An error ends Match;
	// of a message that the server refuses, the element is the zero value.
	Headers  func(ctx context.Context, indexes []int) ([]Header, error)
	Contents func(ctx context.Context, indexes []int) ([]Sum, error)
}

// A Proof says by what a message was found again.
type Proof uint8

// ByOrder: the size occurs once on each side, and the message is within a run of
// messages of the same sizes, of which a sample has the same headers. ByHeader: no
// other message has this header. ByContent: the whole messages are the same. ByFile: the
// message is the same file of a maildir.
const (
	ByOrder Proof = iota + 1
	ByHeader
	ByContent
	ByFile
)

// A Pair is a message that was found again.
type Pair struct {
	Old, New int // indexes
	Proof    Proof
	Header   uint64 // hash of the header; 0: was not read
	Sum      Sum    // of ByContent; of ByFile if others have the same UIDL
}

// A Reason says why an old message was not found again.
type Reason string

// Reasons of Match.
const (
	Missing   Reason = "no message here has its header: it was removed, or changed"
	Unread    Reason = "the old server does not give its header (TOP)"
	Ambiguous Reason = "other messages have the same header, and their contents differ, are too large or cannot be read"
)

// A Matching is the result of Match.
type Matching struct {
	Pairs     []Pair         // ascending by New
	Left      map[int]Reason // by index of the old message
	Headers   map[int]Header // of old messages, as far as they were read
	Unread    int            // messages of the new side whose header was requested and not given
	Disagreed bool           // sizes and order proposed a message that the headers disproved

	// Offset is by how many octets a message is larger on the new side, if Constant.
	Offset   int64
	Constant bool
}

// Options are what Match is told beside the messages.
type Options struct {
	Offset     int64        // proposes: as in the Matching of another maildrop of the same servers
	Sample     bool         // sizes and order count when a sample of headers agrees: reading all headers takes too long
	ByContent  map[int]bool // old messages that need the proof ByContent
	MaxContent int64        // octets of each side; 0: MaxContent
}

// Match finds the messages of before among those of after.
//
// A wrong pair makes a client believe that it has a message which it never downloaded.
// So headers prove, and messages with the same header are told apart by their contents.
// Exact copies are matched in order. With Sample, sizes and order propose: a message is
// in a Pair without a look at its header only if no other message has its size. Then one
// case is not told apart: a message that is gone on the new side, and another one of the
// same size, which is gone on the old side, in its very place.
func Match(ctx context.Context, before, after Side, o Options) (Matching, error) {
	m := &matcher{
		old: newSide(before), new: newSide(after), options: o,
		result: Matching{Left: make(map[int]Reason), Offset: o.Offset},
	}
	m.options.MaxContent = cmp.Or(o.MaxContent, MaxContent)
	for _, step := range []func(context.Context) error{m.byOrder, m.byHeader, m.byContent} {
		if err := step(ctx); err != nil {
			return Matching{}, err
		}
	}
	for i, done := range m.old.matched {
		if !done && m.result.Left[i] == "" {
			m.result.Left[i] = Missing
		}
	}
	m.result.Headers = m.old.headers
	for _, h := range m.new.headers {
		if !h.Known {
			m.result.Unread++
		}
	}
	slices.SortFunc(m.result.Pairs, func(a, b Pair) int { return a.New - b.New })
	return m.result, nil
}

// A side is a Side with what was read of it.
type side struct {
	Side
	matched []bool
	headers map[int]Header
}

func newSide(s Side) *side {
	return &side{Side: s, matched: make([]bool, len(s.Sizes)), headers: make(map[int]Header)}
}

// read reads the headers of messages that were not read before.
func (s *side) read(ctx context.Context, indexes []int) error {
	var unread []int
	for _, i := range indexes {
		if _, known := s.headers[i]; !known {
			unread = append(unread, i)
		}
	}
	if len(unread) == 0 {
		return nil
	}
	headers, err := s.Headers(ctx, unread)
	if err != nil {
		return err
	}
	for k, i := range unread {
		s.headers[i] = headers[k]
	}
	return nil
}

// unmatched returns the indexes of the messages that are in no Pair, ascending.
func (s *side) unmatched() (indexes []int) {
	for i, done := range s.matched {
		if !done {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

// once returns the indexes of the messages whose size no other message of the side has,
// by size.
func (s *side) once() map[int64]int {
	indexes := make(map[int64]int)
	for i, size := range s.Sizes {
		if _, again := indexes[size]; again {
			indexes[size] = -1
			continue
		}
		indexes[size] = i
	}
	for size, i := range indexes {
		if i < 0 || size == 0 {
			delete(indexes, size)
		}
	}
	return indexes
}

type matcher struct {
	old, new *side
	options  Options
	result   Matching
}

func (m *matcher) pair(p Pair) {
	m.old.matched[p.Old], m.new.matched[p.New] = true, true
	m.result.Pairs = append(m.result.Pairs, p)
}

// sameSize reports whether the sizes of two messages agree.
func (m *matcher) sameSize(i, j int) bool {
	return m.old.Sizes[i] != 0 && m.old.Sizes[i]+m.result.Offset == m.new.Sizes[j]
}

// A run is a sequence of messages with the same sizes on both sides.
type run struct{ old, new, length int }

// byOrder matches messages by size and order, if the headers of a sample agree.
func (m *matcher) byOrder(ctx context.Context) error {
	if !m.options.Sample {
		return nil
	}
	single, other := m.old.once(), m.new.once()
	runs, covered := m.runs(single, other)
	if covered*2 < min(len(m.old.Sizes), len(m.new.Sizes)) {
		return nil // the sizes say little: all headers are read
	}
	var old, new []int
	for _, r := range runs {
		for _, k := range m.probes(r) {
			old, new = append(old, r.old+k), append(new, r.new+k)
		}
	}
	if err := m.old.read(ctx, old); err != nil {
		return err
	}
	if err := m.new.read(ctx, new); err != nil {
		return err
	}
	proven := runs[:0]
	for _, r := range runs {
		agrees := true
		for _, k := range m.probes(r) {
			a, b := m.old.headers[r.old+k], m.new.headers[r.new+k]
			if a.Known && b.Known && a.Hash != b.Hash {
				m.result.Disagreed = true
				return nil
			}
			agrees = agrees && a.Known && b.Known && a.Distinct
		}
		if agrees {
			proven = append(proven, r)
		}
	}
	m.result.Constant = len(proven) > 0
	for _, r := range proven {
		for k := range r.length {
			i, j := r.old+k, r.new+k
			size := m.old.Sizes[i]
			if _, once := single[size]; !once || m.options.ByContent[i] {
				continue
			}
			if _, once := other[m.new.Sizes[j]]; once {
				m.pair(Pair{Old: i, New: j, Proof: ByOrder, Header: m.old.headers[i].Hash})
			}
		}
	}
	return nil
}

// runs returns the runs around the messages whose size occurs once on each side, and the
// number of messages in them.
func (m *matcher) runs(single, other map[int64]int) (runs []run, covered int) {
	old, new := make([]bool, len(m.old.Sizes)), make([]bool, len(m.new.Sizes))
	free := func(i, j int) bool {
		return i >= 0 && j >= 0 && i < len(old) && j < len(new) && !old[i] && !new[j] && m.sameSize(i, j)
	}
	for i, size := range m.old.Sizes {
		if at, once := single[size]; !once || at != i || old[i] {
			continue
		}
		j, once := other[size+m.result.Offset]
		if !once || new[j] {
			continue
		}
		r := run{i, j, 1}
		for free(r.old-1, r.new-1) {
			r.old, r.new, r.length = r.old-1, r.new-1, r.length+1
		}
		for free(r.old+r.length, r.new+r.length) {
			r.length++
		}
		for k := range r.length {
			old[r.old+k], new[r.new+k] = true, true
		}
		runs, covered = append(runs, r), covered+r.length
	}
	return runs, covered
}

// probes returns the offsets of the messages of a run whose headers are compared: both
// ends, every 50th, and each one beside a message of equal size.
func (m *matcher) probes(r run) (offsets []int) {
	for k := range r.length {
		i := r.old + k
		beside := i > 0 && m.old.Sizes[i-1] == m.old.Sizes[i] || i+1 < len(m.old.Sizes) && m.old.Sizes[i+1] == m.old.Sizes[i]
		if k == 0 || k == r.length-1 || k%probeEvery == 0 || beside {
			offsets = append(offsets, k)
		}
	}
	return offsets
}

// byHeader matches the other messages whose header occurs once on each side.
func (m *matcher) byHeader(ctx context.Context) error {
	old, new := m.old.unmatched(), m.new.unmatched()
	if len(old) == 0 || len(new) == 0 {
		return nil
	}
	if err := m.old.read(ctx, old); err != nil {
		return err
	}
	if err := m.new.read(ctx, new); err != nil {
		return err
	}
	left, right := m.old.byHash(old), m.new.byHash(new)
	var pairs []Pair
	for hash, i := range left {
		j := right[hash]
		if len(i) == 1 && len(j) == 1 && m.old.headers[i[0]].Distinct && !m.options.ByContent[i[0]] {
			pairs = append(pairs, Pair{Old: i[0], New: j[0], Proof: ByHeader, Header: hash})
		}
	}
	m.learn(pairs)
	for _, p := range pairs {
		m.pair(p)
	}
	return nil
}

// byHash returns the indexes of messages by the hash of their header. Messages whose
// header was not read are missing.
func (s *side) byHash(indexes []int) map[uint64][]int {
	found := make(map[uint64][]int)
	for _, i := range indexes {
		if h := s.headers[i]; h.Known {
			found[h.Hash] = append(found[h.Hash], i)
		}
	}
	return found
}

// learn takes the difference in size of nine of ten pairs, at least, for the offset of
// all messages.
func (m *matcher) learn(pairs []Pair) {
	if m.result.Constant || len(pairs) < learnFrom {
		return
	}
	count := make(map[int64]int)
	for _, p := range pairs {
		if size := m.old.Sizes[p.Old]; size != 0 {
			count[m.new.Sizes[p.New]-size]++
		}
	}
	for offset, n := range count {
		if n*10 >= len(pairs)*9 {
			m.result.Offset, m.result.Constant = offset, true
		}
	}
}

// byContent matches messages that have the same header as others, or a header that says
// little, by the hash of the whole message. It takes small messages first.
func (m *matcher) byContent(ctx context.Context) error {
	left, right := m.old.byHash(m.old.unmatched()), m.new.byHash(m.new.unmatched())
	for _, i := range m.old.unmatched() {
		if h, asked := m.old.headers[i]; asked && !h.Known {
			m.result.Left[i] = Unread
		}
	}
	type class struct {
		old, new []int
		octets   int64 // of the larger side
	}
	var classes []class
	for hash, i := range left {
		j := right[hash]
		if len(j) == 0 {
			continue
		}
		for _, i := range i {
			m.result.Left[i] = Ambiguous
		}
		classes = append(classes, class{i, j, max(m.old.octets(i), m.new.octets(j))})
	}
	slices.SortFunc(classes, func(a, b class) int { return cmp.Or(cmp.Compare(a.octets, b.octets), a.old[0]-b.old[0]) })
	var old, new []int
	octets := int64(0)
	for _, c := range classes {
		if octets += c.octets; octets > m.options.MaxContent {
			break
		}
		old, new = append(old, c.old...), append(new, c.new...)
	}
	if len(old) == 0 || m.old.Contents == nil || m.new.Contents == nil {
		return nil
	}
	slices.Sort(old)
	slices.Sort(new)
	a, err := m.old.Contents(ctx, old)
	if err != nil {
		return err
	}
	b, err := m.new.Contents(ctx, new)
	if err != nil {
		return err
	}
	copies := make(map[Sum][]int) // indexes of new messages, in order
	for k, sum := range b {
		copies[sum] = append(copies[sum], new[k])
	}
	delete(copies, Sum{})
	for k, sum := range a {
		if some := copies[sum]; len(some) > 0 {
			m.pair(Pair{Old: old[k], New: some[0], Proof: ByContent, Header: m.old.headers[old[k]].Hash, Sum: sum})
			copies[sum] = some[1:]
			delete(m.result.Left, old[k])
		}
	}
	return nil
}

func (s *side) octets(indexes []int) (n int64) {
	for _, i := range indexes {
		n += s.Sizes[i]
	}
	return n
}
