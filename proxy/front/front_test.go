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
	"postern/proxy/proxytest"
)

// The only credentials that the backend below accepts.
const (
	user     = "alice"
	password = `cor"rect horse\ käse`
)

// A backend accepts user and password, and answers what it is told to.
type backend struct {
	answer map[string]error // by user; nil: accepted
	mu     sync.Mutex
	logins []proxy.Login
	passwd []string
}

func (b *backend) Login(_ context.Context, l *proxy.Login) (proxy.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logins = append(b.logins, *l)
	b.passwd = append(b.passwd, string(l.Secret.Reveal()))
	switch err, ok := b.answer[l.User]; {
	case err != nil:
		return nil, err
	case ok:
		return session{}, nil
	}
	if l.User != user || string(l.Secret.Reveal()) != password {
		return nil, proxy.NewRefusal(proxy.Wrong, nil)
	}
	return session{}, nil
}

// asked returns how many logins there were, and the last one.
func (b *backend) asked() (n int, last proxy.Login, passwd string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n = len(b.logins); n > 0 {
		last, passwd = b.logins[n-1], b.passwd[n-1]
	}
	return n, last, passwd
}

func (b *backend) attempt(n int) proxy.Login {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logins[n]
}

// A session says what it reads.
type session struct{}

func (session) Open(context.Context) (string, error) { return "", nil }
func (session) Close() error                         { return nil }
func (session) Run(_ context.Context, c *proxy.Conn) error {
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

type guard struct{}

func (guard) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) { return permit{}, nil }

type permit struct{}

func (permit) Try(context.Context, *proxy.Login) error { return nil }
func (permit) Settle(error) time.Duration              { return 0 }
func (permit) Leave()                                  {}

// observed collects how logins and connections ended.
type observed struct {
	ends     chan proxy.Closed
	mu       sync.Mutex
	attempts []proxy.Attempt
	log      log
}

// A log is written to by many.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (o *observed) Observe(event proxy.Event) {
	switch e := event.(type) {
	case proxy.Closed:
		o.ends <- e
	case proxy.Attempt:
		o.mu.Lock()
		o.attempts = append(o.attempts, e)
		o.mu.Unlock()
	}
}

// wantAttempts checks what was counted, each as reason, way and user.
func (o *observed) wantAttempts(t *testing.T, want ...string) {
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
	*backend
	protocol string
	server   *proxy.Server
	observed *observed
	ends     chan proxy.Closed
	addr     string
	roots    *x509.CertPool // of its certificate; nil: it has none
}

var (
	offer      = proxy.Offer{Mechanisms: []string{"PLAIN"}, Extensions: []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "DSN"}}
	oauthOffer = proxy.Offer{Mechanisms: []string{"PLAIN", "XOAUTH2", "OAUTHBEARER"}, Extensions: offer.Extensions}
)

var options = Options{Hostname: "mail.example.org", Capabilities: []string{"EXPIRE NEVER", "LOGIN-DELAY 60", "UTF8", "IMPLEMENTATION Postern"}}

// serve serves a protocol as it is inside of TLS. TLS itself is left out.
func serve(t *testing.T, protocol string, login time.Duration) *fixture {
	t.Helper()
	return serveOffer(t, protocol, login, offer)
}

func serveOffer(t *testing.T, protocol string, login time.Duration, offer proxy.Offer) *fixture {
	t.Helper()
	o := options
	o.Offer = func() proxy.Offer { return offer }
	return start(t, proxy.Timeouts{Login: login}, proxy.Service{
		Protocol: protocol,
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return newDialogue(protocol, asIfTLS(c), o) },
	})
}

// serveClear serves a protocol with STARTTLS. TLS may take so long; 0: as usual.
func serveClear(t *testing.T, protocol string, handshake time.Duration) *fixture {
	t.Helper()
	cert, roots := proxytest.Cert(t)
	o := options
	o.Offer = func() proxy.Offer { return offer }
	f := start(t, proxy.Timeouts{Handshake: handshake}, proxy.Service{
		Protocol: protocol, TLS: proxytest.ServerTLS(cert),
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return newDialogue(protocol, c, o) },
	})
	f.roots = roots
	return f
}

func start(t *testing.T, timeouts proxy.Timeouts, svc proxy.Service) *fixture {
	t.Helper()
	svc.Timeouts = timeouts
	f := &fixture{protocol: svc.Protocol, backend: &backend{answer: make(map[string]error)}, ends: make(chan proxy.Closed, 64)}
	f.observed = &observed{ends: f.ends}
	audit := proxy.NewAudit(slog.New(slog.NewTextHandler(&f.observed.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	audit.Known = func(string) bool { return true }
	f.server = &proxy.Server{Guard: guard{}, Observer: proxy.Observers{audit, f.observed}}
	svc.Name, svc.StartTLS, svc.Backend = svc.Protocol, true, f.backend
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

// asIfTLS makes the dialogue on c believe that there is TLS.
func asIfTLS(c *proxy.Conn) *proxy.Conn {
	c.Client.TLS = new(tls.ConnectionState)
	return c
}

func newDialogue(protocol string, c *proxy.Conn, o Options) proxy.Dialogue {
	switch protocol {
	case proxy.IMAP:
		return NewIMAP(c, o)
	case proxy.POP3:
		return NewPOP3(c, o)
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

// play runs a transcript on a connection of its own.
func (f *fixture) play(t *testing.T, script string) {
	t.Helper()
	c := f.dial(t)
	proxytest.Transcript(t, c, script)
	_ = c.Close()
}

// wantAsked checks how often the backend was asked.
func (f *fixture) wantAsked(t *testing.T, want int) {
	t.Helper()
	if got, _, _ := f.asked(); got != want {
		t.Errorf("the backend was asked %d times, want %d", got, want)
	}
}

// wantLogin checks the last credentials that reached the backend.
func (f *fixture) wantLogin(t *testing.T, via, user, password string) proxy.Login {
	t.Helper()
	n, l, got := f.asked()
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

// A tape is a connection on which all that the client says is said already.
type tape struct {
	in  io.Reader
	out bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *tape) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *tape) Close() error                     { return nil }
func (c *tape) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

const canary = "canary-bird"

// converse plays a whole dialogue on in, in which every login is refused, and
// checks what holds for all: it ends, its answers are short, no line of them
// ends otherwise than by CRLF, and none has a part of a password in it.
//
// With config it begins in the clear, and there are no credentials but after a
// handshake.
func converse(t *testing.T, protocol string, config *tls.Config, in []byte) {
	tp := &tape{in: bytes.NewReader(in)}
	c := proxy.NewConn(tp, proxy.Client{ID: "SESSION"}, config, 0)
	if config == nil {
		asIfTLS(c)
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
		if login != nil && !plainText([]byte(login.User)) || err != nil && login != nil && login.Secret != nil {
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
		out, _, _ = strings.Cut(out, "\x15\x03") // the alert of a handshake that failed
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
		if strings.Contains(text, canary) || strings.Contains(text, "Y2FuYXJ5") {
			t.Fatalf("an answer repeats what the client said: %q", line)
		}
	}
}

// fuzz converses on what f makes of seeds, inside of TLS and in the clear.
func fuzz(f *testing.F, protocol string, seeds ...string) {
	cert, _ := proxytest.Cert(f)
	config := proxytest.ServerTLS(cert)
	for _, seed := range seeds {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, clear bool) {
		if clear {
			converse(t, protocol, config, in)
		} else {
			converse(t, protocol, nil, in)
		}
	})
}
