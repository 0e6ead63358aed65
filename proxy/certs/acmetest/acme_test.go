package acmetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/certs"
)

// A watcher remembers what ACME did.
type watcher struct {
	mu     sync.Mutex
	events []proxy.Event
}

func (w *watcher) Observe(e proxy.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func count[E proxy.Event](w *watcher) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if _, ok := e.(E); ok {
			n++
		}
	}
	return n
}

// first returns the first event of its kind; there must be one.
func first[E proxy.Event](w *watcher) (found E) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.events, func(e proxy.Event) bool {
		_, ok := e.(E)
		return ok
	})
	return w.events[i].(E)
}

// run opens and runs a Store until the test ends or stop is called.
func run(t *testing.T, c certs.Config, o ...proxy.Observer) (s *certs.Store, stop func()) {
	t.Helper()
	s, err := certs.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(logger(t), proxy.Observers(o)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return s, stop
}

func logger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// serve is a TLS server with the certificates of s that greets and then waits
// for the client's end.
func serve(t *testing.T, s *certs.Store, address string) (addr string) {
	t.Helper()
	ln, err := tls.Listen("tcp", address, s.TLS(proxy.IMAP, proxy.Modern))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
				if _, err := io.WriteString(conn, "* OK\r\n"); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// dial connects as a client that believes a's certificates, and no others.
func (a *authority) dial(addr, name string) (*tls.Conn, error) {
	d := &net.Dialer{Timeout: 20 * time.Second}
	conn, err := tls.DialWithDialer(d, "tcp", addr, &tls.Config{ServerName: name, RootCAs: a.roots})
	if err != nil {
		return nil, err
	}
	_, err = io.ReadFull(conn, make([]byte, len("* OK\r\n")))
	return conn, err
}

// eventually waits for a handshake with name to do, and returns what is shown.
func (a *authority) eventually(t *testing.T, addr, name string, within time.Duration) *x509.Certificate {
	t.Helper()
	end := time.Now().Add(within)
	for {
		conn, err := a.dial(addr, name)
		if err == nil {
			defer func() { _ = conn.Close() }()
			return conn.ConnectionState().PeerCertificates[0]
		}
		if time.Now().After(end) {
			t.Fatalf("handshake for %s after %v: %v", name, within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Criterion: a name gets its first certificate by HTTP-01 (own port or passed on by a web server), TLS-ALPN-01 (own port or any listener) or DNS-01.
func TestFirstCertificateByEachChallenge(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, a *authority, c *certs.ACME) (before func(*certs.Store)){
		"HTTP-01, nothing else listens": func(*testing.T, *authority, *certs.ACME) func(*certs.Store) { return nil },
		"HTTP-01, behind a web server": func(t *testing.T, a *authority, c *certs.ACME) func(*certs.Store) {
			return func(s *certs.Store) {
				own := httptest.NewServer(s.ChallengeHandler())
				t.Cleanup(own.Close)
				c.Address = own.Listener.Addr().String()
				passOn(t, fmt.Sprintf("127.0.0.1:%d", a.port), own.URL)
			}
		},
		"TLS-ALPN-01, nothing else listens": func(_ *testing.T, _ *authority, c *certs.ACME) func(*certs.Store) {
			c.Challenge = certs.TLSALPN01
			return nil
		},
		"TLS-ALPN-01, at a listener": func(t *testing.T, _ *authority, c *certs.ACME) func(*certs.Store) {
			c.Challenge = certs.TLSALPN01
			return func(s *certs.Store) { serve(t, s, c.Address) }
		},
		"DNS-01": func(t *testing.T, a *authority, c *certs.ACME) func(*certs.Store) {
			c.Challenge, c.Address, c.DNS = certs.DNS01, "", certs.DNS{Server: a.zone.addr, Key: bindKey(t)}
			return nil
		},
	}
	for title, set := range tests {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			a := startCA(t)
			name := a.name
			c := a.acme(t, name)
			before := set(t, a, c)
			s, err := certs.New(certs.Config{ACME: c})
			if err != nil {
				t.Fatal(err)
			}
			if before != nil {
				before(s)
			}
			if err := s.Open(logger(t), proxy.Observers{}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var running sync.WaitGroup
			running.Go(func() { s.Run(ctx) })
			defer running.Wait()
			defer cancel()
			got := a.eventually(t, serve(t, s, "127.0.0.1:0"), name, 30*time.Second)
			if !slices.Equal(got.DNSNames, []string{name}) {
				t.Errorf("the certificate is for %q", got.DNSNames)
			}
			storageIsPrivate(t, c.Storage)
		})
	}
}

// passOn is a web server that passes on the questions of a CA, and their Host.
func passOn(t *testing.T, address, to string) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(r.Context(), http.MethodGet, to+r.URL.Path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		out.Host = r.Host
		response, err := http.DefaultClient.Do(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = response.Body.Close() }()
		w.WriteHeader(response.StatusCode)
		_, _ = io.Copy(w, response.Body)
	})}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
}

// bindKey is a key as tsig-keygen writes it.
func bindKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dns.key")
	text := fmt.Sprintf("key %q {\n\talgorithm hmac-sha256;\n\tsecret %q;\n};\n", strings.TrimSuffix(keyName, "."), keySecret)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func storageIsPrivate(t *testing.T, path string) {
	t.Helper()
	err := filepath.Walk(path, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil // locks come and go
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCertificateOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	c := a.acme(t, a.name)
	s, stop := run(t, certs.Config{ACME: c})
	first := a.eventually(t, serve(t, s, "127.0.0.1:0"), a.name, 30*time.Second)
	stop()
	orders := a.orders.Load()
	a.down.Store(true)
	s, _ = run(t, certs.Config{ACME: c})
	conn, err := a.dial(serve(t, s, "127.0.0.1:0"), a.name)
	if err != nil {
		t.Fatalf("the first handshake after a start: %v", err)
	}
	_ = conn.Close()
	if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(first) {
		t.Error("another certificate is shown after a start")
	}
	if got := a.orders.Load(); got != orders {
		t.Errorf("%d orders, want %d as before the start", got, orders)
	}
}

// Criterion: on demand, a name on the list gets a certificate at its first ClientHello, with a prefix as well; 100 names that nobody allowed cause no order.
func TestOnDemandIsForAllowedNamesOnly(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	c := a.acme(t, a.name)
	list := filepath.Join(t.TempDir(), "names")
	write(t, list, "customer.example.test\n*.wild.example.test # a comment\n")
	c.OnDemand = &certs.OnDemand{NamesFile: list, Prefixes: []string{"imap"}, PerHour: 10}
	var seen watcher
	s, stop := run(t, certs.Config{ACME: c}, &seen)
	addr := serve(t, s, "127.0.0.1:0")
	a.eventually(t, addr, a.name, 30*time.Second)
	orders := a.orders.Load()

	for i := range 100 {
		name := fmt.Sprintf("x%d.example.test", i)
		began := time.Now()
		if got := shown(t, addr, name); !slices.Equal(got.DNSNames, []string{a.name}) {
			t.Errorf("%s is shown %q, want the default certificate", name, got.DNSNames)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s waited %v for nothing", name, took)
		}
	}
	if got := a.orders.Load() - orders; got != 0 {
		t.Errorf("100 names that nobody allowed caused %d orders", got)
	}
	if got := count[proxy.CertificateDenied](&seen); got != 100 {
		t.Errorf("%d events of a denial, want 100", got)
	}
	for _, name := range []string{"customer.example.test", "imap.customer.example.test", "a.wild.example.test"} {
		conn, err := a.dial(addr, name)
		if err != nil {
			t.Errorf("the first handshake of %s: %v", name, err)
			continue
		}
		_ = conn.Close()
	}
	if got := a.orders.Load() - orders; got != 3 {
		t.Errorf("three names that are allowed caused %d orders", got)
	}
	if conn, err := a.dial(addr, "pop.customer.example.test"); err == nil {
		_ = conn.Close()
		t.Error("a prefix that is not configured got a certificate")
	}
	write(t, list, "customer.example.test\nnew.example.test\n")
	a.eventually(t, addr, "new.example.test", 30*time.Second)

	// After a start they are there at once, without the CA.
	stop()
	a.down.Store(true)
	s, _ = run(t, certs.Config{ACME: c})
	a.eventually(t, serve(t, s, "127.0.0.1:0"), "customer.example.test", 5*time.Second)
}

// Criterion: no ClientHello waits for 8 seconds for a certificate on demand: it is shown the default one, and the issue goes on.
func TestClientHelloDoesNotWaitForASlowCA(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	c := a.acme(t, a.name)
	var slow atomic.Bool
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("domain") != "slow.example.test" {
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(hook.Close)
	c.OnDemand = &certs.OnDemand{Ask: hook.URL, PerHour: 10}
	s, _ := run(t, certs.Config{ACME: c, RefuseUnknown: true})
	addr := serve(t, s, "127.0.0.1:0")
	a.eventually(t, addr, a.name, 30*time.Second)
	// The CA asks at a port where nobody answers in time.
	ln, err := net.Listen("tcp", c.Address)
	if err != nil {
		t.Fatal(err)
	}
	slow.Store(true)
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if slow.Load() {
			time.Sleep(10 * time.Second)
		}
		s.ChallengeHandler().ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })

	began := time.Now()
	if got := shown(t, addr, "slow.example.test"); !slices.Equal(got.DNSNames, []string{a.name}) {
		t.Errorf("shown %q while the issue goes on, want the default certificate", got.DNSNames)
	}
	if took := time.Since(began); took > 8*time.Second || took < 5*time.Second {
		t.Errorf("the ClientHello waited %v, want less than 8 s, and to have waited", took)
	}
	slow.Store(false)
	a.eventually(t, addr, "slow.example.test", time.Minute)
	if _, err := a.dial(addr, "other.example.test"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that the hook denies: %v, want the alert unrecognized_name", err)
	}
}

func TestOnDemandIsLimitedByTheHour(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	c := a.acme(t, a.name)
	list := filepath.Join(t.TempDir(), "names")
	write(t, list, "*.example.test\n")
	c.OnDemand = &certs.OnDemand{NamesFile: list, PerHour: 2}
	s, _ := run(t, certs.Config{ACME: c})
	addr := serve(t, s, "127.0.0.1:0")
	a.eventually(t, addr, a.name, 30*time.Second)
	for i := range 5 {
		if conn, err := a.dial(addr, fmt.Sprintf("c%d.example.test", i)); err == nil {
			_ = conn.Close()
		}
	}
	if got := a.orders.Load(); got != 3 {
		t.Errorf("%d orders, want 3: one by name, two of five on demand", got)
	}
}

// shown is what a client that believes everything is shown.
func shown(t *testing.T, addr, name string) *x509.Certificate {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", addr,
		&tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("handshake for %s: %v", name, err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0]
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Criterion: certificates of 60 seconds are renewed under load without one failed handshake, and a session lives through it.
func TestRenewalUnderLoad(t *testing.T) {
	t.Parallel()
	a := startCA(t, lifeOf(time.Minute))
	s, _ := run(t, certs.Config{ACME: a.acme(t, a.name)})
	addr := serve(t, s, "127.0.0.1:0")
	a.eventually(t, addr, a.name, 30*time.Second)
	session, err := a.dial(addr, a.name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()

	var mu sync.Mutex
	serials := map[string]int{}
	var load sync.WaitGroup
	end := time.Now().Add(4 * time.Minute)
	seen := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(serials)
	}
	for range 4 {
		load.Go(func() {
			for seen() < 3 && time.Now().Before(end) {
				conn, err := a.dial(addr, a.name)
				if err != nil {
					t.Errorf("handshake: %v", err)
					return
				}
				_ = conn.Close()
				mu.Lock()
				serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()]++
				mu.Unlock()
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	load.Wait()
	if len(serials) < 3 {
		t.Errorf("%d certificates in 4 minutes, want 3: %v", len(serials), serials)
	}
	if _, err := io.WriteString(session, "NOOP\r\n"); err != nil {
		t.Errorf("the session of before: %v", err)
	} else if _, err := io.ReadFull(session, make([]byte, len("NOOP\r\n"))); err != nil {
		t.Errorf("the session of before: %v", err)
	}
	t.Logf("handshakes by certificate: %v", serials)
}

// Criterion: a certificate is renewed when the CA says so (ARI, RFC 9773), long before its end.
func TestRenewalWhenTheCASaysSo(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	s, _ := run(t, certs.Config{ACME: a.acme(t, a.name)})
	addr := serve(t, s, "127.0.0.1:0")
	first := a.eventually(t, addr, a.name, 30*time.Second)
	time.Sleep(3 * time.Second)
	if got := a.eventually(t, addr, a.name, time.Second); !got.Equal(first) {
		t.Fatal("renewed before the CA says so")
	}
	a.renew.Store(true)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if got := a.eventually(t, addr, a.name, time.Second); !got.Equal(first) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("not renewed within 30 s")
		}
	}
}

// Criterion: while the CA is down the certificate is served past its end, and renewed when the CA is back.
func TestCAThatIsDownPastAnExpiry(t *testing.T) {
	t.Parallel()
	a := startCA(t, lifeOf(20*time.Second))
	var seen watcher
	s, _ := run(t, certs.Config{ACME: a.acme(t, a.name)}, &seen)
	addr := serve(t, s, "127.0.0.1:0")
	first := a.eventually(t, addr, a.name, 30*time.Second)
	a.down.Store(true)
	time.Sleep(time.Until(first.NotAfter) + 3*time.Second)
	if got := shown(t, addr, a.name); !got.Equal(first) {
		t.Errorf("another certificate is shown after the end of the first: %v", got.DNSNames)
	}
	if found := s.Findings(); len(found) != 1 || found[0].Class != certs.Expired || found[0].Level != slog.LevelError || found[0].Source != certs.SourceACME ||
		!strings.Contains(found[0].Text, "the CA has not renewed it") {
		t.Errorf("Findings() = %+v, want that the certificate has expired and the CA has not renewed it", found)
	}
	if state := s.List(t.Context())[0].State; state != "EXPIRED" {
		t.Errorf("the state is %q, want EXPIRED", state)
	}
	for end := time.Now().Add(30 * time.Second); count[proxy.CertificateFailed](&seen) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no event of a renewal that failed")
		}
	}
	a.down.Store(false)
	a.eventually(t, addr, a.name, 3*time.Minute) // it tries again after a minute
}

// Criterion: a CA that wants an external account (EAB) gives certificates to its key, and none without.
func TestExternalAccount(t *testing.T) {
	t.Parallel()
	a := startCA(t, needsEAB)
	key := filepath.Join(t.TempDir(), "eab")
	write(t, key, eabKey+"\n")
	c := a.acme(t, a.name)
	c.EAB = &certs.EAB{KeyID: eabKeyID, MACKey: key}
	s, stop := run(t, certs.Config{ACME: c})
	a.eventually(t, serve(t, s, "127.0.0.1:0"), a.name, 30*time.Second)
	stop()

	var seen watcher
	run(t, certs.Config{ACME: a.acme(t, a.name)}, &seen)
	for end := time.Now().Add(20 * time.Second); count[proxy.CertificateFailed](&seen) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no failure without the external account")
		}
	}
	if e := first[proxy.CertificateFailed](&seen); e.Name != a.name || e.Duration <= 0 {
		t.Errorf("told of %q after %v", e.Name, e.Duration)
	}
}

// Criterion: after a renewal by command an open session goes on, and the next handshake has the new serial number within 5 seconds.
func TestRenewByCommand(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	s, _ := run(t, certs.Config{ACME: a.acme(t, a.name)})
	addr := serve(t, s, "127.0.0.1:0")
	first := a.eventually(t, addr, a.name, 30*time.Second)
	session, err := a.dial(addr, a.name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if err := s.Renew(t.Context(), a.name); err != nil {
		t.Fatal(err)
	}
	if got := a.eventually(t, addr, a.name, 5*time.Second); got.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("the old certificate is shown after a renewal")
	}
	if _, err := io.WriteString(session, "NOOP\r\n"); err != nil {
		t.Errorf("the session of before: %v", err)
	}
	if err := s.Renew(t.Context(), "other.example.test"); err == nil {
		t.Error("a name that nobody configured was renewed")
	}
}

// Criterion: `postern certs obtain` gets what the DNS has here before clients ask, skips the rest, and gets nothing twice.
func TestObtainBeforeTheGoLive(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	c := a.acme(t)
	c.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, a.zone.addr)
	}}
	list := filepath.Join(t.TempDir(), "names")
	write(t, list, "early.example.test\n*.example.test\nelsewhere.example.test\n")
	names, err := certs.ReadNames(list, []string{"imap"})
	if err != nil {
		t.Fatal(err)
	}
	obtain := func(ctx context.Context, tell func(string)) error {
		o := &certs.BatchOrder{
			Names: names, PerHour: 36_000, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
			Report: func(p certs.Progress) { tell(fmt.Sprintf("%d/%d %s: %s", p.Done, p.All, p.Name, p.Result)) },
		}
		return o.Run(ctx, *c, logger(t))
	}
	// It is ended after the first.
	ctx, cancel := context.WithCancel(t.Context())
	if err := obtain(ctx, func(string) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("ended in the middle: %v", err)
	}
	var told []string
	if err := obtain(t.Context(), func(line string) { told = append(told, line) }); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"1/4 early.example.test: there already", "2/4 imap.early.example.test: obtained",
		"3/4 elsewhere.example.test: skipped", "4/4 imap.elsewhere.example.test: skipped",
	}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if got := a.orders.Load(); got != 2 {
		t.Errorf("%d orders, want 2", got)
	}

	// The Postern that goes live has it at the first handshake, without the CA.
	a.down.Store(true)
	c.OnDemand = &certs.OnDemand{NamesFile: list, Prefixes: []string{"imap"}, PerHour: 1}
	s, _ := run(t, certs.Config{ACME: c})
	s.Preload(t.Context())
	listed := s.List(t.Context())
	if len(listed) != 2 || listed[0].Name != "early.example.test" || listed[0].Source != certs.SourceOnDemand ||
		!strings.HasPrefix(listed[0].Issuer, "Pebble") || !listed[0].Renewal.Before(listed[0].NotAfter) || listed[0].Renewal.IsZero() {
		t.Errorf("List() = %v", listed)
	}
	conn, err := a.dial(serve(t, s, "127.0.0.1:0"), "early.example.test")
	if err != nil {
		t.Fatalf("the first handshake: %v", err)
	}
	_ = conn.Close()
}

// Criterion: another configuration of ACME takes effect in the running Postern; what was got is served on.
func TestACMEIsReconfiguredWhileItRuns(t *testing.T) {
	t.Parallel()
	a := startCA(t)
	c := a.acme(t, a.name)
	s, _ := run(t, certs.Config{ACME: c})
	addr := serve(t, s, "127.0.0.1:0")
	first := a.eventually(t, addr, a.name, 30*time.Second)
	more := *c
	more.Names = append([]string{"more." + a.name}, c.Names...)
	if err := s.Configure(certs.Config{ACME: &more}); err != nil {
		t.Fatal(err)
	}
	conn, err := a.dial(addr, a.name)
	if err != nil {
		t.Fatalf("the first handshake after it: %v", err)
	}
	_ = conn.Close()
	if !conn.ConnectionState().PeerCertificates[0].Equal(first) {
		t.Error("the name has another certificate")
	}
	a.eventually(t, addr, "more."+a.name, 30*time.Second)
	bad := more
	bad.CA = filepath.Join(t.TempDir(), "none")
	if err := s.Configure(certs.Config{ACME: &bad}); err == nil {
		t.Error("Configure with a CA file that is not there: no error")
	}
	a.eventually(t, addr, "more."+a.name, 5*time.Second)
}
