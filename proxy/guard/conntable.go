package guard

import (
	"context"
	"time"
)

// A connEntry is a connection in a connTable.
type connEntry struct {
	from     origin
	trusted  bool
	loggedIn bool
	isShed   bool          // made to end, and no longer counted
	inSite   bool          // also counted in its IPv6 /48
	accepted time.Duration // when
	cancel   context.CancelCauseFunc

	stranger     bool // not logged in, not trusted, and the network is not known-good for any account
	older, newer *connEntry
}

// A connCount counts the connections of one network.
type connCount struct{ open, loggedIn int32 }

func (c connCount) pending() int32 { return c.open - c.loggedIn }

// A connTable counts connections, and has the strangers' connections in a list by age.
// The Guard's lock protects it.
type connTable struct {
	open, strangers int
	shedding        int // made to end, and not yet left
	counts          map[key]connCount
	oldest, newest  *connEntry // of the strangers
}

// add adds a connection.
func (t *connTable) add(e *connEntry) {
	t.open++
	t.count(e, 1, 0)
	if !e.stranger {
		return
	}
	t.strangers++
	e.older = t.newest
	if e.older != nil {
		e.older.newer = e
	} else {
		t.oldest = e
	}
	t.newest = e
}

// remove removes a connection that ends, or is shed.
func (t *connTable) remove(e *connEntry) {
	t.open--
	loggedIn := int32(0)
	if e.loggedIn {
		loggedIn = -1
	}
	t.count(e, -1, loggedIn)
	t.removeStranger(e)
}

// leave records that a connection has ended.
func (t *connTable) leave(e *connEntry) {
	if e.isShed {
		t.shedding--
	} else {
		t.remove(e)
	}
}

// login records that a connection has logged in. It is not a stranger's any more.
func (t *connTable) login(e *connEntry) {
	if e.isShed || e.loggedIn {
		return
	}
	e.loggedIn = true
	t.count(e, 0, 1)
	t.removeStranger(e)
}

// shedOldest removes the oldest stranger's connection and returns the function that
// ends it. It returns nil if there is none, or if more than maxShedding are still
// ending.
func (t *connTable) shedOldest(maxShedding int) context.CancelCauseFunc {
	e := t.oldest
	if e == nil || e.cancel == nil || t.shedding > maxShedding {
		return nil
	}
	t.remove(e)
	e.isShed = true
	t.shedding++
	return e.cancel
}

// count changes the counts of e's networks.
func (t *connTable) count(e *connEntry, open, loggedIn int32) {
	if e.trusted {
		return
	}
	t.countAt(e.from.network, open, loggedIn)
	if e.inSite {
		t.countAt(e.from.site(), open, loggedIn)
	}
}

func (t *connTable) countAt(network key, open, loggedIn int32) {
	c := t.counts[network]
	c.open += open
	c.loggedIn += loggedIn
	if c.open == 0 {
		delete(t.counts, network)
		return
	}
	t.counts[network] = c
}

// removeStranger removes e from the list of strangers.
func (t *connTable) removeStranger(e *connEntry) {
	if !e.stranger {
		return
	}
	e.stranger = false
	t.strangers--
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		t.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		t.newest = e.older
	}
	e.older, e.newer = nil, nil
}
