package ledger

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/bits"
	"net/netip"
	"strings"
	"time"

	"postern/proxy"
)

// A Usage is how an account uses one protocol, as it is stored by encode.
type Usage struct {
	First, Last day    // of the logins; 0: none
	Logins      uint32 // since First
	TLS         uint16 // the oldest version of Last; 0: none, VersionUnknown
	Days        uint32 // bit i: there was a login i days before Last

	// Each network is one bit, so that nobody reads a network from it. There are two
	// periods of networkDays: the present one, since NetworksSince, and the one before.
	Networks      [2]uint64
	NetworksSince day

	Plaintext      day // of the last refused login without TLS; 0: none
	PlaintextTries uint32

	// Of POP3 sessions that have ended.
	SessionsSince day    // of the first one; 0: none
	Sessions      uint32 // number of them
	Messages      uint32 // downloaded
	Octets        uint64 // of the downloaded messages
	Deleted       uint32 // messages
	Left          uint32 // messages in the maildrop after the last one, plus 1; 0: not known
	Skipped       uint8  // sessions without a download although messages were new, since the last download
	Recent        uint64 // what the last 16 sessions say about habits, 4 bits each

	Migration Migration // of POP3
}

// VersionUnknown is the version of TLS of a login that had TLS, of a version that is not
// known.
const VersionUnknown = 1

const (
	usageVersion = 1  // the first octet of a stored Usage; JSON, the form before, begins with '{'
	migrating    = 2  // the first octet of a stored Usage with a Migration
	networkDays  = 30 // the length of a period of Usage.Networks
	countedDays  = 30 // for Entry.Days
)

// A day is a number of days since 1970, in UTC.
type day uint16

func dayOf(t time.Time) day { return day(max(0, min(t.Unix()/86400, math.MaxUint16))) }

// String returns the day as an Entry has it; "" is no day.
func (d day) String() string {
	if d == 0 {
		return ""
	}
	return time.Unix(int64(d)*86400, 0).UTC().Format(dayForm)
}

func parseDay(text string) day {
	t, err := time.Parse(dayForm, text)
	if err != nil {
		return 0
	}
	return dayOf(t)
}

// A Session is a POP3 session that has ended.
type Session struct {
	proxy.Totals
	Conclusive bool // it ended by QUIT, so that what the client has not done it did not want to do
}

// skippable returns how many messages were in the maildrop of a session whose client
// has downloaded none, and has ended it by QUIT; else 0.
func (s Session) skippable() uint32 {
	if !s.Conclusive || s.Downloaded > 0 {
		return 0
	}
	return number(s.Messages)
}

// Login adds a login of an account, with a version of TLS.
func (u *Usage) Login(at time.Time, account string, client netip.Addr, version uint16) {
	today := dayOf(at)
	l := Usage{First: today, Last: today, Logins: 1, TLS: version, Days: 1, NetworksSince: today}
	l.Networks[0] = networkBit(account, client)
	u.merge(l)
}

// RefusePlaintext adds a login that was refused because it came without TLS.
func (u *Usage) RefusePlaintext(at time.Time) {
	u.merge(Usage{Plaintext: dayOf(at), PlaintextTries: 1})
}

// End adds the end of a POP3 session.
func (u *Usage) End(at time.Time, s Session) {
	e := Usage{
		SessionsSince: dayOf(at), Sessions: 1, Messages: number(s.Downloaded), Octets: uint64(max(0, s.Octets)), Deleted: number(s.Deleted),
		Left: number(s.Messages-s.Deleted) + 1,
	}
	if s.Conclusive {
		e.Recent = evidence(s.Totals)
	}
	u.skip(s.skippable())
	u.merge(e)
}

// skip counts the next session if it had more messages than the last one has left, by
// Session.skippable.
func (u *Usage) skip(skippable uint32) {
	if u.Left > 0 && skippable >= u.Left {
		u.Skipped = uint8(min(int(u.Skipped)+1, math.MaxUint8))
	}
}

func number(n int) uint32 { return uint32(max(0, min(n, math.MaxInt32))) }

// merge adds what came later.
func (u *Usage) merge(later Usage) {
	u.Migration.merge(later.Migration)
	if later.Last != 0 {
		u.mergeLogins(later)
	}
	u.Plaintext = max(u.Plaintext, later.Plaintext)
	u.PlaintextTries = sum(u.PlaintextTries, later.PlaintextTries)
	if later.SessionsSince == 0 {
		return
	}
	if u.SessionsSince == 0 {
		u.SessionsSince = later.SessionsSince
	}
	u.Sessions = sum(u.Sessions, later.Sessions)
	u.Messages = sum(u.Messages, later.Messages)
	u.Octets += later.Octets
	u.Deleted = sum(u.Deleted, later.Deleted)
	u.Left = later.Left
	if later.Recent != 0 {
		u.Skipped = 0
	}
	u.Skipped = uint8(min(int(u.Skipped)+int(later.Skipped), math.MaxUint8))
	u.Recent = u.Recent<<(evidenceBits*recentSessions(later.Recent)) | later.Recent
}

func (u *Usage) mergeLogins(later Usage) {
	if u.Last == 0 {
		u.First = later.First
	}
	u.First = min(u.First, later.First)
	u.Logins = sum(u.Logins, later.Logins)
	switch {
	case u.Last == 0 || later.Last > u.Last:
		u.TLS = later.TLS
	case later.Last == u.Last:
		u.TLS = min(u.TLS, later.TLS)
	}
	last := max(u.Last, later.Last)
	u.Days = u.Days<<(last-u.Last) | later.Days<<(last-later.Last)
	u.Last = last
	switch age := int(later.NetworksSince) - int(u.NetworksSince); {
	case age >= 2*networkDays:
		u.Networks, u.NetworksSince = [2]uint64{}, later.NetworksSince
	case age >= networkDays:
		u.Networks, u.NetworksSince = [2]uint64{0, u.Networks[0]}, later.NetworksSince
	}
	u.Networks[0] |= later.Networks[0]
	u.Networks[1] |= later.Networks[1]
}

func sum(a, b uint32) uint32 { return uint32(min(uint64(a)+uint64(b), math.MaxUint32)) }

// networkBit returns the bit of the network of a client, the /24 or /48 of its address. It
// is another one for each account. The 64 bits are too few to find out the network.
func networkBit(account string, client netip.Addr) uint64 {
	width := 48
	if client = client.Unmap(); client.Is4() {
		width = 24
	}
	network, err := client.Prefix(width)
	if err != nil || !client.IsValid() {
		return 0
	}
	sum := sha256.Sum256(network.Addr().AppendTo(append(make([]byte, 0, 128), account...)))
	return 1 << (sum[0] % 64)
}

// networks estimates the number of networks by the share of bits that are not set: linear
// counting, which is exact for a few networks and errs by a tenth for 50.
func (u *Usage) networks() int {
	const all = 64
	unset := all - bits.OnesCount64(u.Networks[0]|u.Networks[1])
	return int(math.Round(all * math.Log(all/max(float64(unset), 0.5))))
}

// Entry returns what a Usage says about an account and a protocol.
func (u *Usage) Entry(account, protocol string) Entry {
	e := Entry{
		Account: account, Protocol: protocol, First: u.First.String(), Last: u.Last.String(), Logins: int64(u.Logins),
		Days: bits.OnesCount32(u.Days & (1<<countedDays - 1)), Networks: u.networks(),
		Plaintext: u.Plaintext.String(), PlaintextTries: int64(u.PlaintextTries),
	}
	if u.Last != 0 {
		e.TLS = versionName(u.TLS)
	}
	if u.SessionsSince != 0 {
		e.Sessions = &Sessions{
			Since: u.SessionsSince.String(), Ended: int64(u.Sessions), Messages: int64(u.Messages), Octets: int64(u.Octets),
			Deleted: int64(u.Deleted), Habit: u.habit(),
		}
		if u.Left > 0 {
			left := int(u.Left - 1)
			e.Sessions.Left = &left
		}
	}
	if u.Migration != (Migration{}) {
		m := u.Migration
		e.Migration = &m
	}
	return e
}

func versionName(version uint16) string {
	switch version {
	case 0:
		return "none"
	case VersionUnknown:
		return "yes"
	}
	return strings.TrimPrefix(tls.VersionName(version), "TLS ")
}

var errUsage = errors.New("not an entry of the ledger")

// encode returns u in the form in which it is stored: an octet with the version, then
// numbers of variable length. Days are counted from the one before.
func (u *Usage) encode() []byte {
	b := append(make([]byte, 0, 128), usageVersion)
	for _, n := range [usageNumbers]uint64{
		uint64(u.First), uint64(u.Last - u.First), uint64(u.Logins), uint64(u.TLS), uint64(u.Days),
		u.Networks[0], u.Networks[1], uint64(u.NetworksSince - u.First), uint64(u.Plaintext), uint64(u.PlaintextTries),
		uint64(u.SessionsSince), uint64(u.Sessions), uint64(u.Messages), u.Octets, uint64(u.Deleted), uint64(u.Left),
		uint64(u.Skipped), u.Recent,
	} {
		b = binary.AppendUvarint(b, n)
	}
	if u.Migration == (Migration{}) {
		return b
	}
	b[0] = migrating
	c := coder{b: b}
	c.migration(&u.Migration)
	return c.b
}

const usageNumbers = 18

// decode reads a stored Usage, also one that an earlier version has written as JSON.
func (u *Usage) decode(stored []byte) error {
	if bytes.HasPrefix(stored, []byte("{")) {
		return u.decodeJSON(stored)
	}
	if len(stored) == 0 || stored[0] != usageVersion && stored[0] != migrating {
		return errUsage
	}
	version := stored[0]
	stored = stored[1:]
	var n [usageNumbers]uint64
	for i := range n {
		size := 0
		if n[i], size = binary.Uvarint(stored); size <= 0 {
			return errUsage
		}
		stored = stored[size:]
	}
	var m Migration
	if version == migrating {
		c := coder{b: stored, reading: true}
		if c.migration(&m); c.wrong || m == (Migration{}) {
			return errUsage
		}
		stored = c.b
	}
	if len(stored) > 0 {
		return errUsage
	}
	*u = Usage{
		First: day(n[0]), Last: day(n[0] + n[1]), Logins: uint32(n[2]), TLS: uint16(n[3]), Days: uint32(n[4]),
		Networks: [2]uint64{n[5], n[6]}, NetworksSince: day(n[0] + n[7]), Plaintext: day(n[8]), PlaintextTries: uint32(n[9]),
		SessionsSince: day(n[10]), Sessions: uint32(n[11]), Messages: uint32(n[12]), Octets: n[13], Deleted: uint32(n[14]), Left: uint32(n[15]),
		Skipped: uint8(n[16]), Recent: n[17], Migration: m,
	}
	return nil
}

func (u *Usage) decodeJSON(stored []byte) error {
	var e struct {
		First, Last, TLS string
		Logins           int64
	}
	if err := json.Unmarshal(stored, &e); err != nil {
		return err
	}
	*u = Usage{First: parseDay(e.First), Last: parseDay(e.Last), Logins: uint32(max(0, min(e.Logins, math.MaxUint32)))}
	if u.Last == 0 {
		return errUsage
	}
	for version := uint16(tls.VersionTLS10); version <= tls.VersionTLS13; version++ {
		if versionName(version) == e.TLS {
			u.TLS = version
		}
	}
	return nil
}
