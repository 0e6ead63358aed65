package main

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/proxytest"
)

// What sslscan finds with an RSA and an ECDSA certificate.
var (
	modernSuites = []string{
		"TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2 ECDHE-ECDSA-CHACHA20-POLY1305",
		"TLSv1.2 ECDHE-RSA-AES128-GCM-SHA256", "TLSv1.2 ECDHE-RSA-AES256-GCM-SHA384", "TLSv1.2 ECDHE-RSA-CHACHA20-POLY1305",
		"TLSv1.3 TLS_AES_128_GCM_SHA256", "TLSv1.3 TLS_AES_256_GCM_SHA384", "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256",
	}
	ecdheCBC = []string{"ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES256-SHA"}
	oldest   = []string{"AES128-SHA", "AES256-SHA", "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", "TLS_RSA_WITH_3DES_EDE_CBC_SHA"}
)

// of returns suites as sslscan names them under a version.
func of(version string, suites ...string) (all []string) {
	for _, s := range suites {
		all = append(all, version+" "+s)
	}
	return all
}

// profiles serves modern at one address, with a listener of legacy for clients
// from 127.0.0.2, and compatible at another.
func profiles(t *testing.T) *running {
	t.Helper()
	ecdsaCert, ecdsaKey, _ := proxytest.CertFiles(t)
	rsaCert, rsaKey := proxytest.RSACertFiles(t, "localhost")
	store, err := certs.New(certs.Config{Pairs: []certs.Pair{{Cert: rsaCert, Key: rsaKey}, {Cert: ecdsaCert, Key: ecdsaKey}}})
	if err != nil {
		t.Fatal(err)
	}
	imap, _ := inMemory(t, "one", "alice")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	cfg, err := configs.Parse("test.yaml", fmt.Appendf(nil, baseConfig+`
listeners:
  - {protocol: imap, address: "127.0.0.1:%[1]d"}
  - {protocol: imap, name: legacy, address: "127.0.0.1:%[1]d", tls_profile: legacy, networks: [127.0.0.2]}
  - {protocol: imap, name: compatible, address: "127.0.0.1:0", tls_profile: compatible}
backends: {main: {imap: {address: %[2]q, tls: none}}}
trusted_networks: [127.0.0.0/8]
`, portOf(free), imap))
	if err != nil {
		t.Fatal(err)
	}
	return startService(t, cfg, store, io.Discard)
}

// from listens for programs that cannot choose where they connect from, and
// passes all on to address, from source.
func from(t *testing.T, source, address string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := d.Dial("tcp", address)
			if err != nil {
				_ = near.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_ = to.(*net.TCPConn).CloseWrite()
			}
			go pass(far, near)
			go pass(near, far)
		}
	}()
	return ln.Addr().String()
}

// Criterion: sslscan finds in each profile what it promises and nothing else: the legacy listener at an address that others share is for its networks alone.
func TestProfilesAsScannedFromOutside(t *testing.T) {
	proxytest.Need(t, "sslscan")
	t.Parallel()
	r := profiles(t)
	compatible := slices.Concat(modernSuites, of("TLSv1.2", ecdheCBC...))
	for name, test := range map[string]struct {
		address string
		want    []string
	}{
		"modern":     {r.addresses["imap"], modernSuites},
		"neighbour":  {from(t, "127.0.0.3", r.addresses["imap"]), modernSuites},
		"compatible": {r.addresses["compatible"], compatible},
		"legacy": {from(t, "127.0.0.2", r.addresses["imap"]), slices.Concat(compatible,
			of("TLSv1.2", "AES128-GCM-SHA256", "AES256-GCM-SHA384"), of("TLSv1.2", oldest...),
			of("TLSv1.1", ecdheCBC...), of("TLSv1.1", oldest...), of("TLSv1.0", ecdheCBC...), of("TLSv1.0", oldest...))},
	} {
		if got, want := sslscan(t, test.address), sorted(slices.Clone(test.want)); !slices.Equal(got, want) {
			t.Errorf("%s: sslscan finds %q, want %q", name, got, want)
		}
	}
}

// sslscan returns the suites that a server takes, as "VERSION SUITE".
func sslscan(t *testing.T, address string) (accepted []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sslscan", "--xml=-", "--no-check-certificate", "--timeout=20", address).Output()
	if err != nil {
		t.Fatalf("sslscan: %v\n%s", err, out)
	}
	var document struct {
		Ciphers []struct {
			Version string `xml:"sslversion,attr"`
			Name    string `xml:"cipher,attr"`
		} `xml:"ssltest>cipher"`
	}
	if err := xml.Unmarshal(out, &document); err != nil {
		t.Fatal(err)
	}
	for _, c := range document.Ciphers {
		accepted = append(accepted, c.Version+" "+c.Name)
	}
	return sorted(accepted)
}

// Criterion: testssl.sh finds nothing below OK in the profile modern: protocols, cipher categories, forward secrecy and the known attacks.
func TestTestsslFindsNothingInModern(t *testing.T) {
	proxytest.Need(t, "testssl", "hexdump", "openssl")
	t.Parallel()
	r := profiles(t)
	report := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(t.Context(), "testssl", "-p", "-s", "-f", "-U", "--quiet", "--color", "0", "--warnings", "off",
		"--nodns", "none", "--sneaky", "--connect-timeout", "20", "--openssl-timeout", "20", "--jsonfile", report, r.addresses["imap"])
	out, err := cmd.CombinedOutput() // its status counts findings
	data, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Fatalf("testssl: %v\n%s", err, out)
	}
	var findings []struct{ ID, Severity, Finding string }
	if err := json.Unmarshal(data, &findings); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	passed := map[string]bool{}
	for _, f := range findings {
		switch f.Severity {
		case "OK", "INFO":
			passed[f.ID] = true
		default:
			// It says of itself that it has an openssl without GOST, and that
			// it knows no IMAP on such a port.
			if f.ID != "engine_problem" && f.ID != "service" {
				t.Errorf("%s: %s, %s", f.Severity, f.ID, f.Finding)
			}
		}
	}
	for _, id := range []string{"TLS1", "TLS1_1", "TLS1_2", "TLS1_3", "cipherlist_3DES_IDEA", "cipherlist_STRONG", "PFS", "heartbleed", "ROBOT", "secure_client_renego", "SWEET32", "LUCKY13"} {
		if !passed[id] {
			t.Errorf("testssl does not speak of %s:\n%s", id, out)
		}
	}
}

// Criterion: While 10,000 clients have begun handshakes and do not go on, a client of a known network logs in within 2 s; each of those is dropped after 10 s.
func TestHalfOpenHandshakesHoldNobodyUp(t *testing.T) {
	const each, slow, late = 5_000, 2 * time.Second, 20 * time.Second // late: of a loaded machine
	imap, _ := inMemory(t, "one", "alice")
	p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, tls: none}", imap)}, "limits: {max_connections: 15000}\n")
	var crowds []*crowd
	for _, sends := range []string{sendNothing, sendHalf} {
		crowds = append(crowds, gather(t, p.imap, sends, each))
	}
	for range 5 {
		begun := time.Now()
		c := dialTLS(t, p.imap, p.ca)
		proxytest.Transcript(t, c, `
			S: \* OK *
			C: a LOGIN alice "secret of alice"
			S: a OK *
		`)
		if took := time.Since(begun); took > slow {
			t.Errorf("a login took %v", took)
		}
		_ = c.Close()
	}
	var waiting sync.WaitGroup
	for _, c := range crowds {
		waiting.Go(func() {
			longest := c.longest(t)
			t.Logf("the last was dropped after %v", longest)
			if longest > late {
				t.Errorf("somebody who had begun a handshake was there for %v", longest)
			}
		})
	}
	waiting.Wait()
}

// BenchmarkHalfOpen is what a client costs that begins a handshake and does not
// go on.
func BenchmarkHalfOpen(b *testing.B) {
	const n = 10_000
	for _, sends := range []string{sendNothing, sendHalf, sendAll} {
		b.Run(sends, func(b *testing.B) {
			for b.Loop() {
				imap, _ := inMemory(b, "one", "alice")
				p := startPostern(b, behind{imap: fmt.Sprintf("{address: %q, tls: none}", imap)},
					"limits: {max_connections: 15000}\ntimeouts: {handshake: 2m}\n")
				before := p.share(b)
				c := gather(b, p.imap, sends, n)
				at := p.share(b)
				time.Sleep(20 * time.Second) // the collector comes by itself, and gives back
				later := p.share(b)
				b.ReportMetric(float64(at-before)/n/1024, "KB/conn")
				b.ReportMetric(float64(later-before)/n/1024, "later-KB/conn")
				c.leave()
			}
		})
	}
}

// share returns the proportional share of memory of Postern, in octets.
func (p *postern) share(b *testing.B) int {
	b.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no Pss")
	return 0
}
