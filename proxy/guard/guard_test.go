package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

var (
	errWrong = proxy.NewRefusal(proxy.Wrong, nil)
	errAway  = proxy.NewRefusal(proxy.Unavailable, nil)
)

// A fakeClock is the clock of Config.Now.
type fakeClock struct{ now time.Time }

func (c *fakeClock) Now() time.Time          { return c.now }
func (c *fakeClock) advance(d time.Duration) { c.now = c.now.Add(d) }

// newGuardWithClock returns a Guard that does not learn, and its clock.
func newGuardWithClock(c Config) (*Guard, *fakeClock) {
	at := &fakeClock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	c.Now, c.Learning = at.Now, -1
	return newGuard(c), at
}

func clientAt(addr string) proxy.Client {
	return proxy.Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 1024)}
}

func mustAdmit(t testing.TB, g *Guard, addr string) *permit {
	t.Helper()
	p, err := g.Admit(clientAt(addr), nil)
	if err != nil {
		t.Fatalf("Admit(%s): %v", addr, err)
	}
	return p.(*permit)
}

func loginWith(account, password string) *proxy.Login {
	return &proxy.Login{Account: account, Mechanism: wire.MechanismPlain, Secret: proxy.NewSecret([]byte(password))}
}

// A server is a guard and a mail server with a password for each account, by default
// "right".
type server struct {
	*Guard
	t         testing.TB
	passwords map[string]string
	checked   int   // passwords
	answer    error // of all logins; nil: by the password
}

// login makes an attempt and returns its answer.
func (s *server) login(addr, account, password string) error {
	s.t.Helper()
	p := mustAdmit(s.t, s.Guard, addr)
	defer p.Leave()
	err := p.Try(s.t.Context(), loginWith(account, password))
	if err == nil {
		s.checked++
		err = s.check(account, password)
	}
	p.Settle(err)
	return err
}

func (s *server) check(account, password string) error {
	right, ok := s.passwords[account]
	if !ok {
		right = "right"
	}
	switch {
	case s.answer != nil:
		return s.answer
	case password != right:
		return errWrong
	}
	return nil
}

// guesses makes n attempts with different wrong passwords and returns how many of them
// the server checked.
func (s *server) guesses(n int, addr, account string) int {
	s.t.Helper()
	before := s.checked
	for i := range n {
		if err := s.login(addr, account, fmt.Sprint("guess ", s.checked, i)); err == nil {
			s.t.Fatal("a guess was right")
		}
	}
	return s.checked - before
}

func newServer(t testing.TB, c Config) (*server, *fakeClock) {
	g, at := newGuardWithClock(c)
	return &server{Guard: g, t: t, passwords: map[string]string{}}, at
}

func wantChecked(t testing.TB, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: the backend checked %d passwords, want %d", what, got, want)
	}
}

// decisionOf returns the guard's Decision in an error.
func decisionOf(t testing.TB, err error) *proxy.Decision {
	t.Helper()
	d, ok := errors.AsType[*proxy.Decision](err)
	if !ok {
		t.Fatalf("%v is not the guard's own", err)
	}
	return d
}

// Criterion: One address gets at most 40 guesses a day at one account, however fast or slow they come.
func TestOneAddressGuessesAtOneAccount(t *testing.T) {
	t.Parallel()
	for _, every := range []time.Duration{5 * time.Second, 31 * time.Second, 10 * time.Minute} {
		s, at := newServer(t, Config{})
		for range day / every {
			s.guesses(1, "192.0.2.1", "alice")
			at.advance(every)
		}
		if s.checked > 40 || s.checked < 20 {
			t.Errorf("a guess every %v: the backend checked %d passwords in a day, want at most 40", every, s.checked)
		}
	}
}

// Criterion: An owner logs in from his networks while ten thousand addresses guess at his account.
func TestStrangersDoNotLockTheOwnerOut(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	before := s.checked
	for i := range 10_000 {
		s.guesses(1, fmt.Sprintf("198.%d.%d.%d", 18+i%2, i/250%250, i%250), "alice")
		at.advance(8 * time.Second)
		if i%100 == 0 {
			if err := s.login("192.0.2.1", "alice", "right"); err != nil {
				t.Fatalf("after %d guesses the owner is refused: %v", i, err)
			}
			before++
		}
	}
	if got := s.checked - before; got > 130 {
		t.Errorf("%d guesses came to the backend, want at most 130", got)
	}
	err := s.login("203.0.113.1", "alice", "right")
	if d := decisionOf(t, err); proxy.ReasonOf(err) != proxy.Throttled || d.Bucket != Account.String() || d.Tier != StrangerFresh.String() {
		t.Errorf("a login from a new network is refused so: %v", err)
	}
	if err := s.login("192.0.99.1", "alice", "right"); err != nil {
		t.Errorf("a login from a new network in a known area is refused: %v", err)
	}
}

// Criterion: From a network that the owner logged in from one gets at most 164 guesses a day, also while he logs in.
func TestGuessesBesideTheOwner(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	good := 0
	for i := range day / (10 * time.Second) {
		if i%30 == 0 && s.login("192.0.2.1", "alice", "right") == nil {
			good++
		}
		s.guesses(1, "192.0.2.1", "alice")
		at.advance(10 * time.Second)
	}
	if got := s.checked - good; got > 164 {
		t.Errorf("%d guesses came to the backend, want at most 164", got)
	}
	if err := s.login("192.0.2.1", "bob", "right"); err != nil {
		t.Errorf("another account at that network is refused: %v", err)
	}
}

// Criterion: An account of his own, used between the guesses, gets an attacker no more of them.
func TestOwnAccountEarnsNothing(t *testing.T) {
	t.Parallel()
	plain, at := newServer(t, Config{})
	mixed, mixedAt := newServer(t, Config{})
	own := 0
	for range day / time.Minute {
		plain.guesses(1, "192.0.2.1", "alice")
		mixed.guesses(1, "192.0.2.1", "alice")
		if mixed.login("192.0.2.1", "mallory", "right") == nil {
			own++
		}
		at.advance(time.Minute)
		mixedAt.advance(time.Minute)
	}
	if got := mixed.checked - own; got > plain.checked+2 {
		t.Errorf("%d guesses came to the backend, want at most two more than %d", got, plain.checked)
	}
}

// Criterion: An address that tries ten thousand accounts gets at most 80 guesses a day.
func TestSprayFromOneAddress(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	for i := range int(day / (5 * time.Second)) {
		s.guesses(1, "192.0.2.1", fmt.Sprint("user", i%10_000))
		at.advance(5 * time.Second)
	}
	if s.checked > 80 {
		t.Errorf("%d guesses came to the backend, want at most 80", s.checked)
	}
}

// Criterion: An IPv6 /48 that changes its addresses gets at most 60 guesses a day at one account and 250 at ten thousand.
func TestIPv6SiteRotates(t *testing.T) {
	t.Parallel()
	for _, accounts := range []int{1, 10_000} {
		s, at := newServer(t, Config{})
		for i := range int(day / (5 * time.Second)) {
			s.guesses(1, fmt.Sprintf("2001:db8:1:%x::%x", i%65536, i), fmt.Sprint("user", i%accounts))
			at.advance(5 * time.Second)
		}
		if limit := map[int]int{1: 60, 10_000: 250}[accounts]; s.checked > limit {
			t.Errorf("%d accounts: %d guesses came to the backend, want at most %d", accounts, s.checked, limit)
		}
	}
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"two IPv4 addresses", "192.0.2.1", "192.0.2.2", false},
		{"an IPv4 address and itself in IPv6", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"two mapped addresses", "::ffff:192.0.2.1", "::ffff:192.0.2.2", false},
		{"one IPv6 /64", "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"two IPv6 /64", "2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"a zone", "fe80::1%eth0", "fe80::1", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, _ := newServer(t, Config{Network: Rate{1, time.Hour}})
			s.guesses(1, test.a, "alice")
			if checked := s.guesses(1, test.b, "bob") > 0; checked == test.same {
				t.Errorf("after a wrong password from %s, one from %s was checked: %v, want %v", test.a, test.b, checked, !test.same)
			}
		})
	}
}

func TestClientsWithoutAddressShareABudget(t *testing.T) {
	t.Parallel()
	g, _ := newGuardWithClock(Config{Network: Rate{1, time.Hour}})
	for i, wanted := range []proxy.Reason{0, proxy.Throttled} {
		p, err := g.Admit(proxy.Client{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Try(t.Context(), loginWith(fmt.Sprint(i), "guess"))
		if proxy.ReasonOf(err) != wanted {
			t.Errorf("attempt %d: %v, want %v", i, err, wanted)
		}
		p.Settle(errWrong)
		p.Leave()
	}
}

// Criterion: What the backend did not call wrong costs nothing, a thousand times.
func TestOnlyWrongIsCharged(t *testing.T) {
	t.Parallel()
	verified := proxy.NewRefusal(proxy.Wrong, nil)
	verified.Verified = true
	for _, answer := range []error{
		errAway, proxy.NewRefusal(proxy.InUse, nil), proxy.NewRefusal(proxy.TooMany, nil),
		proxy.NewRefusal(proxy.Internal, nil), verified, fmt.Errorf("log in: %w", errAway), context.DeadlineExceeded,
	} {
		s, _ := newServer(t, Config{})
		s.answer = answer
		wantChecked(t, fmt.Sprint("answer ", answer), s.guesses(1000, "192.0.2.1", "alice"), 1000)
		if n := s.Stats().Entries; n != 0 {
			t.Errorf("answer %v left %d debts", answer, n)
		}
	}
}

// Criterion: A right device password from a network that it is not for costs no guess, a thousand times, and makes that network not known-good.
func TestARightPasswordInTheWrongPlaceTeachesNothing(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{})
	s.answer = &proxy.Refusal{Reason: proxy.Suspended, Verified: true}
	wantChecked(t, "right, and not from there", s.guesses(1000, "192.0.2.1", "alice"), 1000)
	if n := s.Stats().Entries; n != 0 || s.known.len() != 0 {
		t.Errorf("%d debts, and %d networks are known-good", n, s.known.len())
	}
}

// Criterion: A device with last year's password costs its office nothing, and asks the backend twice a minute at most.
func TestStaleDeviceCostsNothing(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	stale := 0
	for minute := range int(day / time.Minute) {
		for range 6 {
			before := s.checked
			if err := s.login("192.0.2.1", "alice", "last year's"); proxy.ReasonOf(err) != proxy.Wrong {
				t.Fatalf("minute %d: the stale device gets %v", minute, err)
			}
			stale += s.checked - before
			at.advance(10 * time.Second)
		}
		if err := s.login("192.0.2.1", fmt.Sprint("user", minute%50), "right"); err != nil {
			t.Fatalf("minute %d: a login of the office is refused: %v", minute, err)
		}
		if minute%30 != 0 {
			continue
		}
		if err := s.login("192.0.2.1", "alice", "right"); err != nil {
			t.Fatalf("minute %d: the owner's other device is refused: %v", minute, err)
		}
	}
	if most := int(day/(30*time.Second)) + int(day/(30*time.Minute)); stale > most { // and after each login
		t.Errorf("the stale device came to the backend %d times, want at most %d", stale, most)
	}
}

// Criterion: A wrong password that was answered without the backend is asked again after 30 s, after a login of the account, and after unlock.
func TestGuardAnswersRepeatedPasswords(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	again := func(after string, wanted int) {
		t.Helper()
		before := s.checked
		err := s.login("192.0.2.1", "alice", "stale")
		wantChecked(t, after, s.checked-before, wanted)
		if proxy.ReasonOf(err) != proxy.Wrong {
			t.Errorf("%s: %v", after, err)
		}
		if d, ok := errors.AsType[*proxy.Decision](err); ok && !d.Repeat {
			t.Errorf("%s: %+v is not a repeat", after, d)
		}
	}
	again("at first", 1)
	again("at once", 0)
	at.advance(28 * time.Second)
	again("after 28 s", 0)
	at.advance(2 * time.Second)
	again("after 30 s", 1)
	again("after 30 s and at once", 0)
	s.Unlock("alice")
	again("after unlock", 1)
	at.advance(time.Second)
	if err := s.login("203.0.113.9", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	again("after a login", 1)
	s.passwords["alice"] = "stale"
	at.advance(30 * time.Second)
	if err := s.login("192.0.2.1", "alice", "stale"); err != nil {
		t.Errorf("a password that has become right is refused: %v", err)
	}
}

// A server may say that an account is suspended before it looks at the password.
func TestGuessAtSuspendedAccountIsCharged(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	s.answer = proxy.NewRefusal(proxy.Suspended, nil)
	for range 100 { // the owner's client repeats its password
		if err := s.login("192.0.2.1", "alice", "once right"); proxy.ReasonOf(err) != proxy.Suspended {
			t.Fatal(err)
		}
		at.advance(time.Second)
	}
	wantChecked(t, "the same password", s.checked, 100)
	wantChecked(t, "different ones", s.guesses(100, "192.0.2.1", "alice"), s.limitsOf("").Pair.Burst-1)

	p := mustAdmit(t, s.Guard, "198.51.100.1")
	defer p.Leave()
	if err := p.Try(t.Context(), loginWith("bob", "guess")); err != nil {
		t.Fatal(err)
	}
	if delay := p.Settle(s.answer); delay < time.Second {
		t.Errorf("the answer comes after %v", delay)
	}
}

// Criterion: A password that is answered as temporary after the server had it costs what a wrong one does, and the same again nothing; its owner's client is told temporary each time.
func TestDoubtfulIsTemporaryAndCharged(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	doubt := proxy.NewRefusal(proxy.Unavailable, nil)
	doubt.Doubtful = true
	s.answer = doubt
	for range 100 {
		if err := s.login("192.0.2.1", "alice", "kept"); proxy.ReasonOf(err) != proxy.Unavailable {
			t.Fatal(err)
		}
		at.advance(time.Second)
	}
	wantChecked(t, "the same password", s.checked, 100)
	wantChecked(t, "different ones", s.guesses(100, "192.0.2.1", "alice"), s.limitsOf("").Pair.Burst-1)
	s.answer = nil
	s.passwords["bob"] = "kept"
	for _, answer := range []error{doubt, doubt, nil} {
		s.answer = answer
		if err := s.login("203.0.113.1", "bob", "kept"); proxy.ReasonOf(err) != proxy.ReasonOf(answer) {
			t.Errorf("the owner gets %v, want %v", err, answer)
		}
	}

	p := mustAdmit(t, s.Guard, "198.51.100.1")
	defer p.Leave()
	if err := p.Try(t.Context(), loginWith("carol", "guess")); err != nil {
		t.Fatal(err)
	}
	if delay := p.Settle(doubt); delay < time.Second {
		t.Errorf("the answer comes after %v", delay)
	}
}

// Criterion: Whoever has no budget left learns nothing of a password: one that was tried and one that was not get the same answer after the same time.
func TestThrottledIsNoOracle(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{Pair: Rate{3, 10000 * time.Hour}})
	if err := s.login("192.0.2.1", "alice", "old"); proxy.ReasonOf(err) != proxy.Wrong {
		t.Fatal(err)
	}
	s.guesses(2, "192.0.2.1", "alice")
	p := mustAdmit(t, s.Guard, "192.0.2.1")
	defer p.Leave()
	delays := map[string]time.Duration{}
	for range 500 {
		at.advance(time.Second)
		for _, password := range []string{"old", "never tried", "right"} {
			err := p.Try(t.Context(), loginWith("alice", password))
			if r := refusal(err); r == nil || r.Reason != proxy.Throttled || r.Text != "" || r.Challenge != nil || r.Verified {
				t.Fatalf("%s: %+v", password, err)
			}
			delays[password] += p.Settle(err)
		}
	}
	for password, sum := range delays {
		if mean := sum / 500; mean < 1960*time.Millisecond || mean > 2040*time.Millisecond {
			t.Errorf("%s is answered after %v on average", password, mean)
		}
	}
	if s.checked != 3 || s.known.len() != 0 {
		t.Errorf("the backend checked %d passwords, and %d networks are known-good", s.checked, s.known.len())
	}
}

// Criterion: After four wrong passwords from a known network the right one is let through at once.
func TestOwnerMistypes(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{})
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	wantChecked(t, "wrong passwords", s.guesses(4, "192.0.2.1", "alice"), 4)
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

func TestTrustedNetworksSkipTheirOwnLimitsOnly(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{
		ConnectionsPerNetwork: 1,
		Trusted:               []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")},
	})
	for _, addr := range []string{"10.1.2.3", "::ffff:10.1.2.4", "2001:db8::1"} {
		hold := mustAdmit(t, s.Guard, addr)
		checked := 0
		for i := range 200 {
			checked += s.guesses(1, addr, fmt.Sprint(addr, i))
		}
		wantChecked(t, "many accounts from "+addr, checked, 200)
		wantChecked(t, "one account from "+addr, s.guesses(50, addr, addr), 5)
		hold.Leave()
	}
}

// Criterion: A bearer token of up to 256 octets costs what a password costs, in every mechanism: 300 guesses from four addresses come to the backend as often as 300 passwords.
func TestShortTokensArePasswords(t *testing.T) {
	t.Parallel()
	checked := map[string]int{}
	for _, mechanism := range []string{wire.MechanismPlain, wire.MechanismXOAuth2, wire.MechanismOAuthBearer} {
		s, _ := newServer(t, Config{})
		try := func(addr, account, secret string) error {
			p := mustAdmit(t, s.Guard, addr)
			defer p.Leave()
			l := loginWith(account, secret)
			l.Mechanism = mechanism
			err := p.Try(t.Context(), l)
			if err == nil {
				s.checked++
				err = errWrong
			}
			p.Settle(err)
			return err
		}
		for i := range 300 {
			_ = try(fmt.Sprint("192.0.2.", i%4), "alice", fmt.Sprintf("%0*d", 1+i%wire.MaxPassword, i))
		}
		checked[mechanism] = s.checked
		before := s.checked
		for range 100 {
			if err := try("198.51.100.1", "bob", "kept"); proxy.ReasonOf(err) != proxy.Wrong {
				t.Fatalf("%s: the same again: %v", mechanism, err)
			}
		}
		wantChecked(t, mechanism+", the same again", s.checked-before, 1)
	}
	if checked[wire.MechanismPlain] > 20 || checked[wire.MechanismXOAuth2] != checked[wire.MechanismPlain] || checked[wire.MechanismOAuthBearer] != checked[wire.MechanismPlain] {
		t.Errorf("of 300 guesses at one account came to the backend: %v", checked)
	}
}

// Criterion: A refused OAuth token of more than 256 octets spends no guess and leaves no mark; such tokens have a budget of their own, and a phone that sends ten another a minute locks nobody's password out.
func TestTokensHaveTheirOwnBudget(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{OAuth: Rate{10, time.Hour}})
	jwt := 0
	try := func(mechanism string) error {
		p := mustAdmit(t, s.Guard, "192.0.2.1")
		defer p.Leave()
		jwt++
		l := loginWith("alice", fmt.Sprintf("%0*d", wire.MaxPassword+1, jwt))
		l.Mechanism = mechanism
		err := p.Try(t.Context(), l)
		if err == nil {
			s.checked++
			err = errWrong
		}
		p.Settle(err)
		return err
	}
	for range 6 {
		_ = try(wire.MechanismXOAuth2)
		_ = try(wire.MechanismOAuthBearer)
	}
	wantChecked(t, "tokens", s.checked, 10)
	if d := decisionOf(t, try(wire.MechanismXOAuth2)); d.Bucket != OAuth.String() {
		t.Errorf("the eleventh is refused by %v", d)
	}
	for range 1440 {
		for range 10 {
			_ = try(wire.MechanismXOAuth2)
		}
		at.advance(time.Minute)
	}
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Errorf("after a day of tokens the password is refused: %v", err)
	}
	wantChecked(t, "passwords", s.guesses(9, "203.0.113.1", "alice"), 5)
}

// Criterion: 500 connections that guess in one instant get no more answers than the burst.
func TestParallelGuessesGetNoMoreThanTheBurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{LoginsPerNetwork: 500, ConnectionsPerNetwork: 500})
		var checked, running, most atomic.Int32
		var wg sync.WaitGroup
		for i := range 500 {
			p := mustAdmit(t, g, "192.0.2.1")
			wg.Go(func() {
				defer p.Leave()
				err := p.Try(t.Context(), loginWith("alice", fmt.Sprint("guess ", i)))
				if err == nil {
					checked.Add(1)
					if n := running.Add(1); n > most.Load() {
						most.Store(n)
					}
					time.Sleep(50 * time.Millisecond)
					running.Add(-1)
					err = errWrong
				}
				p.Settle(err)
			})
		}
		wg.Wait()
		if checked.Load() > 5 || most.Load() != 1 {
			t.Errorf("the backend checked %d passwords and %d at once, want 5 and 1", checked.Load(), most.Load())
		}
		if n := len(g.inFlight); n != 0 {
			t.Errorf("%d attempts are still in flight", n)
		}
	})
}

// Criterion: A parallel attack of 500 connections on many accounts is bounded as one that waits for each answer.
func TestParallelAttackIsBoundedAsAnyOther(t *testing.T) {
	t.Parallel()
	at := &fixedClock{}
	g := newGuard(Config{LoginsPerNetwork: 500, ConnectionsPerNetwork: 500, Now: at.Now, Learning: -1, Wait: time.Minute})
	var checked atomic.Int32
	var wg sync.WaitGroup
	for i := range 500 {
		p := mustAdmit(t, g, "192.0.2.1")
		wg.Go(func() {
			defer p.Leave()
			for n := range 20 {
				err := p.Try(t.Context(), loginWith(fmt.Sprint("user", i%50), fmt.Sprint("guess ", i, n)))
				if err == nil {
					checked.Add(1)
					err = errWrong
				}
				p.Settle(err)
			}
		})
	}
	wg.Wait()
	if checked.Load() > 20 {
		t.Errorf("the backend checked %d passwords, want at most the burst of 20", checked.Load())
	}
}

// A fixedClock is a clock that stands still.
type fixedClock struct{ atomic.Int64 }

func (c *fixedClock) Now() time.Time { return time.Unix(c.Load(), 0) }

// Criterion: A client that opens eight connections with one wrong password asks the backend once; with the right one, each logs in.
func TestSamePasswordAtOnceIsCheckedOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		answer  error
		checked int32
	}{{errWrong, 1}, {nil, 8}, {errAway, 8}} {
		t.Run(fmt.Sprint(test.answer), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGuard(Config{Pair: Rate{1, time.Hour}})
				var checked, answered atomic.Int32
				var wg sync.WaitGroup
				begun := time.Now()
				for range 8 {
					wg.Go(func() {
						p := mustAdmit(t, g, "192.0.2.1")
						defer p.Leave()
						err := p.Try(t.Context(), loginWith("alice", "one"))
						if err == nil {
							checked.Add(1)
							time.Sleep(100 * time.Millisecond)
							err = test.answer
						}
						p.Settle(err)
						if proxy.ReasonOf(err) == proxy.ReasonOf(test.answer) {
							answered.Add(1)
						}
					})
				}
				wg.Wait()
				if checked.Load() != test.checked || answered.Load() != 8 {
					t.Errorf("the backend checked %d passwords, want %d; %d got the answer %v, want all", checked.Load(), test.checked, answered.Load(), test.answer)
				}
				if took := time.Since(begun); test.answer == nil && took != 200*time.Millisecond {
					t.Errorf("eight logins took %v, want two turns", took)
				}
			})
		})
	}
}

// Criterion: An office of 60 behind one address logs in at once, and nobody is told of failed logins.
func TestRightPasswordsWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{})
		var wg sync.WaitGroup
		begun := time.Now()
		for i := range 60 {
			wg.Go(func() {
				p := mustAdmit(t, g, "192.0.2.1")
				defer p.Leave()
				if err := p.Try(t.Context(), loginWith(fmt.Sprint(i), "right")); err != nil {
					t.Errorf("login %d: %v", i, err)
				}
				time.Sleep(time.Second) // the backend's
				p.Settle(nil)
			})
		}
		wg.Wait()
		if got := time.Since(begun); got != 2*time.Second {
			t.Errorf("60 logins took %v, want 2 s: 40 at a time", got)
		}
	})
}

func TestAttemptsBehindAnUnsettledOneAreUnavailable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{})
		stuck := mustAdmit(t, g, "192.0.2.1")
		defer stuck.Leave()
		if err := stuck.Try(t.Context(), loginWith("alice", "a")); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		p := mustAdmit(t, g, "192.0.2.1")
		defer p.Leave()
		err := p.Try(t.Context(), loginWith("alice", "b"))
		if proxy.ReasonOf(err) != proxy.Unavailable || time.Since(begun) != 30*time.Second {
			t.Errorf("Try: %v after %v", err, time.Since(begun))
		}
		if d := decisionOf(t, err); d.Bucket != Pair.String() || d.RetryAfter != 0 {
			t.Errorf("refused by %+v", d)
		}
		p.Settle(err)
		stuck.Settle(errWrong)
		if g.stats.waiting.Load() != 0 || len(g.inFlight) != 0 {
			t.Errorf("%d wait, %d in flight", g.stats.waiting.Load(), len(g.inFlight))
		}
	})
}

// Criterion: Whoever is made to leave stops waiting at once.
func TestWaitEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{})
		stuck := mustAdmit(t, g, "192.0.2.1")
		_ = stuck.Try(t.Context(), loginWith("alice", "a"))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		begun := time.Now()
		p := mustAdmit(t, g, "192.0.2.1")
		p.Settle(p.Try(ctx, loginWith("alice", "b")))
		p.Leave()
		if took := time.Since(begun); took != time.Second {
			t.Errorf("Try took %v", took)
		}
		stuck.Settle(errWrong)
		stuck.Leave()
	})
}

// Criterion: A wrong password is answered 2 s after it came, give or take a tenth, one that the backend did not see and a throttled one as well; nothing else is held back.
func TestOnlyWrongAndThrottledAreDelayed(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{Pair: Rate{3, 1000 * time.Hour}, Account: Rate{1000, time.Second}, Network: Rate{1000, time.Second}, Network24: Rate{1000, time.Second}})
	p := mustAdmit(t, s.Guard, "192.0.2.1")
	defer p.Leave()
	answer := func(account, password string, took time.Duration, err error) time.Duration {
		if tried := p.Try(t.Context(), loginWith(account, password)); tried != nil {
			err = tried
		}
		at.advance(took)
		return took + p.Settle(err)
	}
	seen := map[time.Duration]bool{}
	for range 100 {
		for _, account := range []string{"alice", fmt.Sprint("unknown", len(seen))} { // throttled soon; repeated; never seen
			for _, password := range []string{"same", fmt.Sprint("guess", len(seen))} {
				total := answer(account, password, time.Millisecond, errWrong)
				if total < 1800*time.Millisecond || total > 2200*time.Millisecond {
					t.Fatalf("a refusal comes after %v, want 1.8 s to 2.2 s", total)
				}
				seen[total] = true
			}
		}
	}
	if len(seen) < 300 {
		t.Errorf("400 refusals came after only %d different times", len(seen))
	}
	for _, err := range []error{nil, errAway, context.Canceled} {
		if total := answer("bob", "right", time.Second, err); total != time.Second {
			t.Errorf("answer %v is given after %v, want at once, after 1s", err, total)
		}
	}
	slow := map[time.Duration]bool{}
	for i := range 50 {
		total := answer(fmt.Sprint("slow", i), "guess", 3*time.Second, errWrong)
		if total < 3*time.Second || total > 3600*time.Millisecond {
			t.Errorf("after 3 s of the backend's, a wrong password is answered after %v", total)
		}
		slow[total] = true
	}
	if len(slow) < 40 {
		t.Errorf("the time of a slow backend shows: only %d different ones", len(slow))
	}
}

// Criterion: 50 sessions of one account from one network are open at once and no more, also when all begin in one instant; one that ends makes room.
// Criterion: Sessions of ManageSieve are counted apart from those of IMAP: clients open one for each script.
func TestSessionsOfAnAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{})
		g.Seed([]Success{{"info", netip.MustParseAddr("192.0.2.1"), time.Now().Add(-48 * time.Hour)}})
		var permits [80]*permit
		var open, refused atomic.Int32
		var wg sync.WaitGroup
		for i := range permits {
			p := mustAdmit(t, g, "192.0.2.1")
			permits[i] = p
			wg.Go(func() {
				err := p.Try(t.Context(), loginWith("info", "right"))
				if err == nil {
					time.Sleep(10 * time.Millisecond)
					open.Add(1)
				} else if decisionOf(t, err).Bucket == Sessions.String() && refusal(err).Reason.Temporary() {
					refused.Add(1)
				}
				p.Settle(err)
			})
		}
		wg.Wait()
		if open.Load() != 50 || refused.Load() != 30 {
			t.Errorf("%d sessions are open and %d were refused, want 50 and 30", open.Load(), refused.Load())
		}
		try := func(addr string) error {
			p := mustAdmit(t, g, addr)
			defer p.Leave()
			err := p.Try(t.Context(), loginWith("info", "right"))
			p.Settle(err)
			return err
		}
		if err := try("192.0.2.1"); err == nil {
			t.Error("a 51st session was let in")
		}
		if err := try("198.51.100.1"); err != nil {
			t.Errorf("a session from another network: %v", err)
		}
		var filters []*permit
		for i := range 51 {
			p, l := mustAdmit(t, g, "192.0.2.1"), loginWith("info", "right")
			l.Client.Protocol = proxy.Sieve
			err := p.Try(t.Context(), l)
			p.Settle(err)
			if (err == nil) != (i < 50) {
				t.Errorf("session %d of ManageSieve: %v", i, err)
			}
			filters = append(filters, p)
		}
		var shown []State
		for _, b := range g.Explain("", "info", netip.MustParseAddr("192.0.2.1")).Buckets {
			if b.Bucket == Sessions {
				shown = append(shown, b)
			}
		}
		if want := []State{{Bucket: Sessions, Running: 50, AtOnce: 50}, {Bucket: Sessions, Sieve: true, Running: 50, AtOnce: 50}}; !slices.Equal(shown, want) {
			t.Errorf("explained as %+v, want %+v", shown, want)
		}
		for _, p := range filters {
			p.Leave()
		}
		for _, p := range permits {
			p.Leave()
		}
		if err := try("192.0.2.1"); err != nil {
			t.Errorf("after all have left: %v", err)
		}
		if len(g.sessions) != 0 {
			t.Errorf("%d pairs are still counted", len(g.sessions))
		}
	})
}

func TestBudgetsComeBackWithTime(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{Pair: Rate{3, time.Minute}})
	wantChecked(t, "at first", s.guesses(10, "192.0.2.1", "alice"), 3)
	at.advance(59 * time.Second)
	wantChecked(t, "after 59 s", s.guesses(10, "192.0.2.1", "alice"), 0)
	at.advance(time.Second)
	wantChecked(t, "after 60 s", s.guesses(10, "192.0.2.1", "alice"), 1)
	at.advance(90 * time.Second)
	wantChecked(t, "after 150 s", s.guesses(10, "192.0.2.1", "alice"), 1)
	at.advance(24 * time.Hour)
	wantChecked(t, "after a day", s.guesses(10, "192.0.2.1", "alice"), 3)
}

// Criterion: A clock that is set an hour back or forth gives no tokens away and takes none.
func TestClockThatGoesBack(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	wantChecked(t, "guesses", s.guesses(9, "192.0.2.1", "alice"), 5)
	at.advance(-time.Hour)
	wantChecked(t, "an hour back", s.guesses(9, "192.0.2.1", "alice"), 0)
	if e := s.Explain("", "alice", netip.MustParseAddr("192.0.2.1")); e.Refused != Pair || e.Buckets[0].Tokens != 0 {
		t.Errorf("an hour back: %+v", e)
	}
	at.advance(time.Hour + 30*time.Minute)
	wantChecked(t, "half an hour on", s.guesses(9, "192.0.2.1", "alice"), 1)

	snapshot := s.Snapshot()
	again, wall := newServer(t, Config{})
	wall.now = at.now.Add(-time.Hour)
	again.started = wall.now
	again.checked = 1000 // for other guesses
	if err := again.Restore(snapshot); err != nil {
		t.Fatal(err)
	}
	wantChecked(t, "restored an hour earlier", again.guesses(9, "192.0.2.1", "alice"), 0)
	wall.advance(30 * time.Minute)
	wantChecked(t, "and half an hour on", again.guesses(9, "192.0.2.1", "alice"), 1)
}

// Criterion: With strict_nist unknown networks get at most 100 wrong passwords in a row at an account, however long it takes; its own go on.
func TestStrictNIST(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{StrictNIST: true})
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	row := func() (checked int) {
		for i := range 10 * 24 * 4 {
			checked += s.guesses(1, fmt.Sprintf("198.18.%d.%d", i/250, i%250), "alice")
			at.advance(15 * time.Minute)
		}
		return checked
	}
	wantChecked(t, "ten days", row(), 100)
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Errorf("the owner is refused: %v", err)
	}
	wantChecked(t, "ten days after a login", row(), 100)
}

func TestServicesHaveTheirOwnBudgets(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{Services: map[string]Config{"webmail": {Pair: Rate{2, time.Hour}}, "watched": {DryRun: true}}})
	try := func(service, account string) (checked int) {
		for i := range 10 {
			c := clientAt("192.0.2.1")
			c.Service = service
			p, err := s.Admit(c, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = p.Try(t.Context(), loginWith(account, fmt.Sprint(i)))
			if err == nil {
				checked++
				err = errWrong
			}
			p.Settle(err)
			if v := p.(*permit).found; v.rejected != (i >= 5) && service == "watched" {
				t.Errorf("attempt %d: %+v", i, v)
			}
			p.Leave()
		}
		return checked
	}
	wantChecked(t, "webmail", try("webmail", "a"), 2)
	wantChecked(t, "imap", try("imap", "b"), 5)
	wantChecked(t, "watched", try("watched", "c"), 10)
	wantChecked(t, "imap, after the watched", try("imap", "c"), 0)
}

func TestReloadForgetsNothing(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{})
	wantChecked(t, "before", s.guesses(9, "192.0.2.1", "alice"), 5)
	s.Reload(withDefaults(Config{Pair: Rate{8, 30 * time.Minute}, Learning: -1}))
	wantChecked(t, "with three more", s.guesses(9, "192.0.2.1", "alice"), 3)

	g := newGuard(Config{})
	g.Reload(withDefaults(Config{Learning: time.Hour}))
	if left := g.Stats().Learning; left > time.Hour || left < 59*time.Minute {
		t.Errorf("learning for %v more, want an hour", left)
	}
}

// Criterion: With dry_run nobody is refused, and nobody is reported who would only have waited.
func TestDryRunLetsAllThrough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{DryRun: true})
		var wg sync.WaitGroup
		attempt := func(i int, password string) (v finding) {
			p := mustAdmit(t, g, fmt.Sprint("192.0.2.", i))
			defer p.Leave()
			if err := p.Try(t.Context(), loginWith("alice", password)); err != nil {
				t.Errorf("refused: %v", err)
			}
			time.Sleep(time.Second)
			p.Settle(errWrong)
			return p.found
		}
		for range 8 {
			wg.Go(func() {
				if v := attempt(1, "the same"); v.rejected {
					t.Errorf("reported: %+v", v)
				}
			})
		}
		wg.Wait()
		for i := range 10 {
			if v := attempt(2, fmt.Sprint("guess ", i)); v.rejected != (i >= 5) {
				t.Errorf("attempt %d: %+v", i, v)
			}
		}
		if v := attempt(2, "guess 0"); !v.rejected || v.bucket != Pair {
			t.Errorf("a repeat without budget: %+v", v)
		}
		if len(g.inFlight)+len(g.sessions) != 0 {
			t.Errorf("%d in flight, %d sessions", len(g.inFlight), len(g.sessions))
		}
	})
}
