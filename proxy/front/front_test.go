package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/audit"
	"postern/proxy/proxytest"
)

// The credentials that fakeBackend accepts.
const (
	user     = "alice"
	password = `cor"rect horse\ käse`
)

// A fakeBackend accepts user and password, and answers as its field says.
type fakeBackend struct {
	answer map[string]error // by user; nil: accepted
	mu     sync.Mutex
	logins []proxy.Login
	passwd []string
}

func (b *fakeBackend) Login(_ context.Context, l *proxy.Login) (proxy.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logins = append(b.logins, *l)
	b.passwd = append(b.passwd, string(l.Secret.Reveal()))
	switch err, ok := b.answer[l.User]; {
	case err != nil:
		return nil, err
	case ok:
		return echoSession{}, nil
	}
	if l.User != user || string(l.Secret.Reveal()) != password {
		return nil, proxy.NewRefusal(proxy.Wrong, nil)
	}
	return echoSession{}, nil
}

// lastLogin returns the number of logins and the last one.
func (b *fakeBackend) lastLogin() (n int, last proxy.Login, passwd string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n = len(b.logins); n > 0 {
		last, passwd = b.logins[n-1], b.passwd[n-1]
	}
	return n, last, passwd
}

func (b *fakeBackend) attempt(n int) proxy.Login {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logins[n]
}

// An echoSession writes back what it reads.
type echoSession struct{}

func (echoSession) Open(context.Context) (string, error) { return "", nil }
func (echoSession) Close() error                         { return nil }
func (echoSession) Run(_ context.Context, c *proxy.Conn) error {
	for {
		line, err := c.ReadLine(1000)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c, "session: %s", line); err != nil {
			return err
		}
	}
}

// An allowGuard permits every login.
type allowGuard struct{}

func (allowGuard) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) {
	return allowPermit{}, nil
}

type allowPermit struct{}

func (allowPermit) Try(context.Context, *proxy.Login) error { return nil }
func (allowPermit) Settle(error) time.Duration              { return 0 }
func (allowPermit) Leave()                                  {}

// A recorder keeps how logins and connections ended.
type recorder struct {
	ends     chan proxy.Closed
	mu       sync.Mutex
	attempts []proxy.Attempt
	log      syncBuffer
}

// A syncBuffer may be used by several goroutines.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *syncBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *syncBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (o *recorder) Observe(event proxy.Event) {
	switch e := event.(type) {
	case proxy.Closed:
		o.ends <- e
	case proxy.Attempt:
		o.mu.Lock()
		o.attempts = append(o.attempts, e)
		o.mu.Unlock()
	}
}

// wantAttempts checks the attempts, each as reason, via and user.
func (o *recorder) wantAttempts(t *testing.T, want ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	var got []string
	for _, a := range o.attempts {
		got = append(got, fmt.Sprintf("%v %s %s", proxy.ReasonOf(a.Err), a.Via, a.User))
	}
	if !slices.Equal(got, want) {
		t.Errorf("attempts %q, want %q", got, want)
	}
}

// A fixture is a real proxy.Server with one dialogue.
type fixture struct {
	*fakeBackend
	protocol string
	server   *proxy.Server
	observed *recorder
	ends     chan proxy.Closed
	addr     string
	roots    *x509.CertPool // of its certificate; nil: it has none
}

var (
	offer      = proxy.Offer{Mechanisms: []string{"PLAIN"}, Extensions: []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "DSN"}}
	oauthOffer = proxy.Offer{Mechanisms: []string{"PLAIN", "XOAUTH2", "OAUTHBEARER"}, Extensions: offer.Extensions}
)

var options = Options{Hostname: "mail.example.org", Capabilities: []string{"EXPIRE NEVER", "LOGIN-DELAY 60", "UTF8", "IMPLEMENTATION Postern"}}

// startInTLS serves a protocol as if TLS had begun. There is no TLS.
func startInTLS(t *testing.T, protocol string, login time.Duration) *fixture {
	t.Helper()
	return startInTLSWithOffer(t, protocol, login, offer)
}

func startInTLSWithOffer(t *testing.T, protocol string, login time.Duration, offer proxy.Offer) *fixture {
	t.Helper()
	o := options
	o.Offer = func() proxy.Offer { return offer }
	return startServer(t, proxy.Timeouts{Login: login}, proxy.Service{
		Protocol: protocol,
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return newDialogue(protocol, withTLS(c), o) },
	})
}

// startPlaintext serves a protocol with STARTTLS. handshake is the timeout of
// TLS; 0: the default.
func startPlaintext(t *testing.T, protocol string, handshake time.Duration) *fixture {
	t.Helper()
	cert, roots := proxytest.Cert(t)
	o, offer := options, offer
	if protocol == proxy.Sieve {
		offer = sieveOffer
	}
	o.Offer = func() proxy.Offer { return offer }
	f := startServer(t, proxy.Timeouts{Handshake: handshake}, proxy.Service{
		Protocol: protocol, TLS: proxytest.ServerTLS(cert),
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return newDialogue(protocol, c, o) },
	})
	f.roots = roots
	return f
}

func startServer(t *testing.T, timeouts proxy.Timeouts, svc proxy.Service) *fixture {
	t.Helper()
	svc.Timeouts = timeouts
	f := &fixture{protocol: svc.Protocol, fakeBackend: &fakeBackend{answer: make(map[string]error)}, ends: make(chan proxy.Closed, 64)}
	f.observed = &recorder{ends: f.ends}
	log := audit.New(slog.New(slog.NewTextHandler(&f.observed.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	log.Known = func(string) bool { return true }
	f.server = &proxy.Server{Guard: allowGuard{}, Observer: proxy.Observers{log, f.observed}}
	svc.Name, svc.StartTLS, svc.Backend = svc.Protocol, true, f.fakeBackend
	svc.Account = func(user string) (string, error) { return user, nil }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	if err := f.server.Apply([]proxy.Binding{{Listener: ln, Service: &svc}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = f.server.Shutdown(ctx, 0)
	})
	return f
}

// withTLS lets the dialogue on c see TLS.
func withTLS(c *proxy.Conn) *proxy.Conn {
	c.Client.TLS = new(tls.ConnectionState)
	return c
}

// newDialogue returns the dialogue of a protocol.
func newDialogue(protocol string, c *proxy.Conn, o Options) proxy.Dialogue {
	switch protocol {
	case proxy.IMAP:
		return NewIMAP(c, o)
	case proxy.POP3:
		return NewPOP3(c, o)
	case proxy.Sieve:
		return NewSieve(c, o)
	}
	return NewSMTP(c, o)
}

func (f *fixture) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// play runs a transcript on a new connection.
func (f *fixture) play(t *testing.T, script string) {
	t.Helper()
	c := f.dial(t)
	proxytest.Transcript(t, c, script)
	_ = c.Close()
}

// wantLogins checks the number of logins at the backend.
func (f *fixture) wantLogins(t *testing.T, want int) {
	t.Helper()
	if got, _, _ := f.lastLogin(); got != want {
		t.Errorf("the backend was asked %d times, want %d", got, want)
	}
}

// wantLogin checks the last credentials that reached the backend.
func (f *fixture) wantLogin(t *testing.T, via, user, password string) proxy.Login {
	t.Helper()
	n, l, got := f.lastLogin()
	mechanism := map[string]string{proxy.ViaXOAuth2: "XOAUTH2", proxy.ViaOAuthBearer: "OAUTHBEARER"}[via]
	if mechanism == "" {
		mechanism = "PLAIN"
	}
	if n == 0 || l.Via != via || l.User != user || got != password || l.Mechanism != mechanism {
		t.Errorf("login %d is %s by %s (%s) with the right password: %v; want %s by %s",
			n, l.User, l.Via, l.Mechanism, got == password, user, via)
	}
	return l
}

// wantEnd waits for the end of a connection.
func (f *fixture) wantEnd(t *testing.T, want error) {
	t.Helper()
	select {
	case closed := <-f.ends:
		if !errors.Is(closed.Err, want) {
			t.Errorf("the connection ended with %v, want %v", closed.Err, want)
		}
	case <-time.After(5 * time.Second):
		t.Error("the connection did not end")
	}
}

// A scriptedConn is a connection on which the client has sent everything already.
type scriptedConn struct {
	in  io.Reader
	out bytes.Buffer
}

func (c *scriptedConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *scriptedConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptedConn) Close() error                     { return nil }
func (c *scriptedConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptedConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptedConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(time.Time) error { return nil }

const canary = "canary-bird"

// runDialogue plays a dialogue with the input in, and refuses every login. It
// checks that the dialogue ends, that its replies are short, that every line ends
// in CRLF, and that no line contains a part of a password.
//
// With config it begins without TLS, and there are no credentials before a
// handshake.
func runDialogue(t *testing.T, protocol string, config *tls.Config, in []byte) {
	tp := &scriptedConn{in: bytes.NewReader(in)}
	c := proxy.NewConn(tp, proxy.Client{ID: "SESSION"}, config, 0)
	if config == nil {
		withTLS(c)
	}
	d := newDialogue(protocol, c, Options{Hostname: "mail.example.org", Offer: func() proxy.Offer { return oauthOffer }})
	reasons := proxy.Reasons()
	for n := 0; ; n++ {
		if n > maxCommands+1 {
			t.Fatalf("%d logins on one connection", n)
		}
		login, err := d.Login(t.Context())
		if login == nil && err == nil || err == nil && c.Client.TLS == nil {
			t.Fatalf("Login = %v, %v", login, err)
		}
		if c.Buffered() > 24<<10 {
			t.Fatalf("%d octets are buffered", c.Buffered())
		}
		r, ok := errors.AsType[*proxy.Refusal](err)
		if err != nil && !ok {
			break
		}
		if login != nil && !isText([]byte(login.User)) || err != nil && login != nil && login.Secret != nil {
			t.Fatalf("user %q with %v", login.User, err)
		}
		if err == nil {
			if l := len(login.Secret.Reveal()); l == 0 || l > maxToken || bytes.ContainsAny(login.Secret.Reveal(), "\x00\r\n") {
				t.Fatalf("a secret of %d octets, or with NUL, CR or LF", l)
			}
			if len(login.User) == 0 || len(login.User) > maxUser {
				t.Fatalf("user %q", login.User)
			}
			login.Secret.Clear()
			r = proxy.NewRefusal(reasons[len(in)%len(reasons)], nil)
		}
		if err := d.Refuse(r); err != nil {
			break
		}
	}
	out := tp.out.String()
	if config != nil {
		out, _, _ = strings.Cut(out, "\x15\x03") // the alert of a failed handshake
	}
	if limit := (maxCommands + 3) * 512; len(out) > limit {
		t.Fatalf("%d octets of answers", len(out))
	}
	for _, line := range strings.SplitAfter(out, "\r\n") {
		text, ended := strings.CutSuffix(line, "\r\n")
		if line != "" && (!ended || strings.ContainsAny(text, "\r\n\x00")) {
			t.Fatalf("line %q", line)
		}
		if protocol == proxy.IMAP {
			_, text, _ = strings.Cut(text, " ") // the tag
		}
		if protocol == proxy.Sieve && strings.HasPrefix(text, "OK (TAG ") { // NOOP
			continue
		}
		if strings.Contains(text, canary) || strings.Contains(text, "Y2FuYXJ5") {
			t.Fatalf("an answer repeats what the client said: %q", line)
		}
	}
}

// fuzzDialogue runs dialogues on variations of seeds, with and without TLS.
func fuzzDialogue(f *testing.F, protocol string, seeds ...string) {
	cert, _ := proxytest.Cert(f)
	config := proxytest.ServerTLS(cert)
	for _, seed := range seeds {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, clear bool) {
		if clear {
			runDialogue(t, protocol, config, in)
		} else {
			runDialogue(t, protocol, nil, in)
		}
	})
}
