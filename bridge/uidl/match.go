package uidl

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Fingerprint has the hashes by which a message is found again after its UID has
// changed. 0: not known.
type Fingerprint struct {
	UID    uint32
	Short  uint64 // of size, INTERNALDATE and Message-ID
	Header uint64 // of the whole header
}

// ShortHash returns the short fingerprint of a message.
func ShortHash(size int64, date time.Time, messageID string) uint64 {
	sum := sha256.Sum256([]byte(strconv.FormatInt(size, 10) + "\n" + strconv.FormatInt(date.Unix(), 10) + "\n" + strings.TrimSpace(messageID)))
	return binary.LittleEndian.Uint64(sum[:]) | 1 // never 0
}

// A Match is a message that was found again: its index in the old fingerprints and in the
// new ones.
type Match struct{ Old, New int }

// Matches finds old messages among the new ones; before and after are in the order of
// UIDs. Matches does not guess. A fingerprint must occur once on both sides, or equally
// often on both sides, each time after the same matched message.
func Matches(before, after []Fingerprint) []Match {
	m := matcher{before: before, after: after, found: make(map[int]int), taken: make(map[int]bool)}
	m.by(func(p Fingerprint) uint64 { return p.Short })
	m.by(func(p Fingerprint) uint64 { return p.Header })
	matches := make([]Match, 0, len(m.found))
	for i, j := range m.found {
		matches = append(matches, Match{i, j})
	}
	slices.SortFunc(matches, func(a, b Match) int { return a.New - b.New })
	return matches
}

type matcher struct {
	before, after []Fingerprint
	found         map[int]int  // indexes in after by indexes in before
	taken         map[int]bool // indexes in after
}

// by matches the unmatched messages by one kind of hash.
func (m *matcher) by(hash func(Fingerprint) uint64) {
	left, right := m.unmatched(hash)
	m.matchUnique(left, right)
	m.matchGroups(left, right)
}

// unmatched returns the indexes of the unmatched messages, old and new, by hash.
func (m *matcher) unmatched(hash func(Fingerprint) uint64) (left, right map[uint64][]int) {
	left, right = make(map[uint64][]int), make(map[uint64][]int)
	for i, p := range m.before {
		if _, done := m.found[i]; !done && hash(p) != 0 {
			left[hash(p)] = append(left[hash(p)], i)
		}
	}
	for j, p := range m.after {
		if !m.taken[j] && hash(p) != 0 {
			right[hash(p)] = append(right[hash(p)], j)
		}
	}
	return left, right
}

// matchUnique matches messages whose hash occurs once on both sides.
func (m *matcher) matchUnique(left, right map[uint64][]int) {
	for key, i := range left {
		if j := right[key]; len(i) == 1 && len(j) == 1 {
			m.found[i[0]], m.taken[j[0]] = j[0], true
		}
	}
}

// matchGroups matches messages whose hash occurs equally often on both sides, if each
// stands after the same matched message.
func (m *matcher) matchGroups(left, right map[uint64][]int) {
	behind, ahead := m.anchors()
	for key, i := range left {
		j := right[key]
		if len(i) < 2 || len(i) != len(j) {
			continue
		}
		agree := true
		for k := range i {
			agree = agree && behind[i[k]] == ahead[j[k]]
		}
		for k := range i {
			if agree {
				m.found[i[k]], m.taken[j[k]] = j[k], true
			}
		}
	}
}

// anchors returns, for each message, the last matched message before it: its index in
// after, or -1.
func (m *matcher) anchors() (before, after []int) {
	before, after = make([]int, len(m.before)), make([]int, len(m.after))
	last := -1
	for i := range m.before {
		before[i] = last
		if j, ok := m.found[i]; ok {
			last = j
		}
	}
	last = -1
	for j := range m.after {
		after[j] = last
		if m.taken[j] {
			last = j
		}
	}
	return before, after
}

// maxHeader bounds the octets of a header that has a hash.
const maxHeader = 1 << 20

// volatile has the header fields that servers add, change and remove on their own.
var volatile = []string{
	"content-length", "return-path", "status", "x-imap", "x-imapbase", "x-keywords", "x-message-flag", "x-status", "x-uid",
	"x-uidl", "x-yahoo-newman-property",
}

// distinct has the header fields that are hardly the same in two messages. Programs send
// several messages within the second of one Date.
var distinct = []string{"message-id", "received"}

// A HeaderHash computes the hash of a header from the octets of a message as they come.
// CR and volatile fields do not count, and NUL counts as 0x80, as which IMAP shows it:
// these differ between servers for the same message. The zero value is ready.
type HeaderHash struct {
	hash     hash.Hash
	line     []byte
	octets   int
	skipped  bool // the field of the last line does not count
	distinct bool
	done     bool
}

// Write implements io.Writer. It never fails.
func (h *HeaderHash) Write(p []byte) (int, error) {
	n := len(p)
	for !h.done && len(p) > 0 {
		p = p[h.write(p):]
	}
	return n, nil
}

// write takes octets up to the end of a line, and returns their number.
func (h *HeaderHash) write(p []byte) int {
	line, rest, ended := bytes.Cut(p, []byte("\n"))
	h.line = append(h.line, line...)
	h.octets += len(p) - len(rest)
	if ended {
		h.endLine()
	}
	if h.octets > maxHeader {
		h.done = true
	}
	return len(p) - len(rest)
}

func (h *HeaderHash) endLine() {
	line := normalize(h.line)
	h.line = h.line[:0]
	if len(line) == 0 {
		h.done = true
		return
	}
	if line[0] != ' ' && line[0] != '\t' {
		name, _, field := bytes.Cut(line, []byte(":"))
		known := strings.ToLower(string(bytes.TrimSpace(name)))
		// A name with a space in it is mbox's "From " line.
		h.skipped = !field || strings.ContainsAny(known, " \t") || slices.Contains(volatile, known)
		h.distinct = h.distinct || slices.Contains(distinct, known)
	}
	if h.skipped || len(bytes.TrimSpace(line)) == 0 {
		return
	}
	if h.hash == nil {
		h.hash = sha256.New()
	}
	_, _ = h.hash.Write(append(line, '\n'))
}

// normalize returns a copy of a line without CR, and with 0x80 for NUL.
func normalize(line []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(line, []byte("\r"), nil), []byte{0}, []byte{0x80})
}

// End says that the message has no more octets: it may consist of a header alone.
func (h *HeaderHash) End() {
	if !h.done && len(h.line) > 0 {
		h.endLine()
	}
	h.done = true
}

// Done reports whether the header has ended.
func (h *HeaderHash) Done() bool { return h.done }

// Distinct reports whether Sum is a hash, of a header with a field by which another message
// hardly has the same one: Message-ID or Received.
func (h *HeaderHash) Distinct() bool { return h.distinct && h.Sum() != 0 }

// Sum returns the hash, or 0 if the header has not ended, is too long, or has no fields
// that count.
func (h *HeaderHash) Sum() uint64 {
	if !h.done || h.hash == nil || h.octets > maxHeader {
		return 0
	}
	return binary.LittleEndian.Uint64(h.hash.Sum(nil)) | 1
}

// maxLine is the most octets of a line that a ContentHash holds back.
const maxLine = 64 << 10

// A ContentHash computes the hash of a whole message, so that copies of it on different
// servers have the same one. The header counts as in HeaderHash; of the body, CR, empty
// lines at both ends and the quoting of "From " in mbox do not count. The zero value is
// ready.
type ContentHash struct {
	header HeaderHash
	body   hash.Hash
	line   []byte
	begun  bool // a part of the line is in the hash already
	some   bool // a line that is not empty has come
	empty  int  // empty lines that do not count unless they are between others
}

// Write implements io.Writer. It never fails.
func (c *ContentHash) Write(p []byte) (int, error) {
	n := len(p)
	for !c.header.done && len(p) > 0 {
		p = p[c.header.write(p):]
	}
	if c.body == nil {
		c.body = sha256.New()
	}
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		if c.line = append(c.line, line...); ended || len(c.line) > maxLine {
			c.writeLine(ended)
		}
		p = rest
	}
	return n, nil
}

// writeLine adds the line, or its beginning, to the hash.
func (c *ContentHash) writeLine(ended bool) {
	line := normalize(c.line)
	c.line = c.line[:0]
	if len(line) == 0 && ended && !c.begun {
		c.empty++
		return
	}
	for ; c.empty > 0; c.empty-- {
		if c.some {
			_, _ = c.body.Write([]byte("\n"))
		}
	}
	c.some = true
	if unquoted := bytes.TrimLeft(line, ">"); !c.begun && bytes.HasPrefix(unquoted, []byte("From ")) {
		line = unquoted
	}
	if ended {
		line = append(line, '\n')
	}
	_, _ = c.body.Write(line)
	c.begun = !ended
}

// Sum returns the hash. The message must have ended.
func (c *ContentHash) Sum() (sum [sha256.Size]byte) {
	c.header.End()
	if c.body == nil {
		c.body = sha256.New()
	}
	if len(c.line) > 0 || c.begun {
		c.writeLine(true)
	}
	all := sha256.New()
	if c.header.hash != nil {
		_, _ = all.Write(c.header.hash.Sum(nil))
	}
	_, _ = all.Write(c.body.Sum(nil))
	all.Sum(sum[:0])
	return sum
}
