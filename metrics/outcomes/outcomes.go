// Package outcomes remembers how the last logins and sessions of each account ended, so
// that an operator can answer why somebody could not log in.
//
// A Memory is a proxy.Observer. Its memory is bounded and ends with the process, unless
// another process imports it. It stores no account: accounts are keyed hashes.
package outcomes

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern/proxy"
)

// What a Memory has room for. All in all it uses up to 64 MiB. Whoever fills one of the
// tables pushes nothing out of another one.
const (
	accounts      = 100_000 // that have logged in before
	names         = 10_000  // all others
	networks      = 20_000  // from which accounts have logged in
	perAccount    = 32
	perName       = 8
	perNetwork    = 8
	accountMemory = 48 << 20 / recordSize // outcomes of all accounts
)

// MergeFor is how long after an Outcome the same one is counted as its repetition,
// instead of as another Outcome.
const MergeFor = time.Hour

// An Outcome is how a login, a session or a connection ended, or how several ones did
// that differ in nothing but the time.
type Outcome struct {
	Kind        Kind
	Protocol    string    // of package proxy
	First, Last time.Time // to the second
	Count       int       // up to 65,535
	Session     string    // of the last one
	Network     netip.Prefix
	Own         bool   // the account had logged in from Network lately
	Detail      string // as the Kind says; "": none, or no longer remembered
}

// A Memory is a proxy.Observer. It must be made by New.
type Memory struct {
	// Known reports whether an account has logged in before: its outcomes have a table of
	// their own. nil: those that have logged in since New.
	Known func(account string) bool

	// KnownNetwork reports whether any account has logged in from an address lately.
	// Failures without an account are remembered of these only. nil: none is.
	KnownNetwork func(netip.Addr) bool

	hash func(name string) uint64

	mu       sync.Mutex
	since    time.Time
	accounts *table          // by the hash of the account
	names    *table          // by the hash of the name
	networks *table          // by network
	texts    [tables]details // of the records of each table
	failures details         // of TLSFailed: clients choose what is in the text
	forward  func([]byte)    // gets what Export returns for each new outcome; nil: nobody does
}

// New returns a Memory that remembers from now on. hash returns the keyed hash of a name.
func New(hash func(name string) uint64) *Memory {
	return &Memory{
		hash: hash, since: time.Now().Truncate(time.Second), // as Export has it
		accounts: newTable(accounts, perAccount, accountMemory),
		names:    newTable(names, perName, names*perName),
		networks: newTable(networks, perNetwork, networks*perNetwork/2),
	}
}

// Since returns when the Memory began to remember.
func (m *Memory) Since() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since
}

// Of returns the outcomes of an account, or of a name that is no account, the last one at
// the end.
func (m *Memory) Of(account string) []Outcome {
	h := m.hash(account)
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.outcomes(tableAccounts, m.accounts.get(h))
	return sorted(append(all, m.outcomes(tableNames, m.names.get(h))...))
}

// FromNetworks returns the failures without an account from the networks that match, the
// last one at the end.
func (m *Memory) FromNetworks(match func(netip.Prefix) bool) []Outcome {
	m.mu.Lock()
	var all []netip.Prefix // match may be slow, and is called without the lock
	for i := range m.networks.entries {
		if r := m.networks.entries[i].records; len(r) > 0 {
			all = append(all, r[0].prefix())
		}
	}
	m.mu.Unlock()
	all = slices.DeleteFunc(all, func(n netip.Prefix) bool { return !match(n) })
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []record
	for _, n := range all {
		found = append(found, m.networks.get(networkKey(n))...)
	}
	return sorted(m.outcomes(tableNetworks, found))
}

// sorted sorts outcomes, the last one to the end.
func sorted(all []Outcome) []Outcome {
	slices.SortFunc(all, func(a, b Outcome) int { return cmp.Or(a.Last.Compare(b.Last), a.First.Compare(b.First)) })
	return all
}

// outcomes returns the outcomes that records of a table stand for.
func (m *Memory) outcomes(table byte, records []record) []Outcome {
	all := make([]Outcome, len(records))
	for i, r := range records {
		all[i] = Outcome{
			Kind: r.kind, Protocol: r.protocol(), First: time.Unix(int64(r.first), 0), Last: time.Unix(int64(r.last), 0),
			Count: int(r.count), Session: sessionOf(r.session), Network: r.prefix(), Own: r.flags&own != 0, Detail: m.detailsOf(table, r.kind).get(r.detail),
		}
	}
	return all
}

// Forget removes the outcomes of an account.
func (m *Memory) Forget(account string) {
	h := m.hash(account)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts.remove(h)
	m.names.remove(h)
}

// recordSize is the size of a record in memory, in octets.
const recordSize = 32

// A record is an Outcome in its smallest form.
type record struct {
	first, last uint32 // Unix time, in seconds
	network     uint64 // IPv4, or the first half of IPv6; 0: no address
	session     uint64 // see sessionNumber
	detail      uint32 // of details; 0: none
	count       uint16
	kind        Kind
	flags       uint8
}

// The flags of a record: the number of the protocol in protocols, its last two bits in
// protocolBits and its first one in protocolHigh, and own and ipv6. An upgrade hands the
// flags over, so they keep their bits.
const (
	protocolBits = 1<<2 - 1
	own          = 1 << 2
	ipv6         = 1 << 3
	protocolHigh = 1 << 4
)

// protocols has a new protocol at the end.
var protocols = [...]string{"", proxy.IMAP, proxy.POP3, proxy.Submission, proxy.Sieve}

func protocolFlags(protocol string) uint8 {
	n := uint8(max(0, slices.Index(protocols[:], protocol)))
	flags := n & protocolBits
	if n > protocolBits {
		flags |= protocolHigh
	}
	return flags
}

// protocol returns the protocol of r; "": none.
func (r *record) protocol() string {
	n := r.flags & protocolBits
	if r.flags&protocolHigh != 0 {
		n += protocolBits + 1
	}
	if int(n) >= len(protocols) {
		return ""
	}
	return protocols[n]
}

// newRecord returns the record of one outcome of a client, at a time.
func newRecord(k Kind, c *proxy.Client, at time.Time) record {
	r := record{kind: k, count: 1, first: uint32(at.Unix()), last: uint32(at.Unix()), session: sessionNumber(c.ID)}
	r.flags = protocolFlags(c.Protocol)
	n := networkOf(c.Addr.Addr())
	r.network = networkKey(n)
	if n.Addr().Is6() {
		r.flags |= ipv6
	}
	return r
}

// networkOf returns the network of an address as budgets count it: IPv4 /32, IPv6 /64.
func networkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	n, _ := a.Prefix(min(a.BitLen(), 64))
	return n
}

// networkKey returns the network of a record. The networks of IPv4 are below those of
// IPv6: 0::/8 is reserved (RFC 4291 section 2.4).
func networkKey(n netip.Prefix) (key uint64) {
	if !n.IsValid() {
		return 0
	}
	for _, b := range n.Addr().AsSlice()[:n.Bits()/8] {
		key = key<<8 | uint64(b)
	}
	return key
}

// prefix returns the network of r; the zero Prefix if there was no address.
func (r *record) prefix() netip.Prefix {
	if r.network == 0 {
		return netip.Prefix{}
	}
	var b [16]byte
	for i := range 8 {
		b[i] = byte(r.network >> (56 - 8*i))
	}
	if r.flags&ipv6 == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[4:8])), 32)
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// repeats reports whether r is the same outcome as old, soon after it.
func (r *record) repeats(old *record) bool {
	const soon = int64(MergeFor / time.Second)
	return r.kind == old.kind && r.flags == old.flags && r.network == old.network && r.detail == old.detail &&
		int64(r.first)-int64(old.last) <= soon && int64(old.first)-int64(r.last) <= soon
}

// merge adds a repetition to r.
func (r *record) merge(again record) {
	r.count += min(again.count, ^uint16(0)-r.count)
	r.first = min(r.first, again.first)
	if again.last >= r.last {
		r.last, r.session = again.last, again.session
	}
}

// alphabet is that of base32, which session ids have: proxy.Client.ID is the beginning of
// a rand.Text.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

// maxSession is the most letters of a session id that a number has.
const maxSession = 12

// sessionNumber returns a session id as a number: its length, and five bits for each
// letter. An id that is longer than 12 letters, or has other ones, is 0.
func sessionNumber(id string) (n uint64) {
	if len(id) > maxSession {
		return 0
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'A' <= c && c <= 'Z':
			n = n<<5 | uint64(c-'A')
		case '2' <= c && c <= '7':
			n = n<<5 | uint64(c-'2'+26)
		default:
			return 0
		}
	}
	return n | uint64(len(id))<<60
}

// sessionOf returns the session id with a number.
func sessionOf(n uint64) string {
	id := make([]byte, min(n>>60, maxSession))
	for i := range slices.Backward(id) {
		id[i] = alphabet[n&31]
		n >>= 5
	}
	return string(id)
}

// detailsOf returns the details that records of a table and a kind have.
func (m *Memory) detailsOf(table byte, k Kind) *details {
	if k == TLSFailed {
		return &m.failures
	}
	return &m.texts[table]
}

// details has the details of records, because many have the same. The oldest of
// len(ring) is replaced by a new one.
type details struct {
	ring    [1024]string
	last    uint32 // number of the newest; 0: there is none
	numbers map[string]uint32
}

// number returns the number of a detail.
func (d *details) number(text string) uint32 {
	if text == "" {
		return 0
	}
	if n, ok := d.numbers[text]; ok {
		return n
	}
	if d.numbers == nil {
		d.numbers = make(map[string]uint32, len(d.ring))
	}
	d.last++
	place := &d.ring[d.last%uint32(len(d.ring))]
	delete(d.numbers, *place)
	*place = text
	d.numbers[text] = d.last
	return d.last
}

// get returns the detail with a number; "" if it was replaced.
func (d *details) get(n uint32) string {
	if n == 0 || d.last-n >= uint32(len(d.ring)) {
		return ""
	}
	return d.ring[n%uint32(len(d.ring))]
}
