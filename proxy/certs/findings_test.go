package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// An authority issues certificates: a root, and an intermediate below it.
type authority struct {
	root, intermediate []byte // DER
	issuer             *x509.Certificate
	key                *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	rootKey, key := newKey(t, false).(*ecdsa.PrivateKey), newKey(t, false).(*ecdsa.PrivateKey)
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign,
		}
	}
	root := ca("Test Root")
	a := &authority{key: key}
	a.root = create(t, root, root, rootKey.Public(), rootKey)
	a.intermediate = create(t, ca("Test Intermediate"), parse(t, a.root), key.Public(), rootKey)
	a.issuer = parse(t, a.intermediate)
	return a
}

func create(t *testing.T, template, parent *x509.Certificate, public, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leafTemplate is a certificate of 90 days without a fault.
func leafTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "mail.example.org"}, DNSNames: []string{"mail.example.org"},
		NotBefore: time.Now().AddDate(0, 0, -30), NotAfter: time.Now().AddDate(0, 0, 60),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

// write writes the pair p: a certificate as template has it, and the rest of the chain.
func (a *authority) write(t *testing.T, p Pair, template *x509.Certificate, chain ...[]byte) (leaf []byte) {
	t.Helper()
	key := newKey(t, false)
	leaf = create(t, template, a.issuer, key.Public(), a.key)
	writeChain(t, p.Cert, append([][]byte{leaf}, chain...)...)
	writeKey(t, p.Key, key)
	return leaf
}

func writeChain(t *testing.T, path string, chain ...[]byte) {
	t.Helper()
	var b []byte
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// classesOf returns the level and class of each Finding.
func classesOf(findings []Finding) (all []string) {
	for _, f := range findings {
		all = append(all, fmt.Sprint(f.Level, " ", f.Class))
	}
	return all
}

// Criterion: each fault of a certificate has a class, a level, and a sentence with the remedy and with times in UTC: expired, not yet valid, expiring, no SAN, wrong usage, incomplete or disordered chain, weak key or signature, a key that others can read.
func TestEachFaultOfACertificateIsFound(t *testing.T) {
	a := newAuthority(t)
	with := func(change func(*x509.Certificate)) *x509.Certificate {
		c := leafTemplate()
		change(c)
		return c
	}
	for name, test := range map[string]struct {
		write func(t *testing.T, p Pair)
		want  string // level and class; "": none
		text  string
		state string
	}{
		"none":                {func(t *testing.T, p Pair) { a.write(t, p, leafTemplate(), a.intermediate) }, "", "", "valid"},
		"none, with the root": {func(t *testing.T, p Pair) { a.write(t, p, leafTemplate(), a.intermediate, a.root) }, "", "", "valid"},
		"expired": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(0, 0, -1) }), a.intermediate)
		}, "ERROR expired", time.Now().AddDate(0, 0, -1).UTC().Format("2006-01-02 15:"), "EXPIRED"},
		"not yet valid": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) { c.NotBefore = time.Now().AddDate(0, 0, 1) }), a.intermediate)
		}, "ERROR not_yet_valid", " UTC", "NOT VALID YET"},
		"of 90 days, 13 left": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -77), time.Now().Add(13*24*time.Hour+time.Hour)
			}), a.intermediate)
		}, "WARN expires_soon", " UTC", "expires in 13 days"},
		"of 6 days, 2 left": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -4), time.Now().AddDate(0, 0, 2)
			}), a.intermediate)
		}, "", "", "valid"},
		"of 6 days, 1 left": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -5), time.Now().Add(25*time.Hour)
			}), a.intermediate)
		}, "WARN expires_soon", " UTC", "expires in 24 hours"},
		"common name only": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) { c.DNSNames = nil }), a.intermediate)
		}, "WARN no_san", "subjectAltName", "valid, no SAN"},
		"for clients": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), a.intermediate)
		}, "WARN not_for_servers", "serverAuth", "valid, not for servers"},
		"the issuer missing": {func(t *testing.T, p Pair) { a.write(t, p, leafTemplate()) },
			"INFO chain_incomplete", "Test Intermediate: append it, unless", "valid, issuer not in the file"},
		"the issuer missing, of a public CA": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://ca.example/i.der"} }), a.root)
		}, "WARN chain_incomplete", "append it (http://ca.example/i.der)", "valid, issuer not in the file"},
		"the chain in another order": {func(t *testing.T, p Pair) { a.write(t, p, leafTemplate(), a.root, a.intermediate) },
			"WARN chain_order", "Test Root after mail.example.org, which Test Intermediate has issued", "valid, wrong order"},
		"garbage in the chain": {func(t *testing.T, p Pair) { a.write(t, p, leafTemplate(), a.intermediate, []byte("garbage")) },
			"WARN chain_order", "certificate 3 of the file cannot be read", "valid, wrong order"},
		"self-signed": {func(t *testing.T, p Pair) {
			key := newKey(t, false)
			c := leafTemplate()
			writeChain(t, p.Cert, create(t, c, c, key.Public(), key))
			writeKey(t, p.Key, key)
		}, "INFO self_signed", "installed", "valid, self-signed"},
		"a short key": {func(t *testing.T, p Pair) {
			key, err := rsa.GenerateKey(rand.Reader, 1024)
			if err != nil {
				t.Fatal(err)
			}
			writeChain(t, p.Cert, create(t, leafTemplate(), a.issuer, key.Public(), a.key), a.intermediate)
			writeKey(t, p.Key, key)
		}, "WARN weak_key", "1024 bits", "valid, weak key"},
		"a curve that TLS lacks": {func(t *testing.T, p Pair) {
			key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			writeChain(t, p.Cert, create(t, leafTemplate(), a.issuer, key.Public(), a.key), a.intermediate)
			writeKey(t, p.Key, key)
		}, "ERROR weak_key", "P-224", "valid, weak key"},
		"SHA-1": {func(t *testing.T, p Pair) {
			a.write(t, p, with(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }), a.intermediate)
		}, "WARN weak_signature", "ECDSA-SHA1", "valid, weak signature"},
		"a key for everybody": {func(t *testing.T, p Pair) {
			a.write(t, p, leafTemplate(), a.intermediate)
			chmod(t, p.Key, 0o644)
		}, "WARN key_permissions", "has mode 0644", "valid, key readable or writable by others"},
		"a key that the group can change": {func(t *testing.T, p Pair) {
			a.write(t, p, leafTemplate(), a.intermediate)
			chmod(t, p.Key, 0o660)
		}, "WARN key_permissions", "chmod 0640", "valid, key readable or writable by others"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pairPaths(t)
			test.write(t, p)
			s, err := New(Config{Pairs: []Pair{p}})
			if err != nil {
				t.Fatal(err)
			}
			found := s.Findings()
			if got := strings.Join(classesOf(found), ", "); got != test.want {
				t.Fatalf("found %q, want %q: %+v", got, test.want, found)
			}
			if test.want != "" && (!strings.Contains(found[0].Text, test.text) || found[0].Path != p.Cert || found[0].Names[0] != "mail.example.org") {
				t.Errorf("found %+v, want %q in the text", found[0], test.text)
			}
			if list := s.List(t.Context()); list[0].State != test.state || len(list[0].Findings) != len(found) {
				t.Errorf("List() = %+v, want the state %q", list[0], test.state)
			}
			if got := s.Expiry()[0].State; got != test.state {
				t.Errorf("the state of Expiry is %q, want %q", got, test.state)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// Criterion: a pair or a folder that cannot be used is a finding that names the files and what they must be called.
func TestFilesThatCannotBeUsedAreFound(t *testing.T) {
	a := newAuthority(t)
	live := t.TempDir()
	a.write(t, subfolder(t, live, "good"), leafTemplate(), a.intermediate)
	expired := leafTemplate()
	expired.NotAfter = time.Now().AddDate(0, 0, -1)
	a.write(t, subfolder(t, live, "expired"), expired, a.intermediate)
	mismatch := subfolder(t, live, "mismatch")
	a.write(t, mismatch, leafTemplate(), a.intermediate)
	writeKey(t, mismatch.Key, newKey(t, false))
	last := subfolder(t, live, "last")
	leaf := a.write(t, last, leafTemplate())
	writeChain(t, last.Cert, a.intermediate, leaf)
	nokey := subfolder(t, live, "nokey")
	a.write(t, nokey, leafTemplate(), a.intermediate)
	misnamed := subfolder(t, live, "misnamed")
	a.write(t, Pair{filepath.Join(filepath.Dir(misnamed.Cert), "cert.pem"), filepath.Join(filepath.Dir(misnamed.Key), "key.pem")}, leafTemplate(), a.intermediate)
	broken := subfolder(t, live, "broken")
	a.write(t, Pair{filepath.Join(live, "flat.pem"), filepath.Join(live, "flat.txt")}, leafTemplate(), a.intermediate)
	subfolder(t, live, "empty")
	if err := os.WriteFile(filepath.Join(live, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(nokey.Key); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", broken.Cert); err != nil {
		t.Fatal(err)
	}

	s, err := New(Config{Folders: []string{live}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range s.Findings() {
		if f.Level != slog.LevelWarn || f.Source != SourceFolder || f.Origin != live {
			t.Errorf("%+v: want a warning about the folder", f)
		}
		got = append(got, fmt.Sprint(f.Class, ": ", strings.ReplaceAll(f.Text, live+"/", "")))
	}
	slices.Sort(got)
	const layout = "Postern reads NAME/fullchain.pem (the certificate, then its chain) and NAME/privkey.pem"
	want := []string{
		"chain_order: certificate last/fullchain.pem with key last/privkey.pem: the key belongs to certificate 2 of the file, which must be the first, with its issuer after it",
		"expired: it expired on " + utc(expired.NotAfter) + ", and mail programs refuse it: put the renewed one in its place, Postern reads it by itself",
		"folder_layout: broken is ignored: its fullchain.pem leads to a file that does not exist",
		"folder_layout: flat.pem is ignored, because it is in no subfolder: " + layout + "; if NAME is this folder, dir is the folder above",
		"folder_layout: misnamed is ignored: it has cert.pem, key.pem and no fullchain.pem: " + layout + ", so rename or link the files",
		"key_mismatch: certificate mismatch/fullchain.pem with key mismatch/privkey.pem: tls: private key does not match public key: put the certificate and its own key there",
		"unreadable: read key of certificate: open nokey/privkey.pem: no such file or directory",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var log lockedBuffer
	(&reporter{log: slog.New(slog.NewTextHandler(&log, nil))}).report(t.Context(), s)
	if got := log.String(); strings.Count(got, `msg="certificate not loaded"`) != 3 || strings.Contains(got, "the old one is served") {
		t.Errorf("of three pairs that were never loaded the log says\n%s", got)
	}
	empty, err := New(Config{Folders: []string{t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	if got := classesOf(empty.Findings()); !slices.Equal(got, []string{"ERROR no_certificate", "WARN folder_layout"}) {
		t.Errorf("in an empty folder: %v", got)
	}

	// What is put right is found no more.
	if err := os.Remove(filepath.Join(live, "flat.pem")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"expired", "mismatch", "last", "nokey", "misnamed", "broken"} {
		p := subfolder(t, live, name)
		_ = os.Remove(p.Cert)
		a.write(t, p, leafTemplate(), a.intermediate)
	}
	if _, err := s.reload(); err != nil {
		t.Fatal(err)
	}
	if got := s.Findings(); len(got) != 0 {
		t.Errorf("after all is put right: %+v", got)
	}
}

func TestNameThatNoCertificateHasIsFound(t *testing.T) {
	names := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(names, []byte("customer.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := pairPaths(t)
	a := newAuthority(t)
	c := leafTemplate()
	c.DNSNames = []string{"mail.example.org", "*.example.com"}
	a.write(t, p, c, a.intermediate)
	for name, acme := range map[string]*ACME{
		"mail.example.org":      nil,
		"imap.example.com":      nil,
		"acme.example.net":      {Names: []string{"acme.example.net"}},
		"mail.customer.example": {OnDemand: &OnDemand{NamesFile: names, Prefixes: []string{"mail"}}},
		"unknown.example":       {OnDemand: &OnDemand{Ask: "http://127.0.0.1:1/"}}, // the hook may allow it
	} {
		s := Inspect(Config{Pairs: []Pair{p}, Expected: []string{name}, ACME: acme})
		if got := s.Findings(); len(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, acme := range map[string]*ACME{
		"imap.example.org":      nil,
		"a.b.example.com":       nil,
		"other.example.net":     {Names: []string{"acme.example.net"}},
		"imap.customer.example": {OnDemand: &OnDemand{NamesFile: names, Prefixes: []string{"mail"}}},
	} {
		s := Inspect(Config{Pairs: []Pair{p}, Expected: []string{name}, ACME: acme})
		if got := s.Findings(); len(got) != 1 || got[0].Class != NameNotCovered || got[0].Names[0] != name {
			t.Errorf("%s: %+v, want that no certificate has it", name, got)
		}
	}
}

// watchInterval is longer than in Postern: weeks of it are simulated.
const watchInterval = 20 * time.Second

// watched is a Store with one pair that is watched in a bubble, and its log.
func watched(t *testing.T, a *authority, template *x509.Certificate) (s *Store, p Pair, log *lockedBuffer) {
	t.Helper()
	p = pairPaths(t)
	a.write(t, p, template, a.intermediate)
	s, err := New(Config{Pairs: []Pair{p}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	log = &lockedBuffer{}
	var watching sync.WaitGroup
	watching.Go(func() {
		s.Watch(ctx, watchInterval, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "file" || a.Key == "err" {
				return slog.Attr{}
			}
			return a
		}})))
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
	return s, p, log
}

// logged returns and clears what was logged.
func (l *lockedBuffer) logged() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// Criterion: a certificate that expires while Postern runs is logged 14 days before, when it happens, and again each day, until a renewed one is in its place.
func TestCertificateThatExpiresWhilePosternRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		c := leafTemplate()
		c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -70), time.Now().AddDate(0, 0, 20).Add(30*time.Second)
		s, p, log := watched(t, a, c)
		const (
			soon    = "level=WARN msg=\"certificate needs attention\" reason=expires_soon names=[mail.example.org]\n"
			expired = "level=ERROR msg=\"certificate has expired\" reason=expired names=[mail.example.org]\n"
		)
		after := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := log.logged(); got != want {
				t.Errorf("logged\n%s\nwant\n%s", got, want)
			}
		}
		const day = 24 * time.Hour
		after(5*day, "")
		after(day+2*time.Minute, soon)
		after(day, soon)
		after(12*day, strings.Repeat(soon, 12))
		after(day, expired)
		after(day, expired)
		if err := s.Configure(s.config); err != nil {
			t.Fatal(err)
		}
		after(time.Minute, expired) // a reload says so again
		a.write(t, p, leafTemplate(), a.intermediate)
		after(time.Minute, "level=INFO msg=\"certificate reloaded\" names=[mail.example.org] not_after="+
			time.Now().AddDate(0, 0, 60).UTC().Format("2006-01-02T15:04:05.000Z")+"\n")
		after(30*day, "")
	})
}

// Criterion: a certificate that is not valid replaces no valid one, and "certificate reloaded" is never logged for it.
func TestCertificateThatIsNotValidReplacesNoValidOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s, p, log := watched(t, a, leafTemplate())
		first := s.current.Load().certs[0].Leaf
		look := func(want string) *x509.Certificate {
			t.Helper()
			time.Sleep(watchInterval + time.Second)
			synctest.Wait()
			if got := log.logged(); got != want {
				t.Errorf("logged\n%s\nwant\n%s", got, want)
			}
			return s.current.Load().certs[0].Leaf
		}
		const kept = "level=WARN msg=\"certificate not reloaded: the old one is served\" reason=not_better names=[mail.example.org]\n"
		expired, early := leafTemplate(), leafTemplate()
		expired.NotAfter = time.Now().AddDate(0, 0, -1)
		early.NotBefore, early.NotAfter = time.Now().Add(time.Hour), time.Now().Add(12*time.Hour)
		look("")
		a.write(t, p, expired, a.intermediate)
		if !look(kept).Equal(first) {
			t.Error("an expired certificate is served instead of a valid one")
		}
		if err := s.Configure(s.config); err != nil {
			t.Errorf("the configuration is refused because of an expired certificate: %v", err)
		}
		if !look(kept).Equal(first) {
			t.Error("an expired certificate is served instead of a valid one after a reload")
		}
		if got := s.List(t.Context())[0].State; got != "valid, new files not loaded: not valid" {
			t.Errorf("the state is %q", got)
		}
		next := parse(t, a.write(t, p, early, a.intermediate))
		if !look(kept).Equal(first) {
			t.Error("a certificate that is not valid yet is served instead of a valid one")
		}
		time.Sleep(time.Hour)
		if !look("level=INFO msg=\"certificate reloaded\" names=[mail.example.org] not_after=" + next.NotAfter.UTC().Format("2006-01-02T15:04:05.000Z") + "\n").Equal(next) {
			t.Error("it is not served when its time has come")
		}

		// Of two that are not valid the one that ends later is served.
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		log.logged()
		later := leafTemplate()
		later.NotAfter = time.Now().Add(-time.Minute)
		last := parse(t, a.write(t, p, later, a.intermediate))
		if !look("level=ERROR msg=\"certificate has expired\" reason=expired names=[mail.example.org]\n").Equal(last) {
			t.Error("of two that have expired the later one is not served")
		}
	})
}

func TestLogOfManyFaultsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		live := t.TempDir()
		expired := leafTemplate()
		expired.NotAfter = time.Now().AddDate(0, 0, -1)
		for i := range 3 * maxLines {
			a.write(t, subfolder(t, live, fmt.Sprint(i)), expired, a.intermediate)
		}
		s, err := New(Config{Folders: []string{live}})
		if err != nil {
			t.Fatal(err)
		}
		var log lockedBuffer
		r := reporter{log: slog.New(slog.NewTextHandler(&log, nil))}
		r.report(t.Context(), s)
		r.report(t.Context(), s)
		if lines, got := strings.Count(log.String(), "\n"), log.String(); lines != maxLines+1 || !strings.Contains(got, "more=100") {
			t.Errorf("%d lines, want %d and one that says how many more; the last: %s", lines, maxLines, got[len(got)-200:])
		}
	})
}

// Criterion: what is valid for a client is called valid: a client verifies the chain of a pair without findings.
func TestPairWithoutFindingsIsAccepted(t *testing.T) {
	a := newAuthority(t)
	p := pairPaths(t)
	a.write(t, p, leafTemplate(), a.intermediate)
	s, err := New(Config{Pairs: []Pair{p}, Expected: []string{"mail.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	if found := s.Findings(); found != nil {
		t.Fatalf("found %+v", found)
	}
	client := clientConfig("mail.example.org")
	client.InsecureSkipVerify, client.RootCAs = false, x509.NewCertPool()
	client.RootCAs.AddCert(parse(t, a.root))
	if _, _, err := handshake(t, s.TLS(proxy.IMAP, proxy.Modern), client); err != nil {
		t.Error(err)
	}
}
