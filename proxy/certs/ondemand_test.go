package certs

import (
	"cmp"
	"context"
	"fmt"
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

	"github.com/caddyserver/certmagic"

	"postern/proxy"
)

// openStore returns a Store that runs c with an unreachable CA until the test
// ends.
func openStore(t testing.TB, c Config, o ...proxy.Observer) *Store {
	t.Helper()
	a := c.ACME
	a.Directory, a.Email, a.Challenge = "https://127.0.0.1:1/dir", "ops@example.org", cmp.Or(a.Challenge, HTTP01)
	if a.Storage == "" {
		a.Storage = filepath.Join(tempDir(t), "certs")
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})), proxy.Observers(o)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// tempDir is t.TempDir for certmagic, whose jobs may still write a file when they were
// told to stop.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "postern")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for gone, end := 0, time.Now().Add(5*time.Second); gone < 3; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(dir); err == nil {
				_, gone = os.RemoveAll(dir), 0
			} else {
				gone++
			}
			if time.Now().After(end) {
				t.Errorf("%s is still written to", dir)
				return
			}
		}
	})
	return dir
}

// A denialRecorder keeps the reasons of CertificateDenied.
type denialRecorder struct {
	mu      sync.Mutex
	reasons []string
}

func (d *denialRecorder) Observe(e proxy.Event) {
	if e, ok := e.(proxy.CertificateDenied); ok {
		d.mu.Lock()
		d.reasons = append(d.reasons, e.Reason)
		d.mu.Unlock()
	}
}

func (d *denialRecorder) count(reason string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.reasons {
		if r == reason {
			n++
		}
	}
	return n
}

func writeNames(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFailureIsFollowedByABackoff(t *testing.T) {
	p := pairPaths(t)
	writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	s := openStore(t, Config{Pairs: []Pair{p}, RefuseUnknown: true, ACME: &ACME{
		OnDemand: &OnDemand{NamesFile: writeNames(t, "customer.example.org"), PerHour: 5},
	}})
	for i := range 3 {
		began := time.Now()
		cert, err := s.GetCertificate(newHello("customer.example.org"))
		if err != nil || cert == nil || cert.Leaf.DNSNames[0] != "mail.example.org" {
			t.Fatalf("try %d: %v, %v, want the default certificate, as the name is allowed", i, cert, err)
		}
		if took := time.Since(began); i > 0 && took > time.Second {
			t.Errorf("try %d after a failure waited %v", i, took)
		}
	}
	if got := len(s.acme.Load().onDemand.issued.times); got != 1 {
		t.Errorf("three tries made %d orders, want 1", got)
	}
	if cert, err := s.GetCertificate(newHello("other.example.org")); err != nil || cert != nil {
		t.Errorf("a name that nobody allowed: %v, %v, want neither", cert, err)
	}
}

// A customer's own DNS, which may be slow on purpose, is asked for each name.
func TestOrdersInProgressAreBounded(t *testing.T) {
	hanging := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	var d denialRecorder
	s := openStore(t, Config{ACME: &ACME{Resolver: hanging, OnDemand: &OnDemand{
		NamesFile: writeNames(t, "*.example.org"), PerHour: 5, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}}}, &d)
	m, begun := s.acme.Load(), 0
	for i := range 2 * maxJobs {
		w, allowed := m.order(t.Context(), fmt.Sprintf("n%d.example.org", i))
		if w != nil {
			begun++
		}
		if !allowed {
			t.Fatalf("name %d is not allowed", i)
		}
		time.Sleep(100 * time.Microsecond) // for some to be taken up
	}
	if begun != maxJobs || d.count(proxy.DeniedLimit) != maxJobs {
		t.Errorf("%d names are looked after, %d were denied, want %d each", begun, d.count(proxy.DeniedLimit), maxJobs)
	}
}

func TestStoredCertificateIsLoadedWithoutAskingTheHook(t *testing.T) {
	s, err := New(Config{ACME: &ACME{
		Directory: "https://127.0.0.1:1/dir", Email: "ops@example.org", Challenge: HTTP01, Storage: filepath.Join(t.TempDir(), "certs"),
		OnDemand: &OnDemand{Ask: "http://127.0.0.1:1/", PerHour: 5},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(slog.New(slog.DiscardHandler), proxy.Observers{}); err != nil {
		t.Fatal(err)
	}
	m := s.acme.Load()
	t.Cleanup(m.cache.Stop)
	name := func(i int) string { return fmt.Sprintf("n%d.example.org", i) }
	for i := range 2*maxQuestions + 1 {
		if err := m.magic.Storage.Store(t.Context(), certmagic.StorageKeys.SiteCert(m.issuer.IssuerKey(), name(i)), []byte("a certificate")); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * maxQuestions {
		if w, allowed := m.order(t.Context(), name(i)); w == nil || !allowed {
			t.Errorf("name %d waits for the hook", i)
		}
	}
	if w, allowed := m.order(t.Context(), "other.example.org"); w == nil || allowed {
		t.Error("a name that is not stored does not wait for the hook")
	}
	m.onDemand.loaded.Store(true)
	if _, allowed := m.order(t.Context(), name(2*maxQuestions)); allowed { // it was not loaded: there is a reason
		t.Error("after all was loaded a stored name does not wait for the hook")
	}
}

func TestInvalidNamesAreNotOrdered(t *testing.T) {
	var requests atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	t.Cleanup(hook.Close)
	s := openStore(t, Config{RefuseUnknown: true, ACME: &ACME{OnDemand: &OnDemand{Ask: hook.URL, PerHour: 5}}})
	for _, name := range []string{"", "localhost", "192.0.2.1", "a..example.org", "../x.example.org", "*.example.org", "a_b.example.org", strings.Repeat("a.", 127) + "org"} {
		if cert, err := s.GetCertificate(newHello(name)); err != nil || cert != nil {
			t.Errorf("%q: %v, %v, want neither", name, cert, err)
		}
	}
	if got := requests.Load(); got != 0 {
		t.Errorf("the hook was asked %d times", got)
	}
}

// Criterion: the hook of certificates on demand is asked with ?domain=, once a minute for a name, and 20 times a second at most.
func TestHookIsAskedWithinLimits(t *testing.T) {
	var requests atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Query().Get("key") != "k" || !strings.HasSuffix(r.URL.Query().Get("domain"), ".example.org") {
			t.Errorf("asked for %s", r.URL)
		}
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound) // no yes
	}))
	t.Cleanup(hook.Close)
	var denied denialRecorder
	s := openStore(t, Config{RefuseUnknown: true, ACME: &ACME{OnDemand: &OnDemand{Ask: hook.URL + "/?key=k", PerHour: 5}}}, &denied)
	for range 5 {
		if cert, err := s.GetCertificate(newHello("a.example.org")); err != nil || cert != nil {
			t.Errorf("a name that the hook does not allow: %v, %v, want neither", cert, err)
		}
	}
	if got := requests.Load(); got != 1 {
		t.Errorf("one name was asked for %d times", got)
	}
	var flood sync.WaitGroup
	began := time.Now()
	for i := range 500 {
		flood.Go(func() { _, _ = s.GetCertificate(newHello(fmt.Sprintf("x%d.example.org", i))) })
	}
	flood.Wait()
	if most := int64(maxQuestions * (2 + time.Since(began)/questionsWindow)); requests.Load() > most {
		t.Errorf("500 names were asked for %d times in %v, want at most %d", requests.Load(), time.Since(began), most)
	}
	if denied.count(proxy.DeniedLimit) == 0 || denied.count(proxy.DeniedUnknown) == 0 {
		t.Errorf("the denials are %q", denied.reasons)
	}
}

func TestRenewalEndsWithThePermission(t *testing.T) {
	list := writeNames(t, "customer.example.org")
	s := openStore(t, Config{ACME: &ACME{Names: []string{"mail.example.org"}, OnDemand: &OnDemand{NamesFile: list, PerHour: 5}}})
	m := s.acme.Load()
	renew := func(name string) error {
		return m.onEvent(t.Context(), "cert_obtaining", map[string]any{"identifier": name, "renewal": true})
	}
	for name, allowed := range map[string]bool{"mail.example.org": true, "customer.example.org": true, "gone.example.org": false} {
		if err := renew(name); (err == nil) != allowed {
			t.Errorf("renewal of %s: %v, want allowed %v", name, err, allowed)
		}
	}
}

func TestBackoffsAreBounded(t *testing.T) {
	d, err := newOnDemand(&OnDemand{Ask: "http://127.0.0.1:1/", PerHour: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxBackoffs + 100 {
		d.finish(fmt.Sprint(i), &order{done: make(chan struct{})}, nil) // not allowed
	}
	if got := len(d.backoffs); got > maxBackoffs {
		t.Errorf("%d pauses are remembered, want at most %d", got, maxBackoffs)
	}
}

func TestBackoffGrowsWithEachFailure(t *testing.T) {
	d, err := newOnDemand(&OnDemand{Ask: "http://127.0.0.1:1/", PerHour: 1})
	if err != nil {
		t.Fatal(err)
	}
	var lengths []time.Duration
	for range 9 {
		w := &order{done: make(chan struct{})}
		w.allowed.Store(true)
		d.finish("a.example.org", w, http.ErrHandlerTimeout)
		lengths = append(lengths, d.backoffs["a.example.org"].length/time.Minute)
	}
	if want := []time.Duration{15, 30, 60, 120, 240, 480, 960, 1440, 1440}; !slices.Equal(lengths, want) {
		t.Errorf("pauses of %d minutes, want %d", lengths, want)
	}
}

func TestWindowLetsSoManyThrough(t *testing.T) {
	w := window{limit: 2, length: time.Hour}
	now := time.Now()
	for i, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {time.Minute, true}, {2 * time.Minute, false}, {59 * time.Minute, false}, {60 * time.Minute, true}, {60 * time.Minute, false}, {61 * time.Minute, true}} {
		if got := w.take(now.Add(c.after)); got != c.want {
			t.Errorf("take %d after %v = %v, want %v", i, c.after, got, c.want)
		}
	}
}

func TestNamesFileListsAllowedNames(t *testing.T) {
	f := &nameFile{path: writeNames(t, "# customers\nExample.org\n*.wild.example.net # all\n\n mail.example.com \n"), prefixes: []string{"imap", "pop"}}
	if _, err := f.reload(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"example.org": true, "imap.example.org": true, "pop.example.org": true, "smtp.example.org": false, "a.imap.example.org": false,
		"a.wild.example.net": true, "wild.example.net": false, "a.b.wild.example.net": false, "imap.a.wild.example.net": false,
		"mail.example.com": true, "imap.mail.example.com": true, "example.com": false, "org": false, "": false,
	} {
		if got := f.has(name); got != want {
			t.Errorf("%q may have a certificate: %v, want %v", name, got, want)
		}
	}
	if changed, err := f.reload(); changed || err != nil {
		t.Errorf("a file that has not changed: %v, %v", changed, err)
	}
	all, err := ReadNames(f.path, f.prefixes)
	want := []string{"example.org", "imap.example.org", "pop.example.org", "mail.example.com", "imap.mail.example.com", "pop.mail.example.com"}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("ReadNames = %q, %v, want %q", all, err, want)
	}
	if (*nameFile)(nil).has("example.org") {
		t.Error("no file allows something")
	}
}

func TestMistakesInANamesFileAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"example.org\nnot a name\n":       `:2: "not a name" is not a name such as example.org or *.example.org`,
		"*.*.example.org":                 `:1: "*.*.example.org" is not a name`,
		"192.0.2.1":                       `:1: "192.0.2.1" is not a name`,
		"\n" + strings.Repeat("x", 10000): ":2: bufio.Scanner: token too long",
	} {
		if _, err := readNames(writeNames(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("example.org\n*.example.net # x")
	f.Add("a b\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseNames(strings.NewReader(text))
		if err != nil {
			return
		}
		for name := range list.exact {
			if !isHostname(name) || name != strings.ToLower(name) {
				t.Errorf("%q is taken", name)
			}
		}
		for name := range list.parents {
			if !isHostname(name) {
				t.Errorf("*.%q is taken", name)
			}
		}
	})
}

func TestNameHasToPointHere(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	other, mapped := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("::ffff:192.0.2.1")
	for _, c := range []struct {
		found []netip.Addr
		ok    bool
	}{
		{[]netip.Addr{a}, true},
		{[]netip.Addr{mapped, b}, true},
		{[]netip.Addr{a, other}, false}, // the CA may ask at the other
		{nil, false},
	} {
		if err := checkAddresses("example.org", c.found, []netip.Addr{a, b}); (err == nil) != c.ok {
			t.Errorf("%v: %v, want here %v", c.found, err, c.ok)
		}
	}
}

// Criterion: the storage of ACME has mode 0700 and belongs to Postern's user, or nothing begins.
func TestStorageIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "certs")
	if err := OpenStorage(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the new folder is %v, %v", info.Mode(), err)
	}
	if err := CheckStorage(path, os.Geteuid()+1); err == nil || !strings.Contains(err.Error(), "belongs to user") {
		t.Errorf("for another user: %v", err)
	}
	if err := os.Chmod(path, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := OpenStorage(path); err == nil || !strings.Contains(err.Error(), "mode 0750") {
		t.Errorf("entered by a group: %v", err)
	}
	if err := CheckStorage(filepath.Join(path, "not", "yet"), 0); err != nil {
		t.Errorf("one that is not there yet: %v", err)
	}
}

func TestDNSKeyIsReadAsBINDWritesIt(t *testing.T) {
	for text, want := range map[string][3]string{
		"key \"postern\" {\n\talgorithm hmac-sha512;\n\tsecret \"c2VjcmV0\";\n};\n": {"postern", "hmac-sha512", "c2VjcmV0"},
		"key postern. { algorithm hmac-sha256; secret c2VjcmV0; };":                 {"postern.", "hmac-sha256", "c2VjcmV0"},
		"c2VjcmV0\n": {"configured", "hmac-sha1", "c2VjcmV0"},
	} {
		d := DNS{Server: "127.0.0.1:53", Key: writeNames(t, text), KeyName: "configured", Algorithm: "hmac-sha1"}
		p, err := d.provider()
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := [3]string{p.KeyName, p.KeyAlg, p.Key}; got != want {
			t.Errorf("%q is read as %q, want %q", text, got, want)
		}
	}
	if _, err := (DNS{Key: writeNames(t, "c2VjcmV0")}).provider(); err == nil {
		t.Error("a key without a name: no error")
	}
}

// An observerFunc observes events.
type observerFunc func(proxy.Event)

func (f observerFunc) Observe(e proxy.Event) { f(e) }

// A panic while a certificate is obtained is observed and ends the order: clients
// do not wait for it, and other names are served.
func TestPanicInAnOrderEndsTheOrder(t *testing.T) {
	hook := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(hook.Close)
	var panicked atomic.Int64
	s := openStore(t, Config{RefuseUnknown: true, ACME: &ACME{OnDemand: &OnDemand{Ask: hook.URL, PerHour: 5}}}, observerFunc(func(e proxy.Event) {
		switch e := e.(type) {
		case proxy.CertificateDenied:
			panic("a bug")
		case proxy.Panicked:
			if e.Value == "a bug" && len(e.Stack) > 0 {
				panicked.Add(1)
			}
		}
	}))
	for i, name := range []string{"a.example.org", "a.example.org", "b.example.org"} {
		began := time.Now()
		if cert, err := s.GetCertificate(newHello(name)); err != nil || cert != nil {
			t.Errorf("%d: GetCertificate = %v, %v, want neither", i, cert, err)
		}
		if took := time.Since(began); took > handshakeWait/2 {
			t.Errorf("%d: GetCertificate took %v", i, took)
		}
	}
	if got := panicked.Load(); got != 2 {
		t.Errorf("%d panics were observed, want 2", got)
	}
}
