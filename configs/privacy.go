package configs

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Privacy is what logs say of people.
type Privacy struct {
	Addresses string `yaml:"addresses"` // of clients: full, prefix (/24 and /48) or none
	Users     string `yaml:"users"`     // accounts: full or pseudonym
}

// Full reports whether logs say all.
func (p Privacy) Full() bool { return p == defaultPrivacy() }

// Retention is how long what is stored of an account outlives its last login.
type Retention struct {
	Guard  Days `yaml:"guard"`  // which networks it logs in from; that one's last login from there
	Ledger Days `yaml:"ledger"` // who logs in with what; at least as long as UIDLs
	UIDLs  Days `yaml:"uidls"`  // the record of unique ids, and what is remembered of the mailbox
}

// Days is a time in days.
type Days int

// ParseDays reads a number of days such as 30d.
func ParseDays(text string) (Days, error) {
	number, found := strings.CutSuffix(text, "d")
	n, err := strconv.Atoi(number)
	if !found || err != nil || n < 0 {
		return 0, fmt.Errorf("%s is not a number of days; 30 days are written 30d", quote(text))
	}
	return Days(n), nil
}

// String implements fmt.Stringer.
func (d Days) String() string { return strconv.Itoa(int(d)) + "d" }

// Duration returns d as days of 24 hours.
func (d Days) Duration() time.Duration { return time.Duration(d) * 24 * time.Hour }

// Before returns the time that many days before another.
func (d Days) Before(t time.Time) time.Time { return t.AddDate(0, 0, -int(d)) }

func defaultPrivacy() Privacy { return Privacy{Addresses: "full", Users: "full"} }

func (m *mistakes) checkPrivacy() {
	c := m.cfg
	m.checkWord("privacy.addresses", c.Privacy.Addresses, "a part of an address", "full", "prefix", "none")
	m.checkWord("privacy.users", c.Privacy.Users, "a way to name an account", "full", "pseudonym")
	if c.Log.Fail2ban != "" && !c.Privacy.Full() {
		m.report("log.fail2ban", "its lines have addresses and accounts, which privacy keeps out of logs; remove one of the two")
	}
	m.checkDays("retention.guard", c.Retention.Guard, 1, "")
	m.checkDays("retention.ledger", c.Retention.Ledger, 30, "")
	m.checkDays("retention.uidls", c.Retention.UIDLs, 30, "; clients that return later may download all mail again")
	if c.Retention.Ledger < c.Retention.UIDLs {
		m.report("retention.ledger", "%s is shorter than retention.uidls, %s: the ledger has the day of the last login", c.Retention.Ledger, c.Retention.UIDLs)
	}
}

// checkDays wants least days to ten years.
func (m *mistakes) checkDays(key string, d, least Days, consequence string) {
	const most = 3650
	switch {
	case d < least:
		m.report(key, "%s is too short; the least is %s%s", d, least, consequence)
	case d > most:
		m.report(key, "%s is too long; the most is %s", d, Days(most))
	}
}
