package guard

import "time"

const (
	repeatFor = 24 * time.Hour   // a wrong password is remembered: the same one again costs nothing
	answerFor = 30 * time.Second // the guard refuses a repeated password itself, without the backend
)

// A tag is the keyed hash of a password of one account.
type tag uint64

// A wrongPassword has 40 bits of a password's tag and the second, modulo half a year,
// in which the backend called the password wrong; 0: none. After a restart it has only
// 16 bits of the tag, because a snapshot must reveal little about passwords.
type wrongPassword uint64

const (
	secondsMask  = 1<<24 - 1
	tagMask      = ^wrongPassword(secondsMask)
	shortTagMask = ^wrongPassword(1<<48 - 1)
)

func newWrongPassword(t tag, now time.Duration) wrongPassword {
	return wrongPassword(t)&tagMask | wrongPassword(now/time.Second)&secondsMask
}

// age returns how long ago the password was wrong, to a second.
func (w wrongPassword) age(now time.Duration) time.Duration {
	return time.Duration((wrongPassword(now/time.Second)-w)&secondsMask) * time.Second
}

// A wrongPasswords has the last wrong passwords of one account from one area.
type wrongPasswords struct {
	key       key
	passwords [8]wrongPassword
}

func (p *wrongPasswords) id() key { return p.key }

// priority is how long the youngest password will be remembered.
func (p *wrongPasswords) priority(now time.Duration) time.Duration {
	if p.key == 0 {
		return 0
	}
	youngest := repeatFor
	for _, w := range p.passwords {
		if w != 0 {
			youngest = min(youngest, w.age(now))
		}
	}
	return repeatFor - youngest
}

// find returns the password with tag t, or 0. It reports exact unless only the short
// tag is known.
func (p *wrongPasswords) find(t tag, now time.Duration) (found wrongPassword, exact bool) {
	wanted := wrongPassword(t) & tagMask
	for _, w := range p.passwords {
		if w == 0 || w.age(now) >= repeatFor {
			continue
		}
		switch w & tagMask {
		case wanted:
			return w, true
		case wanted & shortTagMask:
			found = w
		}
	}
	return found, false
}

// add adds the password with tag t. It replaces the same password, or the oldest.
func (p *wrongPasswords) add(t tag, now time.Duration) {
	oldest := 0
	for i, w := range p.passwords {
		if w != 0 && (w^wrongPassword(t))&tagMask == 0 {
			oldest = i
			break
		}
		if w == 0 || p.passwords[oldest] != 0 && w.age(now) > p.passwords[oldest].age(now) {
			oldest = i
		}
	}
	p.passwords[oldest] = newWrongPassword(t, now)
}

// remove removes the password with tag t.
func (p *wrongPasswords) remove(t tag, now time.Duration) {
	for i, w := range p.passwords {
		if found, _ := (&wrongPasswords{passwords: [8]wrongPassword{w}}).find(t, now); found != 0 {
			p.passwords[i] = 0
		}
	}
}

// count returns how many passwords are remembered.
func (p *wrongPasswords) count(now time.Duration) (n int) {
	for _, w := range p.passwords {
		if w != 0 && w.age(now) < repeatFor {
			n++
		}
	}
	return n
}
