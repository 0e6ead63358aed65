package uidl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

const (
	// maxGenerations bounds the generations of a record: the current one and three
	// before it. A store that is not mounted, or a wrong route, and the repair need
	// two.
	maxGenerations = 4
	// maxPast bounds Record.Past. Beyond maxPast each new generation has a suffix.
	maxPast = 100

	// KeepNames is the number of days for which the name of a vanished message is
	// kept, so that the same UID gets the same name back. Servers hide messages
	// and show them again. An error in a filter, a label or a quarantine is
	// usually found within a quarter of a year.
	KeepNames = 90
	// KeepFingerprints is the number of days for which the fingerprints of a vanished
	// message without a name are kept; its UIDL is computed again. So a change of
	// UIDVALIDITY finds the message for a week: the time that a repair of a store takes.
	KeepFingerprints = 7
)

// ErrDamaged is in the tree of an error about a record that cannot be read.
var ErrDamaged = errors.New("record of unique-ids is damaged")

// A Record has the unique-ids that the messages of a mailbox were shown with, and the
// formats for new messages. A Record is authoritative: unique-ids are computed only by
// the eras in it.
type Record struct {
	// Version counts the writes of the record. It is not part of the JSON form.
	Version uint64
	// Generations has 1 to 4 generations: the current one first, then the earlier
	// ones, the newest first.
	Generations []*Generation
	// Past has the UIDVALIDITYs of earlier generations, the last 100 at most: a server
	// may return to a UIDVALIDITY.
	Past []uint32
	// SuffixesGiven counts the suffixes that were given.
	SuffixesGiven uint32

	removed []string // names of blocks that the next write removes
	serial  uint32   // the highest serial that was given
	former  bool     // the record was read in the form of version 1
}

// A Generation is the time in which each UID belongs to the same message: UIDVALIDITY is
// the same, and UIDNEXT has not become lower.
type Generation struct {
	UIDValidity uint32
	UIDNext     uint32  // the highest UIDNEXT that was seen; 0: none
	Since, Seen Day     // days of the first and the last session that wrote the record; 0: not known
	Eras        []Era   // at least one; From ascends
	Entries     []Entry // UID ascends; none unless Loaded

	serial uint32
	counts Counts            // the counts, while the generation is not loaded
	blocks int               // number of blocks in the store
	sum    uint32            // sum of the checksums of the blocks
	stored map[uint32]uint32 // checksums of the blocks by number, when loaded
	loaded bool
}

// An Era has the format of the messages with a UID from From on, up to the next Era.
type Era struct {
	From   uint32 `json:"from"`
	Format Format `json:"format"`
	Suffix string `json:"suffix,omitempty"` // of each unique-id, where the format alone may repeat a unique-id
}

// An Entry has the name and the fingerprints of one message.
type Entry struct {
	UID      uint32
	UIDL     string // "": the eras compute it
	Short    uint64 // as in Fingerprint; 0: not known
	Header   uint64 // as in Fingerprint; 0: not known
	Vanished Day    // 0: the message is there
}

// Counts are the numbers of entries of a generation.
type Counts struct {
	Entries       int // all entries
	Named         int // entries with a name of their own
	Vanished      int // entries of vanished messages
	VanishedNamed int // entries of vanished messages with a name of their own
}

// A Day counts days since 1 January 1970, UTC. 0: not known.
type Day uint32

// maxDay is in the year 2149.
const maxDay = 1<<16 - 1

// DayOf returns the day of a time.
func DayOf(t time.Time) Day { return Day(min(max(t.Unix(), 0)/(24*60*60), maxDay)) }

// String returns the day as 2006-01-02, or "" if it is not known.
func (d Day) String() string {
	if d == 0 {
		return ""
	}
	return time.Unix(int64(d)*24*60*60, 0).UTC().Format(time.DateOnly)
}

// MarshalText implements encoding.TextMarshaler.
func (d Day) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Day) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = 0
		return nil
	}
	t, err := time.Parse(time.DateOnly, string(text))
	if err != nil || t.Unix() < 0 {
		return fmt.Errorf("%q is not a day such as 2026-01-31", text)
	}
	*d = DayOf(t)
	return nil
}

// New returns the record of a mailbox that was never shown.
func New(uidValidity uint32, f Format) *Record {
	return &Record{Generations: []*Generation{newGeneration(uidValidity, f)}}
}

func newGeneration(uidValidity uint32, f Format) *Generation {
	return &Generation{UIDValidity: uidValidity, Eras: []Era{{From: 1, Format: f}}, loaded: true}
}

// Current returns the generation that clients see.
func (r *Record) Current() *Generation { return r.Generations[0] }

// Former reports whether the record was read in the form of version 1, which has no
// fingerprints and only the current generation.
func (r *Record) Former() bool { return r.former }

// Number returns the number of a generation, which is unique in its record, removed
// generations included. It is 0 if the generation was never stored, or only in the form
// of version 1.
func (g *Generation) Number() uint32 { return g.serial }

// Loaded reports whether the generation has its entries. It is false if only the head of
// the record was read.
func (g *Generation) Loaded() bool { return g.loaded }

// Counts returns the numbers of entries. The generation need not be loaded.
func (g *Generation) Counts() Counts {
	if !g.loaded {
		return g.counts
	}
	var c Counts
	for i := range g.Entries {
		e := &g.Entries[i]
		c.Entries++
		if e.UIDL != "" {
			c.Named++
		}
		if e.Vanished != 0 {
			c.Vanished++
			if e.UIDL != "" {
				c.VanishedNamed++
			}
		}
	}
	return c
}

// Find returns the entry of a UID, or nil.
func (g *Generation) Find(uid uint32) *Entry {
	i, ok := slices.BinarySearchFunc(g.Entries, uid, compareUID)
	if !ok {
		return nil
	}
	return &g.Entries[i]
}

func compareUID(e Entry, uid uint32) int { return cmp.Compare(e.UID, uid) }

// Append appends the unique-id of the message with a UID to dst. The generation must be
// loaded.
func (g *Generation) Append(dst []byte, uid uint32) []byte {
	if e := g.Find(uid); e != nil && e.UIDL != "" {
		return append(dst, e.UIDL...)
	}
	return g.compute(dst, uid)
}

// compute appends the unique-id that the eras compute for a UID.
func (g *Generation) compute(dst []byte, uid uint32) []byte {
	return compute(dst, g.Eras, g.UIDValidity, uid)
}

func compute(dst []byte, eras []Era, uidValidity, uid uint32) []byte {
	i := len(eras) - 1
	for i > 0 && eras[i].From > uid {
		i--
	}
	return append(eras[i].Format.Append(dst, uid, uidValidity), eras[i].Suffix...)
}

// computed returns the UID, below UIDNEXT, for which the eras compute a name. ok is false
// if there is none.
func (g *Generation) computed(name string) (uid uint32, ok bool) {
	for i, e := range g.Eras {
		own, ok := cutSuffix(name, e.Suffix)
		if !ok {
			continue
		}
		uid, ok := e.Format.uidOf(own, g.UIDValidity)
		if ok && uid >= e.From && (i+1 == len(g.Eras) || uid < g.Eras[i+1].From) && (g.UIDNext == 0 || uid < g.UIDNext) {
			return uid, true
		}
	}
	return 0, false
}

func cutSuffix(s, suffix string) (string, bool) {
	n := len(s) - len(suffix)
	if n < 0 || s[n:] != suffix {
		return s, false
	}
	return s[:n], true
}

// Put adds entries, whose UIDs ascend. An entry for a known UID completes the old entry:
// the old name stays, and new fingerprints replace old ones.
func (g *Generation) Put(entries []Entry) {
	merged := make([]Entry, 0, len(g.Entries)+len(entries))
	old := g.Entries
	for _, e := range entries {
		for len(old) > 0 && old[0].UID < e.UID {
			merged, old = append(merged, old[0]), old[1:]
		}
		if len(old) > 0 && old[0].UID == e.UID {
			e.UIDL = cmp.Or(old[0].UIDL, e.UIDL)
			e.Short, e.Header = cmp.Or(e.Short, old[0].Short), cmp.Or(e.Header, old[0].Header)
			e.Vanished = old[0].Vanished
			old = old[1:]
		}
		merged = append(merged, e)
	}
	g.Entries = append(merged, old...)
}

// Mark records which messages vanished. there returns 1 if a message exists, -1 if it
// certainly does not, and 0 if this is not known. removed reports whether a message was
// removed on purpose, so that it cannot come back: its entry goes at once if it has no
// name. Mark removes other entries after KeepNames or KeepFingerprints days.
func (g *Generation) Mark(today Day, there func(uid uint32) int, removed func(uid uint32) bool) {
	kept := g.Entries[:0]
	for _, e := range g.Entries {
		switch there(e.UID) {
		case 1:
			e.Vanished = 0
		case -1:
			if e.Vanished == 0 {
				e.Vanished = max(today, 1)
			}
			keep := Day(KeepFingerprints)
			if e.UIDL != "" {
				keep = KeepNames
			} else if removed(e.UID) {
				continue
			}
			if today > e.Vanished+keep {
				continue
			}
		}
		kept = append(kept, e)
	}
	clear(g.Entries[len(kept):])
	g.Entries = kept
}

// HasFingerprints reports whether an entry has a fingerprint by which a message could be
// found again. All generations must be loaded.
func (r *Record) HasFingerprints() bool {
	return slices.ContainsFunc(r.Generations, func(g *Generation) bool {
		return slices.ContainsFunc(g.Entries, func(e Entry) bool { return e.Short != 0 || e.Header != 0 })
	})
}

// Use makes f the format of the messages from UID next on, and reports whether f is
// another format than before. Earlier messages keep their unique-ids.
func (r *Record) Use(f Format, next uint32) bool {
	g := r.Current()
	last := &g.Eras[len(g.Eras)-1]
	if last.Format.String() == f.String() {
		return false
	}
	e := Era{From: max(next, g.UIDNext, 1), Format: f}
	if (len(r.Past) > 0 || len(r.Generations) > 1) && !f.distinct() {
		e.Suffix = r.suffix()
	}
	if last.From >= e.From {
		e.From = last.From
		*last = e
	} else {
		g.Eras = append(g.Eras, e)
	}
	return true
}

// suffix returns a new suffix, which tells computed unique-ids from earlier ones.
func (r *Record) suffix() string {
	r.SuffixesGiven++
	return "-" + strconv.FormatUint(uint64(r.SuffixesGiven)+1, 10)
}

// Renumber begins a generation after the UIDs have changed: UIDVALIDITY is another one,
// or UIDNEXT has become lower. entries are the known entries of the new generation; UIDs
// ascend. Recognized messages have their unique-id in entries. The other messages get new
// unique-ids, which no message had before.
func (r *Record) Renumber(uidValidity uint32, f Format, entries []Entry, today Day) {
	r.addPast(r.Current().UIDValidity)
	fresh := newGeneration(uidValidity, f)
	fresh.Since, fresh.Seen, fresh.Entries = today, today, entries
	if suffix := r.suffix(); !f.distinct() || slices.Contains(r.Past, uidValidity) || int(r.SuffixesGiven) > len(r.Past) && len(r.Past) == maxPast {
		fresh.Eras[0].Suffix = suffix
	}
	r.makeCurrent(fresh)
}

// rename begins a generation with the UIDs of the current one and the names in entries.
func (r *Record) rename(entries []Entry) {
	old := r.Current()
	fresh := *old
	fresh.Eras = slices.Clone(old.Eras)
	fresh.Entries, fresh.serial, fresh.stored, fresh.blocks, fresh.sum, fresh.loaded = entries, 0, nil, 0, 0, true
	r.makeCurrent(&fresh)
}

// Returns returns the earlier generation with a UIDVALIDITY that is not the current one,
// or nil. It also returns nil if UIDNEXT is lower than in that generation: the UIDs may
// belong to other messages then. A uidNext of 0 is not known, and not compared.
func (r *Record) Returns(uidValidity, uidNext uint32) *Generation {
	if uidValidity == r.Current().UIDValidity {
		return nil
	}
	for _, g := range r.Generations[1:] {
		if g.UIDValidity == uidValidity {
			if uidNext == 0 || uidNext >= g.UIDNext {
				return g
			}
			return nil
		}
	}
	return nil
}

// Return makes g, an earlier generation, the current one.
func (r *Record) Return(g *Generation, today Day) {
	r.addPast(r.Current().UIDValidity)
	r.Generations = slices.DeleteFunc(r.Generations, func(other *Generation) bool { return other == g })
	g.Seen = today
	r.makeCurrent(g)
}

func (r *Record) addPast(uidValidity uint32) {
	if !slices.Contains(r.Past, uidValidity) {
		r.Past = append(r.Past, uidValidity)
	}
	r.Past = r.Past[max(0, len(r.Past)-maxPast):]
}

// makeCurrent puts g before the other generations. If there are too many, it removes the
// oldest generation without entries (a store that is not mounted may have another
// UIDVALIDITY at each poll), or else the oldest one.
func (r *Record) makeCurrent(g *Generation) {
	r.Generations = slices.Insert(r.Generations, 0, g)
	for len(r.Generations) > maxGenerations {
		last := len(r.Generations) - 1
		for i, g := range slices.Backward(r.Generations) {
			if i > 0 && g.Counts().Entries == 0 {
				last = i
				break
			}
		}
		r.drop(last)
	}
}

// drop removes a generation.
func (r *Record) drop(i int) {
	for number := range r.Generations[i].stored {
		r.removed = append(r.removed, blockName(r.Generations[i].serial, number))
	}
	r.Generations = slices.Delete(r.Generations, i, i+1)
}

// foreignUIDValidity is that of the generation with the UIDLs of another server.
const foreignUIDValidity = 1<<32 - 1

// AddForeign adds UIDLs that clients know of messages of another server, which are not in
// the current generation, as the oldest generation: no other message gets one of them, and
// a message that comes later is recognized by its header. UIDs of the entries ascend; they
// only tell the entries apart.
func (r *Record) AddForeign(entries []Entry) {
	if len(entries) == 0 {
		return
	}
	g := newGeneration(foreignUIDValidity, r.Current().Eras[0].Format)
	if r.Current().UIDValidity == g.UIDValidity {
		g.UIDValidity--
	}
	g.UIDNext = 1 // the format computes nothing
	g.Since, g.Entries = r.Current().Since, entries
	r.Generations = append(r.Generations, g)
}

// foreign returns the generation of AddForeign, or nil.
func (r *Record) foreign() *Generation {
	last := r.Generations[len(r.Generations)-1]
	if last == r.Current() || last.UIDValidity < foreignUIDValidity-1 || last.UIDNext != 1 {
		return nil
	}
	return last
}

// AwaitsCopies reports whether a new message may be one that another server has shown, and
// that is copied late: within KeepNames days. The generations need not be loaded.
func (r *Record) AwaitsCopies(today Day) bool {
	g := r.foreign()
	return g != nil && g.Counts().Entries > 0 && today <= g.Since+KeepNames
}

// Plain reports whether one format computes all unique-ids, now and before, so that no
// two unique-ids can be the same. The generations need not be loaded.
func (r *Record) Plain() bool {
	p := r.Current()
	for _, g := range r.Generations {
		if len(g.Eras) > 1 || g.Counts().Named > 0 || g.Eras[0].Suffix != "" || g.Eras[0].Format.String() != p.Eras[0].Format.String() {
			return false
		}
		if g != p && (g.UIDValidity == p.UIDValidity || !p.Eras[0].Format.distinct()) {
			return false
		}
	}
	return true
}

// Separate gives another unique-id to each message whose computed one is, or was, the
// unique-id of another message. It reports whether there was such a message. uids are the
// UIDs of the messages that were not yet shown in the current generation, or of all
// messages; they ascend. Messages that share a stored name keep it: an old server showed
// the name for exact copies, RFC 1939 section 7. All generations must be loaded.
func (r *Record) Separate(uids []uint32) bool {
	if r.Plain() || len(uids) == 0 {
		return false
	}
	taken := make(map[string]bool)
	for _, g := range r.Generations {
		for i := range g.Entries {
			if name := g.Entries[i].UIDL; name != "" {
				taken[name] = true
			}
		}
	}
	p := r.Current()
	free := func(name string, uid uint32) bool {
		if taken[name] {
			return false
		}
		for _, g := range r.Generations {
			// The same UID with the same UIDVALIDITY is the same message, unless
			// UIDNEXT became lower; then the era has a suffix.
			if other, ok := g.computed(name); ok && (other != uid || g.UIDValidity != p.UIDValidity) {
				return false
			}
		}
		return true
	}
	var added []Entry
	for _, uid := range uids {
		if e := p.Find(uid); e != nil && e.UIDL != "" {
			continue
		}
		name := string(p.compute(nil, uid))
		if !free(name, uid) {
			name = other(name, func(name string) bool { return free(name, uid) })
			added = append(added, Entry{UID: uid, UIDL: name})
		}
		taken[name] = true
	}
	p.Put(added)
	return len(added) > 0
}

// other returns id with the first suffix for which free returns true.
func other(id string, free func(string) bool) string {
	for n := 2; ; n++ {
		suffix := "-" + strconv.Itoa(n)
		if s := id[:min(len(id), MaxLength-len(suffix))] + suffix; free(s) {
			return s
		}
	}
}

// Check returns an error if a record from outside is not valid. Several messages may have
// one name, unless the hashes of their headers differ.
func (r *Record) Check() error {
	if len(r.Generations) == 0 || len(r.Generations) > maxGenerations {
		return fmt.Errorf("there are %d generations, want 1 to %d", len(r.Generations), maxGenerations)
	}
	if len(r.Past) > maxPast {
		return fmt.Errorf("there are %d UIDVALIDITYs of before, want at most %d", len(r.Past), maxPast)
	}
	for _, g := range r.Generations {
		if err := g.check(); err != nil {
			return err
		}
	}
	return nil
}

func (g *Generation) check() error {
	if err := g.checkEras(); err != nil {
		return err
	}
	headers := make(map[string]uint64)
	last := uint32(0)
	for i := range g.Entries {
		e := &g.Entries[i]
		if e.UID <= last {
			return fmt.Errorf("UID %d is not greater than the one before", e.UID)
		}
		last = e.UID
		if e.UIDL == "" {
			continue
		}
		if !Valid(e.UIDL) {
			return fmt.Errorf("unique-id %q is not of 1 to %d octets from 0x21 to 0x7E", e.UIDL, MaxLength)
		}
		if h := headers[e.UIDL]; h != 0 && e.Header != 0 && h != e.Header {
			return fmt.Errorf("unique-id %q is that of two messages with different headers", e.UIDL)
		}
		headers[e.UIDL] = cmp.Or(e.Header, headers[e.UIDL])
	}
	return nil
}

func (g *Generation) checkEras() error {
	if g.UIDValidity == 0 {
		return errors.New("UIDVALIDITY is 0")
	}
	if len(g.Eras) == 0 || g.Eras[0].From > 1 {
		return errors.New("there is no format for the first message")
	}
	for i, e := range g.Eras {
		if i > 0 && e.From <= g.Eras[i-1].From {
			return errors.New("eras do not ascend")
		}
		if e.Suffix != "" && (!Valid(e.Suffix) || len(e.Suffix) > MaxLength-maxComputed) {
			return fmt.Errorf("suffix %q is not valid", e.Suffix)
		}
	}
	if g.Since > maxDay || g.Seen > maxDay {
		return errors.New("a day is too late")
	}
	return nil
}
