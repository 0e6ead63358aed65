package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
)

const (
	imapLogin = `
		S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready
		C: P1 AUTHENTICATE PLAIN *
		S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`
	imapWrong = `
		S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready
		C: P1 AUTHENTICATE PLAIN *
		S: P1 NO [AUTHENTICATIONFAILED] no
		C: P2 LOGOUT
		S: <EOF>`
	smtpProbe = "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250-DSN\nS: 250 AUTH PLAIN\nC: QUIT\nS: 221 bye\nS: <EOF>"
	smtpLogin = "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250-DSN\nS: 250 AUTH PLAIN\nC: AUTH PLAIN *\nS: 235 in"
	smtpPoor  = "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250 AUTH PLAIN\nC: QUIT\nS: <EOF>"
)

// newTestPool returns a Pool that balances by hash, and the recorder of its
// events. Events of the servers are not recorded.
func newTestPool(protocol string, members ...*Server) (*Pool, *recorder) {
	seen := &recorder{}
	for _, m := range members {
		m.Observer = nil
	}
	return &Pool{Name: "main", Protocol: protocol, Members: members, Balance: Hash, Observer: seen}, seen
}

// accountFor returns an account for which p tries members[i] first.
func accountFor(p *Pool, i int) string {
	for n := 0; ; n++ {
		if name := fmt.Sprintf("user%d@example.org", n); p.choose(name, slices.Clone(p.all())) == p.all()[i] {
			return name
		}
	}
}

// unreachableServer returns a Server at an address without a listener.
func unreachableServer(t *testing.T, protocol string) *Server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return &Server{Name: "main", Protocol: protocol, Address: ln.Addr().String(), TLS: None}
}

func connectionCounts(p *Pool) string {
	var all []string
	for _, m := range p.Status() {
		all = append(all, fmt.Sprint(m.Connections))
	}
	return strings.Join(all, " ")
}

// Criterion: when a member of a backend cannot be reached, the login goes to the next one.
func TestPoolTriesTheNextMember(t *testing.T) {
	for name, first := range map[string]func(t *testing.T) *Server{
		"away": func(t *testing.T) *Server { return unreachableServer(t, proxy.IMAP) },
		"bye": func(t *testing.T) *Server {
			s, _ := startServer(t, proxy.IMAP, None, "S: * BYE full\nC: <EOF>")
			return s
		},
		"noise": func(t *testing.T) *Server {
			s, _ := startServer(t, proxy.IMAP, None, "S: 220 smtp\nC: <EOF>")
			return s
		},
		"disabled": func(t *testing.T) *Server {
			s, _ := startServer(t, proxy.IMAP, None, "S: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED] ready\nC: P1 LOGOUT\nS: <EOF>")
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			second, _ := startServer(t, proxy.IMAP, None, imapLogin)
			p, _ := newTestPool(proxy.IMAP, first(t), second)
			session, err := (&IMAP{Server: p}).Login(t.Context(), testLogin(accountFor(p, 0), password))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := connectionCounts(p), "0 1"; got != want {
				t.Errorf("connections are %s, want %s", got, want)
			}
			_, _ = session.Close(), session.Close()
			if got, want := connectionCounts(p), "0 0"; got != want {
				t.Errorf("connections after the session are %s, want %s", got, want)
			}
		})
	}
}

// Criterion: what a server has answered to credentials holds; no other one is asked.
func TestPoolAsksNoOtherServerAfterAnAnswer(t *testing.T) {
	for script, reason := range map[string]proxy.Reason{
		imapWrong: proxy.Wrong,
		strings.Replace(imapWrong, "AUTHENTICATIONFAILED", "UNAVAILABLE", 1): proxy.Unavailable,
		strings.Replace(imapWrong, "S: P1 NO", "S: * BYE", 1):                proxy.Unavailable,
	} {
		first, _ := startServer(t, proxy.IMAP, None, script)
		p, _ := newTestPool(proxy.IMAP, first, unreachableServer(t, proxy.IMAP))
		_, _, err := p.LoginIMAP(t.Context(), testLogin(accountFor(p, 0), password))
		checkRefusal(t, err, reason)
		if got, want := connectionCounts(p), "0 0"; got != want {
			t.Errorf("connections are %s, want %s", got, want)
		}
		if s := p.Status(); s[1].Up || p.all()[1].health.probed {
			t.Error("the other server was asked")
		}
	}
}

func TestPoolRefusesWhenNoMemberIsLeft(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, unreachableServer(t, proxy.IMAP), unreachableServer(t, proxy.IMAP))
	_, _, err := p.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
	if !p.all()[0].health.probed || !p.all()[1].health.probed {
		t.Error("not both were tried")
	}
	if p.Up() {
		t.Error("up, with nobody there")
	}
}

func TestPoolStopsTryingAfterRetryTime(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, unreachableServer(t, proxy.IMAP), unreachableServer(t, proxy.IMAP))
	p.RetryTime = time.Nanosecond
	_, _, err := p.LoginIMAP(t.Context(), testLogin(accountFor(p, 0), password))
	checkRefusal(t, err, proxy.Unavailable)
	if p.all()[1].health.probed {
		t.Error("tried another one after its time")
	}
}

func TestPoolEndsWithItsContext(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, unreachableServer(t, proxy.IMAP), unreachableServer(t, proxy.IMAP))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := p.LoginIMAP(ctx, testLogin(accountFor(p, 0), password))
	checkRefusal(t, err, proxy.Unavailable)
	if p.all()[0].health.probed || p.all()[1].health.probed {
		t.Error("a login broken off says something about a server")
	}
}

// Criterion: a member that at login lacks something announced is skipped for another, else the login is refused for now, and there is a new probe.
func TestPoolSkipsAMemberThatLacksWhatWasAnnounced(t *testing.T) {
	poor, _ := startServer(t, proxy.Submission, None, smtpPoor, smtpPoor)
	rich, _ := startServer(t, proxy.Submission, None, smtpLogin)
	p, _ := newTestPool(proxy.Submission, poor, rich)
	l := testLogin(accountFor(p, 0), password)
	l.Offer.Extensions = []string{"DSN"}
	session, err := (&Submission{Server: p}).Login(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if got, want := connectionCounts(p), "0 1"; got != want {
		t.Errorf("connections are %s, want %s", got, want)
	}
	if len(p.all()[0].probeSoon) != 1 {
		t.Error("no new probe of the server that has changed")
	}
	if got := p.Offer().Extensions; len(got) != 0 {
		t.Errorf("the next client is offered %s", got)
	}
	if p.all()[0].health.up { // it was reached, but nothing says so: only what it lacks
		t.Error("a login that was kept back made it up")
	}

	if err := p.Drain(rich.Address, true); err != nil {
		t.Fatal(err)
	}
	l = testLogin(account, password)
	l.Offer.Extensions = []string{"DSN"}
	_, err = p.LoginSMTP(t.Context(), l)
	checkRefusal(t, err, proxy.Unavailable)
}

func TestPoolCountsConnections(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, None, imapLogin, imapLogin)
	p, _ := newTestPool(proxy.IMAP, s)
	p.MaxConnections = 1
	first, _, err := p.LoginIMAP(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = p.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
	if !errors.Is(err, errMaxConnections) {
		t.Errorf("error = %v, want %v", err, errMaxConnections)
	}
	_ = first.Close()
	second, _, err := p.LoginIMAP(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Close()
	if got, want := connectionCounts(p), "0"; got != want {
		t.Errorf("connections are %s, want %s", got, want)
	}
}

// Criterion: a member that is drained gets no new login, and keeps what it has.
func TestPoolDrainsAMember(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, &Server{Address: "a:1"}, &Server{Address: "b:1"})
	name := accountFor(p, 0)
	first, _ := p.acquire(name, nil)
	if err := p.Drain("a:1", true); err != nil {
		t.Fatal(err)
	}
	if m, err := p.acquire(name, nil); err != nil || m.Address != "b:1" {
		t.Errorf("take = %v, %v, want b", m, err)
	}
	if got := p.Status()[0]; !got.Drained || got.Connections != 1 {
		t.Errorf("status is %+v", got)
	}
	_ = p.Drain("b:1", true)
	if _, err := p.acquire(name, nil); !errors.Is(err, errDrained) {
		t.Errorf("take = %v, want %v", err, errDrained)
	}
	_ = p.Drain("a:1", false)
	if m, err := p.acquire(name, nil); err != nil || m != first {
		t.Errorf("take = %v, %v, want a again", m, err)
	}
	if err := p.Drain("c:1", true); err == nil {
		t.Error("a server that is not there was drained")
	}
}

// Criterion: by hash, an account stays where it is when another member dies, and comes back when its own returns.
func TestHashMovesOnlyTheAccountsOfTheDead(t *testing.T) {
	const accounts = 3000
	p, _ := newTestPool(proxy.IMAP, &Server{Address: "10.0.0.1:993"}, &Server{Address: "10.0.0.2:993"}, &Server{Address: "10.0.0.3:993"})
	where := func() map[string]string {
		at := make(map[string]string)
		for i := range accounts {
			name := fmt.Sprintf("user%d@example.org", i)
			m, err := p.acquire(name, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.release(m)
			at[name] = m.Address
		}
		return at
	}
	for _, m := range p.all() {
		p.recordResult(m, nil)
	}
	before := where()
	share := make(map[string]int)
	for _, address := range before {
		share[address]++
	}
	for address, n := range share {
		if n < accounts/4 || n > accounts/2 {
			t.Errorf("%s has %d of %d accounts", address, n, accounts)
		}
	}
	for range defaultFall {
		p.recordResult(p.all()[1], errors.New("away"))
	}
	for name, address := range where() {
		if dead := "10.0.0.2:993"; address == dead || address != before[name] && before[name] != dead {
			t.Fatalf("%s moved from %s to %s", name, before[name], address)
		}
	}
	for range defaultRise {
		p.recordResult(p.all()[1], nil)
	}
	for name, address := range where() {
		if address != before[name] {
			t.Fatalf("%s is at %s, was at %s", name, address, before[name])
		}
	}
}

func TestLeastChoosesTheMemberWithTheFewest(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, &Server{Address: "a:1"}, &Server{Address: "b:1"}, &Server{Address: "c:1"})
	p.Balance = Least
	for range 30 {
		if _, err := p.acquire(account, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := connectionCounts(p), "10 10 10"; got != want {
		t.Errorf("connections are %s, want %s", got, want)
	}
	p.release(p.all()[1])
	if m, _ := p.acquire(account, nil); m != p.all()[1] {
		t.Errorf("take = %s, want the one with the fewest", m.Address)
	}
}

// Criterion: a member is down after fall probes that failed in a row, and up again after rise that succeeded; new logins go to the next meanwhile.
func TestHealthFallsAndRises(t *testing.T) {
	for _, test := range []struct{ answers, want string }{
		{"+", "+"},
		{"-", "-"},
		{"+--+--", "++++++"},
		{"+---", "+++-"},
		{"+----+", "+++---"},
		{"+---++", "+++--+"},
		{"+---+-++", "+++----+"},
		{"-++", "--+"},
		{"-+-+-++", "------+"},
	} {
		var h health
		var got strings.Builder
		up := false
		for i, answer := range test.answers {
			changed := h.record(answer == '+', 3, 2)
			if changed != (i == 0 || h.up != up) {
				t.Errorf("%s: changed = %v at answer %d", test.answers, changed, i)
			}
			up = h.up
			got.WriteByte("-+"[toInt(up)])
		}
		if got.String() != test.want {
			t.Errorf("answers %s: up %s, want %s", test.answers, got.String(), test.want)
		}
	}
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Criterion: a backend is up if one of its members is.
func TestPoolReportsTheHealthOfABackend(t *testing.T) {
	p, seen := newTestPool(proxy.IMAP, &Server{Address: "a:1"}, &Server{Address: "b:1"})
	p.Fall, p.Rise = 1, 1
	bad := errors.New("away")
	for _, answer := range []struct {
		member int
		err    error
	}{{0, bad}, {1, nil}, {0, nil}, {0, nil}, {1, bad}, {0, bad}, {1, nil}} {
		p.recordResult(p.all()[answer.member], answer.err)
	}
	if got, want := seen.String(), "probed false, probed true, probed true, probed true, probed false, probed true"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
	for _, e := range seen.events {
		if e := e.(proxy.Probed); (e.Err == nil) != e.Up || e.Backend != "main" || e.Protocol != proxy.IMAP {
			t.Errorf("event %+v", e)
		}
	}
}

// Criterion: logins go only to members that are up, unless none is.
func TestPoolTriesAServerThatIsDownIfNoneIsUp(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, &Server{Address: "a:1"}, &Server{Address: "b:1"})
	p.Fall = 1
	name := accountFor(p, 0)
	p.recordResult(p.all()[0], errors.New("away"))
	if m, _ := p.acquire(name, nil); m != p.all()[1] {
		t.Error("the one that is down was taken")
	}
	// The other one was just tried in vain: then the news may be old.
	if m, _ := p.acquire(name, p.all()[1:]); m != p.all()[0] {
		t.Error("a member was left, and not taken")
	}
	if _, err := p.acquire(name, p.all()); !errors.Is(err, errNoneLeft) {
		t.Errorf("take = %v, want %v", err, errNoneLeft)
	}
	p.recordResult(p.all()[1], errors.New("away"))
	if m, _ := p.acquire(name, nil); m != p.all()[0] {
		t.Error("none is up: the account's own was not taken")
	}
}

// Criterion: a member that is down counts with its last list.
func TestPoolOffersWhatAllMembersHave(t *testing.T) {
	const big = "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250-DSN\nS: 250-SIZE 100\nS: 250-CHUNKING\nS: 250 AUTH PLAIN LOGIN XOAUTH2\nC: QUIT\nS: 221 bye\nS: <EOF>"
	const small = "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250-SIZE 20\nS: 250-DSN\nS: 250 AUTH LOGIN\nC: QUIT\nS: 221 bye\nS: <EOF>"
	first, _ := startServer(t, proxy.Submission, None, big)
	second, _ := startServer(t, proxy.Submission, None, small, "S: 421 no\nC: <EOF>")
	p, _ := newTestPool(proxy.Submission, first, second, unreachableServer(t, proxy.Submission))
	if p.Offer().Mechanisms != nil {
		t.Error("something is offered before the first probe")
	}
	p.Probe(t.Context())
	check := func() {
		t.Helper()
		got := p.Offer()
		slices.Sort(got.Mechanisms)
		if got, want := fmt.Sprint(got), "{[LOGIN PLAIN] [DSN SIZE 20]}"; got != want {
			t.Errorf("Offer = %s, want %s", got, want)
		}
	}
	check()
	p.Members[0].Address = p.Members[2].Address // gone
	p.Probe(t.Context())
	check()
}

func TestPoolIsWatchedUntilItsContextEnds(t *testing.T) {
	first, _ := startServer(t, proxy.Submission, None, smtpProbe, "S: 421 down\nC: <EOF>", smtpProbe)
	ctx, cancel := context.WithCancel(t.Context())
	p, _ := newTestPool(proxy.Submission, first)
	var ups []bool
	p.Observer = observerFunc(func(e proxy.Event) {
		if ups = append(ups, e.(proxy.Probed).Up); len(ups) == 4 {
			cancel()
		}
	})
	p.Watch(ctx, time.Millisecond)
	// The first is told twice: the pool has changed, and was probed.
	if want := []bool{true, true, true, true}; !slices.Equal(ups, want) {
		t.Errorf("up: %v, want %v", ups, want)
	}
}

func TestPoolCountsRightWithManyAtOnce(t *testing.T) {
	const clients = 20
	s, _ := startServer(t, proxy.IMAP, None, slices.Repeat([]string{imapLogin}, clients)...)
	p, _ := newTestPool(proxy.IMAP, s, unreachableServer(t, proxy.IMAP))
	p.Balance = Least
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			conn, _, err := p.LoginIMAP(t.Context(), testLogin(account, password))
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.Close()
		})
	}
	wg.Wait()
	if got, want := connectionCounts(p), "0 0"; got != want {
		t.Errorf("connections are %s, want %s", got, want)
	}
	if s := p.Status(); !s[0].Up || s[1].Up {
		t.Errorf("status is %+v", s)
	}
}

// Criterion: a login that lacks what was announced has the servers probed anew.
func TestPoolIsProbedAgainWhenAServerLacksWhatWasAnnounced(t *testing.T) {
	s, _ := startServer(t, proxy.Submission, None, smtpProbe, smtpPoor, smtpProbe)
	p, _ := newTestPool(proxy.Submission, s)
	probed := make(chan struct{}, 10)
	p.Observer = observerFunc(func(proxy.Event) { probed <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { p.Watch(ctx, time.Hour) })
	<-probed // that it is up
	<-probed // that it was probed

	l := testLogin(account, password)
	l.Offer = p.Offer()
	_, err := p.LoginSMTP(t.Context(), l)
	checkRefusal(t, err, proxy.Unavailable)
	if got := p.Offer().Extensions; len(got) != 0 {
		t.Errorf("the next client is offered %s", got)
	}
	begun := time.Now()
	<-probed
	if took := time.Since(begun); took < settleTime/2 {
		t.Errorf("probed again after %s: many logins would be many probes", took)
	}
	if got, want := fmt.Sprint(p.Offer().Extensions), "[DSN]"; got != want {
		t.Errorf("the next client is offered %s, want %s", got, want)
	}
	cancel()
	watching.Wait()
}

// What another server says, asked for this login, is no news of the member.
func TestPoolBlamesAMemberForNothingOfOthers(t *testing.T) {
	p, _ := newTestPool(proxy.Submission, &Server{Address: "a:1"}, &Server{Address: "b:1"})
	other := &Server{Name: "main", Protocol: proxy.IMAP}
	requests := 0
	_, err := p.login(t.Context(), testLogin(account, password), func(*Server) (*Conn, error) {
		requests++
		return nil, other.unsent(errors.New("away"))
	})
	checkRefusal(t, err, proxy.Unavailable)
	if requests != 1 || p.all()[0].health.probed || p.all()[1].health.probed {
		t.Errorf("%d members were asked, want 1, and none blamed", requests)
	}
}

// A server may block a client of whom it was told: that says nothing about it.
func TestPoolBelievesNoClientAboutItsMembers(t *testing.T) {
	const blocked = "S: 421 4.7.0 too many connections from 192.0.2.1\nC: <EOF>"
	s, _ := startServer(t, proxy.Submission, None, smtpProbe, blocked, blocked, blocked, blocked)
	p, _ := newTestPool(proxy.Submission, s)
	p.Probe(t.Context())
	for range 4 {
		_, err := p.LoginSMTP(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
	}
	if m := p.all()[0]; !p.Up() || m.health.streak != 0 || len(m.probeSoon) != 1 {
		t.Errorf("up: %v, health %+v, %d probes wanted; want up, and one probe", p.Up(), m.health, len(m.probeSoon))
	}
}

// That no descriptor is left here is no news of the members, and no reason to
// try the next one.
func TestPoolBlamesNoMemberForWantOfDescriptors(t *testing.T) {
	p, _ := newTestPool(proxy.IMAP, &Server{Address: "a:1"}, &Server{Address: "b:1"})
	requests := 0
	try := func() error {
		_, err := p.login(t.Context(), testLogin(account, password), func(s *Server) (*Conn, error) {
			requests++
			return nil, s.unsent(&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)})
		})
		return err
	}
	checkRefusal(t, try(), proxy.Unavailable)
	if requests != 1 || p.all()[0].health.probed || p.all()[1].health.probed {
		t.Errorf("%d members were asked, want 1, and none blamed", requests)
	}
	full := errors.New("no descriptor is left")
	p.CheckResources = func() error { return full }
	err := try()
	checkRefusal(t, err, proxy.Unavailable)
	if requests != 1 || !errors.Is(err, full) {
		t.Errorf("without room %d members were asked, want none more; %v", requests, err)
	}
}

// A panic in a probe is observed, and the member counts as down.
func TestPanicInAProbeIsAFailedProbe(t *testing.T) {
	s := &Server{Name: "main", Protocol: proxy.IMAP, Address: "127.0.0.1:1", TLS: None}
	p, seen := newTestPool(proxy.IMAP, s)
	s.Observer = observerFunc(func(proxy.Event) { panic("a bug") })
	p.Probe(t.Context())
	if p.Up() {
		t.Error("a server whose probe panics is up")
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	if !slices.ContainsFunc(seen.events, func(e proxy.Event) bool {
		panicked, ok := e.(proxy.Panicked)
		return ok && panicked.Value == "a bug" && len(panicked.Stack) > 0
	}) {
		t.Errorf("events %v, want Panicked", seen.events)
	}
}
