package ledger

import (
	"math/bits"

	"postern/proxy"
)

// The values of Sessions.Habit: what the POP3 clients of an account do with its mail.
const (
	HabitUnknown = "unknown"           // no session has shown a habit: there was no new mail, or no QUIT
	HabitLeaves  = "leaves"            // leaves on the server what it downloads
	HabitLater   = "deletes_later"     // leaves messages on the server, and deletes them in a later session
	HabitMixed   = "mixed"             // some sessions leave what they download, others delete it: two clients, or a changed setting
	HabitDeletes = "deletes_all"       // deletes what it downloads, in the same session
	HabitNothing = "downloads_nothing" // has downloaded nothing although messages were new
)

// Habits returns the values of Sessions.Habit. Those of clients that leave mail on the
// server come first: with other unique-ids they would download the mail again.
func Habits() []string {
	return []string{HabitLeaves, HabitLater, HabitMixed, HabitDeletes, HabitNothing, HabitUnknown}
}

// HabitWords returns a value of Sessions.Habit in words.
func HabitWords(habit string) string {
	switch habit {
	case HabitLeaves:
		return "leaves on server"
	case HabitLater:
		return "deletes after days"
	case HabitMixed:
		return "leaves some"
	case HabitDeletes:
		return "deletes all"
	case HabitNothing:
		return "downloads nothing"
	}
	return "unknown"
}

// What a session says about habits, in evidenceBits bits.
const (
	leaves  = 1 << iota // left messages that it has downloaded
	deletes             // deleted all messages that it has downloaded
	later               // deleted messages that it has not downloaded

	evidenceBits = 4
)

// evidence returns what a session that ended by QUIT says about habits; 0: nothing.
func evidence(t proxy.Totals) (e uint64) {
	if t.Kept > 0 {
		e |= leaves
	} else if t.Downloaded > 0 {
		e |= deletes
	}
	if t.Marked > t.Downloaded-t.Kept {
		e |= later
	}
	return e
}

// recentSessions returns the number of sessions in a Usage.Recent.
func recentSessions(recent uint64) int { return (bits.Len64(recent) + evidenceBits - 1) / evidenceBits }

// minSkipped is the number of sessions in a row that show HabitNothing.
const minSkipped = 3

// habit judges the recent sessions. A session says something only by what it has done:
// one without new mail says nothing.
func (u *Usage) habit() string {
	seen := uint64(0)
	for recent := u.Recent; recent != 0; recent >>= evidenceBits {
		seen |= recent
	}
	switch {
	case seen&leaves != 0 && seen&later != 0:
		return HabitLater
	case seen&leaves != 0 && seen&deletes != 0:
		return HabitMixed
	case seen&leaves != 0:
		return HabitLeaves
	case seen&deletes != 0:
		return HabitDeletes
	case u.Recent == 0 && u.Skipped >= minSkipped:
		return HabitNothing
	}
	return HabitUnknown
}
