package guard

import "time"

const (
	remembered = 24 * time.Hour   // a wrong password costs nothing more
	answered   = 30 * time.Second // the backend is not asked again
)

// A tag is the keyed hash of an account's password.
type tag uint64

// A mark is a wrong password in memory: 40 bits of its tag, and the second in
// which the backend called it wrong, modulo half a year. One that comes from a
// snapshot has only 16 bits of the tag: they tell little of the password.
type mark uint64

const (
	markSeconds = 1<<24 - 1
	markTag     = ^mark(markSeconds)
	markShort   = ^mark(1<<48 - 1)
)

func markOf(t tag, now time.Duration) mark {
	return mark(t)&markTag | mark(now/time.Second)&markSeconds
}

// age returns how long ago m was made, give or take a second.
func (m mark) age(now time.Duration) time.Duration {
	return time.Duration((mark(now/time.Second)-m)&markSeconds) * time.Second
}

// A ring is the wrong passwords of one account that came from one area.
type ring struct {
	key   key
	marks [8]mark
}

func (r *ring) id() key { return r.key }

func (r *ring) worth(now time.Duration) time.Duration {
	if r.key == 0 {
		return 0
	}
	youngest := remembered
	for _, m := range r.marks {
		if m != 0 {
			youngest = min(youngest, m.age(now))
		}
	}
	return remembered - youngest
}

// find returns the mark of t, or 0. exact: it is beyond doubt the same
// password.
func (r *ring) find(t tag, now time.Duration) (m mark, exact bool) {
	wanted := mark(t) & markTag
	for _, one := range r.marks {
		if one == 0 || one.age(now) >= remembered {
			continue
		}
		switch one & markTag {
		case wanted:
			return one, true
		case wanted & markShort:
			m = one
		}
	}
	return m, false
}

// add remembers t, in place of itself or of what is oldest.
func (r *ring) add(t tag, now time.Duration) {
	oldest := 0
	for i, one := range r.marks {
		if one != 0 && (one^mark(t))&markTag == 0 {
			oldest = i
			break
		}
		if one == 0 || r.marks[oldest] != 0 && one.age(now) > r.marks[oldest].age(now) {
			oldest = i
		}
	}
	r.marks[oldest] = markOf(t, now)
}

// remove forgets t: it was right.
func (r *ring) remove(t tag, now time.Duration) {
	for i, one := range r.marks {
		if m, _ := (&ring{marks: [8]mark{one}}).find(t, now); m != 0 {
			r.marks[i] = 0
		}
	}
}

// count returns how many passwords are remembered.
func (r *ring) count(now time.Duration) (n int) {
	for _, m := range r.marks {
		if m != 0 && m.age(now) < remembered {
			n++
		}
	}
	return n
}
