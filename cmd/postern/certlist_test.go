package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/certs"
	"postern/proxy/proxytest"
)

// certified is a configuration with a certificate, and more of tls, in a folder
// that everybody may enter.
func certified(t *testing.T, tls string) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key, _ := proxytest.CertFiles(t)
	for name, from := range map[string]string{"mail.pem": cert, "mail.key": key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(dir, "postern.yaml")
	text := fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
tls:
  certificates: [{cert: mail.pem, key: mail.key}]
%s
backends: {main: {imap: {address: "127.0.0.1:143", tls: none}}}
state: {path: %s}
metrics: {address: off}
`, tls, filepath.Join(dir, "state"))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func said(t *testing.T, args ...string) (status int, out, complaints string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = command(t.Context(), args, &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// Criterion: `postern check`, run by root, names the key that the service's user cannot read.
func TestCheckLooksAsTheServicesUser(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to become another user")
	}
	path := certified(t, "")
	key := filepath.Join(filepath.Dir(path), "mail.key")
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, complaints := said(t, "check", "--config", path, "--as", "nobody")
	if status != 1 || !strings.Contains(complaints, "as the user nobody:") ||
		!strings.Contains(complaints, "tls.certificates[0].key: open "+key+": permission denied") {
		t.Errorf("check as nobody of a key for root: status %d, %s", status, complaints)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, out, complaints := said(t, "check", "--config", path, "--as", "nobody"); status != 0 {
		t.Errorf("check as nobody of what it may read: status %d, %s%s", status, out, complaints)
	}
	if status, _, complaints := said(t, "check", "--config", path, "--as", "no-such-user"); status != 1 || !strings.Contains(complaints, "unknown user") {
		t.Errorf("check as nobody who exists: status %d, %s", status, complaints)
	}
}

// Criterion: `postern check` explains for each challenge of ACME whether it can work with the listeners.
func TestCheckExplainsChallenges(t *testing.T) {
	http := certified(t, `  acme: {email: ops@example.org, names: [mail.example.org], http_address: "127.0.0.1:8402"}`)
	dns := certified(t, `  acme: {email: ops@example.org, names: [mail.example.org], challenge: dns-01, dns: {server: "127.0.0.1:53", key_file: mail.key}}`)
	for path, want := range map[string][]string{
		http: {
			"challenge http-01 is used: the CA asks at port 80, and the web server there has to pass /.well-known/acme-challenge/ on to 127.0.0.1:8402 with the Host as it is",
			"challenge tls-alpn-01 could be used: the CA asks at port 443, ",
			"challenge dns-01 could be used: the CA asks the DNS, no port is needed, but a server that takes records (tls.acme.dns)",
		},
		dns: {
			"challenge http-01 could be used: the CA asks at port 80, ",
			"challenge dns-01 is used: the CA asks the DNS, no port is needed; 127.0.0.1:53 is given the records",
		},
	} {
		status, out, complaints := said(t, "check", "--config", path)
		if status != 0 {
			t.Fatalf("check: %s", complaints)
		}
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("check says\n%s, want %q", out, line)
			}
		}
	}
}

// Criterion: `postern certs` lists name, source, issuer, expiry and next renewal, whether or not a Postern runs.
func TestCertsAreListed(t *testing.T) {
	path := certified(t, `  acme: {email: ops@example.org, names: [new.example.org]}`)
	cfg, err := configs.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^NAME +SOURCE +ISSUER +EXPIRES +RENEWAL\n(.*\n)*localhost +file +\S.* +20\d\d-\d\d-\d\d \d\d:\d\d +-\n(.*\n)*new\.example\.org +acme +- +- +-\n`)
	_, fromFiles, complaints := said(t, "certs", "--config", path)
	if !want.MatchString(fromFiles) {
		t.Errorf("certs without a Postern says\n%s%s", fromFiles, complaints)
	}

	store, err := openStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &admin.Server{Log: slog.New(slog.DiscardHandler)}
	answerCerts(s, store)
	ln, err := admin.Listen(cfg.Control.Socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), ln) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, asked, complaints := said(t, "certs", "--config", path); asked != fromFiles {
		t.Errorf("the Postern that runs says\n%s%s, want\n%s", asked, complaints, fromFiles)
	}
	if status, _, complaints := said(t, "certs", "renew", "--config", path, "other.example.org"); status != 1 ||
		!strings.Contains(complaints, "other.example.org has no certificate by ACME") {
		t.Errorf("renew of an unknown name: status %d, %s", status, complaints)
	}
}

func TestObtainWantsAddressesOfOurs(t *testing.T) {
	listener := func(address string) configs.Listener { return configs.Listener{Address: address} }
	ours := netip.MustParseAddr("192.0.2.7")
	for _, c := range []struct {
		name  string
		cfg   configs.Config
		given []string
		want  []netip.Addr
	}{
		{"given", configs.Config{TLS: configs.TLS{ACME: &configs.ACME{}}}, []string{"192.0.2.7"}, []netip.Addr{ours}},
		{"configured", configs.Config{TLS: configs.TLS{ACME: &configs.ACME{OnDemand: &configs.OnDemand{Addresses: []netip.Addr{ours}}}}}, nil, []netip.Addr{ours}},
		{"of a listener", configs.Config{
			TLS: configs.TLS{ACME: &configs.ACME{}}, Listeners: []configs.Listener{listener("192.0.2.7:993")},
		}, nil, []netip.Addr{ours}},
	} {
		got, err := ownAddresses(&c.cfg, c.given)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	if _, err := ownAddresses(&configs.Config{}, []string{"here"}); err == nil {
		t.Error("an address that is none is taken")
	}
}

func TestObtainTellsItsProgress(t *testing.T) {
	var b bytes.Buffer
	r := report{out: &b, began: time.Now(), counts: map[string]int{}}
	r.tell(certs.Progress{Name: "a.example.org", Result: certs.ObtainedNow, Done: 1, All: 3})
	r.tell(certs.Progress{Name: "b.example.org", Result: certs.ObtainSkipped, Err: io.EOF, Done: 2, All: 3})
	r.tell(certs.Progress{Name: "c.example.org", Result: certs.ObtainedBefore, Done: 3, All: 3})
	r.end()
	want := "a.example.org: obtained\nb.example.org: skipped: EOF\n1 obtained, 1 there already, 1 skipped, 0 failed\n"
	if b.String() != want {
		t.Errorf("told\n%s, want\n%s", b.String(), want)
	}
}

// Criterion: readiness is degraded when less than 5 % of a certificate's lifetime is left.
func TestReadinessIsDegradedNearTheEndOfACertificate(t *testing.T) {
	cert, err := certs.SelfSigned("mail.example.org")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for left, degraded := range map[time.Duration]bool{6 * time.Hour: false, 4 * time.Hour: true, -time.Hour: true} {
		cert.Leaf.NotAfter = now.Add(left)
		cert.Leaf.NotBefore = cert.Leaf.NotAfter.Add(-100 * time.Hour)
		store, err := certs.Static(cert)
		if err != nil {
			t.Fatal(err)
		}
		if err := newSite(store, slog.New(slog.DiscardHandler), nil).worn(); (err != nil) != degraded {
			t.Errorf("with %v of 100h left: %v, want degraded: %v", left, err, degraded)
		}
	}
}
