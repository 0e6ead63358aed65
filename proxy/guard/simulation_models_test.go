package guard_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"postern/proxy"
	"postern/proxy/guard"
)

// postern is the Guard itself. Its clients never wait for other attempts: they give up and
// try again later.
type postern struct {
	guard *guard.Guard
	now   time.Time
	names map[int]string
}

var cancelled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// epoch is the beginning of simulations.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newPostern(s *scenario) *postern {
	p := &postern{now: epoch, names: make(map[int]string)}
	c := guard.DefaultConfig()
	c.StrictNIST, c.Now = s.strict, func() time.Time { return p.now }
	p.guard = guard.New(c)
	return p
}

func (*postern) delay() time.Duration { return 2 * time.Second }

func (p *postern) try(now time.Duration, a *attempt) (time.Duration, decision) {
	p.now = epoch.Add(now)
	client := proxy.Client{Addr: netip.AddrPortFrom(a.from, 1024), Protocol: cmp.Or(a.variant.protocol, proxy.IMAP)}
	permit, err := p.guard.Admit(client, nil)
	if err != nil {
		return 0, refuse
	}
	login := &proxy.Login{
		Client: client, Mechanism: cmp.Or(a.variant.mechanism, "PLAIN"), Account: p.name(a.account),
		Secret: proxy.NewSecret(binary.BigEndian.AppendUint32(nil, a.password)),
	}
	err = permit.Try(cancelled, login)
	if err == nil {
		a.state = permit
		return 0, check
	}
	permit.Settle(err)
	permit.Leave()
	if proxy.ReasonOf(err) == proxy.Wrong {
		return 0, knownWrong
	}
	return 0, refuse
}

func (p *postern) settle(now time.Duration, a *attempt) {
	p.now = epoch.Add(now)
	permit := a.state.(proxy.Permit)
	var err error
	if !a.right() {
		err = cmp.Or(a.variant.answer, error(proxy.NewRefusal(proxy.Wrong, nil)))
	}
	permit.Settle(err)
	permit.Leave()
}

func (p *postern) name(account int) string {
	name, ok := p.names[account]
	if !ok {
		name = "user" + strconv.Itoa(account) + "@example.org"
		p.names[account] = name
	}
	return name
}

// others returns models of other login guards with their defaults. The models are
// simplified to what a guard counts, by which key, and what it does at the limit. Each
// names its source. Guards that read Dovecot's log, or are its policy server, have a
// Dovecot without penalties.
func others() []model {
	return []model{
		&dovecot{networks: make(map[netip.Prefix]*penalty)},
		&wforce{failed: make(map[origin]*distinct)},
		&fail2ban{jails: make(map[netip.Addr]*jail)},
		&crowdsec{buckets: make(map[netip.Addr]*leaky)},
		&mox{windows: [...]moxWindow{
			{length: time.Minute, limits: [...]int{10, 30, 90}},
			{length: day, limits: [...]int{50, 150, 450}},
		}},
		&stalwart{banned: make(map[netip.Addr]bool)},
	}
}

var columns = [...]string{"Dovecot", "weakforced", "fail2ban", "CrowdSec", "mox", "Stalwart"}

// A guess is one password for one account.
type guess struct {
	account  int
	password uint32
}

func (a *attempt) guess() guess { return guess{a.account, a.password} }

// dovecot is the penalty of Dovecot's anvil (dovecot/core src/auth/auth-penalty.c,
// src/anvil/penalty.c). After a failure a network waits for up to 15 s before the next
// password is checked, until a password is right. The last ten passwords cost nothing
// again. Connections wait in parallel.
type dovecot struct {
	networks map[netip.Prefix]*penalty
}

type penalty struct {
	level  int
	since  time.Duration
	recent []guess
}

const (
	dovecotMaxLevel = 4                // AUTH_PENALTY_MAX_PENALTY
	dovecotMaxWait  = 15 * time.Second // AUTH_PENALTY_MAX_SECS
	dovecotRecent   = 10               // CHECKSUM_VALUE_PTR_COUNT
	dovecotDelay    = 2 * time.Second  // auth_failure_delay
)

func (*dovecot) delay() time.Duration { return dovecotDelay }

func (d *dovecot) try(now time.Duration, a *attempt) (time.Duration, decision) {
	p := d.networks[prefix(a.from, 32, 48)]
	if p == nil || p.level == 0 || now-p.since >= dovecotMaxWait { // the level is 0 by then
		a.state = 0
		return 0, check
	}
	a.state = p.level
	return min(2*time.Second<<p.level, dovecotMaxWait), check
}

func (d *dovecot) settle(now time.Duration, a *attempt) {
	network, level := prefix(a.from, 32, 48), a.state.(int)
	p := d.networks[network]
	if a.right() {
		if p != nil && level > 0 {
			p.level, p.since = 0, now
		}
		return
	}
	if p == nil {
		p = new(penalty)
		d.networks[network] = p
	}
	next := min(level+1, dovecotMaxLevel)
	if i := slices.Index(p.recent, a.guess()); i >= 0 {
		p.level = next - 1
		copy(p.recent[1:], p.recent[:i])
		p.recent[0] = a.guess()
		return
	}
	p.level, p.since = next, now
	if len(p.recent) < dovecotRecent {
		p.recent = append(p.recent, guess{})
	}
	copy(p.recent[1:], p.recent)
	p.recent[0] = a.guess()
}

// wforce is the policy that weakforced ships with (PowerDNS/weakforced
// wforce/wforce.conf). It counts the distinct wrong passwords of the last hour. After 50
// from an address it refuses the address; after 3 from an address for an account it
// delays the attempt. Its HyperLogLog is exact here.
type wforce struct {
	failed map[origin]*distinct
}

// An origin is an address, or an address and an account.
type origin struct {
	from    netip.Addr
	account int
}

const (
	anyAccount    = -1
	wforceWindow  = 10 * time.Minute
	wforceWindows = 6
)

// distinct has the distinct guesses of the last windows, in the order of the window in
// which they were seen last.
type distinct []seen

type seen struct {
	guess
	window time.Duration
}

func (d *distinct) count(window time.Duration) int {
	old := 0
	for old < len(*d) && (*d)[old].window <= window-wforceWindows {
		old++
	}
	*d = slices.Delete(*d, 0, old)
	return len(*d)
}

func (d *distinct) add(g guess, window time.Duration) {
	for i := range *d {
		if (*d)[i].guess == g {
			*d = slices.Delete(*d, i, i+1)
			break
		}
	}
	*d = append(*d, seen{g, window})
}

func (*wforce) delay() time.Duration { return dovecotDelay }

func (w *wforce) of(o origin) *distinct {
	d := w.failed[o]
	if d == nil {
		d = new(distinct)
		w.failed[o] = d
	}
	return d
}

func (w *wforce) try(now time.Duration, a *attempt) (time.Duration, decision) {
	window := now / wforceWindow
	if w.of(origin{a.from, anyAccount}).count(window) > 50 {
		return 0, refuse
	}
	if w.of(origin{a.from, a.account}).count(window) > 3 {
		return 3 * time.Second, check
	}
	return 0, check
}

func (w *wforce) settle(now time.Duration, a *attempt) {
	if a.right() {
		return
	}
	w.of(origin{a.from, anyAccount}).add(a.guess(), now/wforceWindow)
	w.of(origin{a.from, a.account}).add(a.guess(), now/wforceWindow)
}

// fail2ban blocks an address with five failures in ten minutes for ten minutes
// (fail2ban/fail2ban config/jail.conf).
type fail2ban struct {
	jails map[netip.Addr]*jail
}

const (
	fail2banRetries = 5
	fail2banFind    = 10 * time.Minute
	fail2banBan     = 10 * time.Minute
)

type jail struct {
	failures []time.Duration
	until    time.Duration
}

func (*fail2ban) delay() time.Duration { return dovecotDelay }

func (f *fail2ban) try(now time.Duration, a *attempt) (time.Duration, decision) {
	if j := f.jails[a.from]; j != nil && now < j.until {
		return 0, refuse
	}
	return 0, check
}

func (f *fail2ban) settle(now time.Duration, a *attempt) {
	if a.right() {
		return
	}
	j := f.jails[a.from]
	if j == nil {
		j = new(jail)
		f.jails[a.from] = j
	}
	j.failures = slices.DeleteFunc(j.failures, func(at time.Duration) bool { return now-at >= fail2banFind })
	if j.failures = append(j.failures, now); len(j.failures) >= fail2banRetries {
		j.failures, j.until = j.failures[:0], now+fail2banBan
	}
}

// crowdsec has a leaky bucket of three failures for each address, which leaks one in six
// minutes. When the bucket overflows, the address is blocked for four hours
// (crowdsecurity/hub scenarios/crowdsecurity/dovecot-spam.yaml).
type crowdsec struct {
	buckets map[netip.Addr]*leaky
}

const (
	crowdsecCapacity = 3
	crowdsecLeak     = 6 * time.Minute
	crowdsecBan      = 4 * time.Hour
)

type leaky struct {
	empty time.Duration // when the bucket will be empty
	until time.Duration
}

func (*crowdsec) delay() time.Duration { return dovecotDelay }

func (c *crowdsec) try(now time.Duration, a *attempt) (time.Duration, decision) {
	if b := c.buckets[a.from]; b != nil && now < b.until {
		return 0, refuse
	}
	return 0, check
}

func (c *crowdsec) settle(now time.Duration, a *attempt) {
	if a.right() {
		return
	}
	b := c.buckets[a.from]
	if b == nil {
		b = new(leaky)
		c.buckets[a.from] = b
	}
	b.empty = max(b.empty, now) + crowdsecLeak
	if b.empty-now > crowdsecCapacity*crowdsecLeak {
		b.empty, b.until = now, now+crowdsecBan
	}
}

// mox counts failures in fixed windows of a minute and of a day, of an address
// and of two networks around it (mjl-/mox mox-/limitauth.go,
// ratelimit/ratelimit.go). A login clears the count of its address.
type mox struct {
	windows [2]moxWindow
}

type moxWindow struct {
	length time.Duration
	limits [3]int
	number time.Duration
	counts map[netip.Prefix]int
}

// masks returns the networks of the limits, the narrowest first.
func (*mox) masks(from netip.Addr) [3]netip.Prefix {
	return [...]netip.Prefix{prefix(from, 32, 64), prefix(from, 26, 48), prefix(from, 21, 32)}
}

func (*mox) delay() time.Duration { return 0 }

func (m *mox) try(now time.Duration, a *attempt) (time.Duration, decision) {
	masks := m.masks(a.from)
	for i := range m.windows {
		w := &m.windows[i]
		if number := now / w.length; w.counts == nil || number > w.number {
			w.number, w.counts = number, make(map[netip.Prefix]int)
		}
		for j, mask := range masks {
			if w.counts[mask] >= w.limits[j] {
				return 0, refuse
			}
		}
	}
	return 0, check
}

func (m *mox) settle(_ time.Duration, a *attempt) {
	masks := m.masks(a.from)
	for _, w := range m.windows {
		n := 1
		if a.right() {
			n = -w.counts[masks[0]]
		}
		for _, mask := range masks {
			w.counts[mask] += n
		}
	}
}

// stalwart counts the failures of a day, by address and by account. An address that makes
// the 101st of either is banned for ever (stalwartlabs/stalwart
// crates/common/src/network/security.rs, is_auth_fail2banned).
type stalwart struct {
	today    time.Duration
	from     map[netip.Addr]int
	accounts map[int]int
	banned   map[netip.Addr]bool
}

const stalwartLimit = 100

// delay returns the mean of 50 to 500 ms.
func (*stalwart) delay() time.Duration { return 275 * time.Millisecond }

func (s *stalwart) try(_ time.Duration, a *attempt) (time.Duration, decision) {
	if s.banned[a.from] {
		return 0, refuse
	}
	return 0, check
}

func (s *stalwart) settle(now time.Duration, a *attempt) {
	if a.right() {
		return
	}
	if today := now / day; s.from == nil || today > s.today {
		s.today, s.from, s.accounts = today, make(map[netip.Addr]int), make(map[int]int)
	}
	if s.from[a.from]++; s.from[a.from] <= stalwartLimit {
		if s.accounts[a.account]++; s.accounts[a.account] <= stalwartLimit {
			return
		}
	}
	s.banned[a.from] = true
}

// prefix returns the network of an address, with the prefix length for its family.
func prefix(a netip.Addr, v4, v6 int) netip.Prefix {
	n := v4
	if a.Is6() {
		n = v6
	}
	return netip.PrefixFrom(a, n).Masked()
}

// scatter is a bijection that spreads small numbers over all numbers.
func scatter(n uint32) uint32 { return bits.Reverse32(n * 2654435761) }
