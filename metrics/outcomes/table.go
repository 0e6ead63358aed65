package outcomes

import (
	"math/rand/v2"
	"slices"
)

// A table has the records of up to a number of keys.
type table struct {
	limit   int // keys
	perKey  int // records of a key: a multiple of step
	memory  int // records that all keys may have room for
	room    int // records that all keys have room for
	index   map[uint64]int32
	entries []entry
	free    []int32
}

// An entry has the records of a key, in no order. The zero entry is free.
type entry struct {
	key     uint64
	records []record // cap is a multiple of step
	last    uint32   // when the last record ended
}

// step is how many records a key gets room for, or loses where memory is short, at once.
// The runtime has no size between a multiple of step and the next one that would fit.
const step = 4

// newTable returns a table. memory must have room for step records of each key.
func newTable(limit, perKey, memory int) *table {
	return &table{limit: limit, perKey: perKey, memory: memory, index: make(map[uint64]int32)}
}

// get returns the records of a key.
func (t *table) get(key uint64) []record {
	if i, ok := t.index[key]; ok {
		return t.entries[i].records
	}
	return nil
}

// add adds a record to those of a key, or to the one that r repeats.
func (t *table) add(key uint64, r record) {
	e := t.entry(key)
	e.last = max(e.last, r.last)
	for i := range slices.Backward(e.records) {
		if old := &e.records[i]; r.repeats(old) {
			old.merge(r)
			return
		}
	}
	if len(e.records) == cap(e.records) && !t.grow(e) {
		e.records[e.oldest()] = r
		return
	}
	e.records = append(e.records, r)
	t.shrink()
}

// entry returns the entry of a key, which it makes if there is none. At the limit it
// removes another one.
func (t *table) entry(key uint64) *entry {
	i, ok := t.index[key]
	if ok {
		return &t.entries[i]
	}
	if len(t.index) >= t.limit {
		t.remove(t.entries[t.candidate(func(a, b *entry) bool { return a.last < b.last })].key)
	}
	if last := len(t.free) - 1; last >= 0 {
		i = t.free[last]
		t.free = t.free[:last]
	} else {
		i = int32(len(t.entries))
		t.entries = append(t.entries, entry{})
	}
	t.index[key] = i
	t.entries[i].key = key
	return &t.entries[i]
}

// grow makes room for more records of e. It reports false if there is none.
func (t *table) grow(e *entry) bool {
	if cap(e.records) >= t.perKey {
		return false
	}
	t.resize(e, cap(e.records)+step)
	return true
}

// resize makes room for room records of e, which must not have more.
func (t *table) resize(e *entry, room int) {
	t.room += room - cap(e.records)
	e.records = append(make([]record, 0, room), e.records...)
}

// shrink takes room from the entries with the most records, until all have no more than
// memory.
func (t *table) shrink() {
	for t.room > t.memory {
		e := &t.entries[t.candidate(func(a, b *entry) bool { return cap(a.records) > cap(b.records) })]
		room := cap(e.records) - step
		if room < step {
			return // by chance; the next record tries again
		}
		for len(e.records) > room {
			last := len(e.records) - 1
			e.records[e.oldest()] = e.records[last]
			e.records = e.records[:last]
		}
		t.resize(e, room)
	}
}

// candidate returns the best entry of a random sample.
func (t *table) candidate(better func(a, b *entry) bool) (found int32) {
	const sample = 8
	found = -1
	for range sample {
		i := rand.N(int32(len(t.entries)))
		if len(t.entries[i].records) == 0 { // it is free
			continue
		}
		if found < 0 || better(&t.entries[i], &t.entries[found]) {
			found = i
		}
	}
	if found < 0 { // nearly all are free
		return int32(slices.IndexFunc(t.entries, func(e entry) bool { return len(e.records) > 0 }))
	}
	return found
}

// remove removes a key.
func (t *table) remove(key uint64) {
	i, ok := t.index[key]
	if !ok {
		return
	}
	delete(t.index, key)
	t.room -= cap(t.entries[i].records)
	t.entries[i] = entry{}
	t.free = append(t.free, i)
}

// oldest returns the index of the record that makes room for another one. Records of
// strangers have half of the room, as soon as the account has others: whoever guesses
// from many networks does not push the owner's records out.
func (e *entry) oldest() (found int) {
	strangers := 0
	for i := range e.records {
		if e.records[i].flags&own == 0 {
			strangers++
		}
	}
	flag := uint8(own)
	if strangers > 0 && strangers >= cap(e.records)/2 {
		flag = 0
	}
	found = -1
	for i := range e.records {
		if r := &e.records[i]; r.flags&own == flag && (found < 0 || r.last < e.records[found].last) {
			found = i
		}
	}
	return max(found, 0)
}
