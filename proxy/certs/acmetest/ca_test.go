// Package acmetest tries the certificates by ACME against pebble, a CA for
// tests, in this process: nothing leaves 127.0.0.1.
package acmetest

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"postern/proxy/certs"
)

func TestMain(m *testing.M) {
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0",
	} {
		if err := os.Setenv(name, value); err != nil {
			log.Fatal(err)
		}
	}
	rand.Reader = longSerials{rand.Reader}
	os.Exit(m.Run())
}

// longSerials sets the second bit of numbers of 8 octets, which are pebble's serial numbers.
// The order of a shorter one whose first octet is above 7F is not found by pebble: the
// identifier of RFC 9773 section 4.1 begins with an octet of zero, the order's key does not.
type longSerials struct{ io.Reader }

func (r longSerials) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if len(p) == 8 && n == 8 {
		p[0] |= 0x40
	}
	return n, err
}

// The shared key of updates to the DNS (RFC 8945).
const (
	keyName   = "postern."
	keySecret = "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgb2N0ZXRzIQ=="
)

// A zone is the server of example.test: all its names are at 127.0.0.1,
// but those that are elsewhere.
type zone struct {
	mu      sync.Mutex
	txt     map[string][]string
	updates int
	addr    string
}

func startZone(t *testing.T) *zone {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{txt: map[string][]string{}, addr: addr}
	secrets := map[string]string{keyName: keySecret}
	for _, s := range []*dns.Server{
		{PacketConn: packets, Handler: z, TsigSecret: secrets},
		{Listener: ln, Handler: z, TsigSecret: secrets},
	} {
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return z
}

func (z *zone) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg).SetReply(r)
	m.Authoritative = true
	if r.Opcode == dns.OpcodeUpdate {
		z.update(w, r, m)
		return
	}
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: t, Class: dns.ClassINET, Ttl: 1}
	}
	soa := &dns.SOA{
		Hdr: dns.RR_Header{Name: "example.test.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1},
		Ns:  "ns.example.test.", Mbox: "h.example.test.", Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: 1,
	}
	switch q.Qtype {
	case dns.TypeA:
		last := byte(1)
		if strings.Contains(name, "elsewhere") {
			last = 2
		}
		m.Answer = append(m.Answer, &dns.A{Hdr: header(dns.TypeA), A: net.IPv4(127, 0, 0, last)})
	case dns.TypeSOA:
		if name == "example.test." {
			m.Answer = append(m.Answer, soa)
		} else {
			m.Ns = append(m.Ns, soa)
		}
	case dns.TypeTXT:
		for _, value := range z.txt[name] {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header(dns.TypeTXT), Txt: []string{value}})
		}
	}
	_ = w.WriteMsg(m)
}

// update takes records that are signed, and only those.
func (z *zone) update(w dns.ResponseWriter, r, m *dns.Msg) {
	if r.IsTsig() == nil || w.TsigStatus() != nil {
		m.Rcode = dns.RcodeNotAuth
		_ = w.WriteMsg(m)
		return
	}
	z.updates++
	for _, rr := range r.Ns {
		txt, ok := rr.(*dns.TXT)
		if !ok {
			continue
		}
		name := strings.ToLower(txt.Hdr.Name)
		if txt.Hdr.Class == dns.ClassNONE {
			delete(z.txt, name)
		} else {
			z.txt[name] = append(z.txt[name], txt.Txt...)
		}
	}
	m.SetTsig(keyName, dns.HmacSHA256, 300, time.Now().Unix())
	_ = w.WriteMsg(m)
}

// authorities counts them: certmagic keeps challenges and retries by name, for
// all of a process, so each test has a name of its own.
var authorities atomic.Int64

// An authority is a CA and what a client of its needs.
type authority struct {
	name      string // that a test may use
	directory string
	file      string         // the CA of the directory
	roots     *x509.CertPool // of the certificates it gives
	zone      *zone
	port      int // where it asks
	began     time.Time

	orders atomic.Int64
	down   atomic.Bool
	renew  atomic.Bool // its renewal information says: now
}

// An option changes how the CA is made.
type option func(*options)

type options struct {
	life time.Duration
	eab  bool
}

func lifeOf(d time.Duration) option { return func(o *options) { o.life = d } }
func needsEAB(o *options)           { o.eab = true }

const (
	eabKeyID = "kid-1"
	eabKey   = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
)

func startCA(t *testing.T, set ...option) *authority {
	t.Helper()
	o := options{life: 90 * 24 * time.Hour}
	for _, f := range set {
		f(&o)
	}
	a := &authority{zone: startZone(t), port: freePort(t), began: time.Now(), name: fmt.Sprintf("mail%d.example.test", authorities.Add(1))}
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	if o.eab {
		if err := store.AddExternalAccountKeyByID(eabKeyID, eabKey); err != nil {
			t.Fatal(err)
		}
	}
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1,
		map[string]ca.Profile{"test": {Description: "test", ValidityPeriod: uint64(o.life.Seconds())}})
	front := wfe.New(quiet, store, va.New(quiet, a.port, a.port, false, a.zone.addr, store), authority,
		[]string{"pebble.test"}, false, o.eab, 1, 1)
	server := httptest.NewTLSServer(a.watch(front.Handler()))
	t.Cleanup(server.Close)
	a.directory = server.URL + "/dir"
	a.file = filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	a.roots = x509.NewCertPool()
	if !a.roots.AppendCertsFromPEM(authority.GetRootCert(0).PEM()) {
		t.Fatal("the CA has no root")
	}
	return a
}

// watch counts orders, is down when told so, and answers itself when to renew:
// pebble's answer is in terms of days.
func (a *authority) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case a.down.Load():
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		case strings.Contains(r.URL.Path, "/renewalInfo/"):
			begin := a.began.Add(24 * time.Hour)
			if a.renew.Load() {
				begin = a.began.Add(-2 * time.Hour)
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "1")
			_ = json.NewEncoder(w).Encode(map[string]any{"suggestedWindow": map[string]time.Time{
				"start": begin.UTC().Truncate(time.Second), "end": begin.UTC().Truncate(time.Second).Add(time.Hour),
			}})
			return
		case r.URL.Path == "/order-plz":
			a.orders.Add(1)
		}
		next.ServeHTTP(w, r)
	})
}

// acme is how to get certificates from a, answering by HTTP-01.
func (a *authority) acme(t *testing.T, names ...string) *certs.ACME {
	t.Helper()
	storage := filepath.Join(t.TempDir(), "certs")
	return &certs.ACME{
		Directory: a.directory, CA: a.file, Email: "ops@example.test", Profile: "test", Names: names, Storage: storage,
		Challenge: certs.HTTP01, Address: fmt.Sprintf("127.0.0.1:%d", a.port), Every: time.Second,
	}
}

// ports counts those given out. They are below what the system gives to
// connections, so that nobody else gets them.
var ports atomic.Int64

func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 21000 + (os.Getpid()*20+int(ports.Add(1)))%10000
		if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
