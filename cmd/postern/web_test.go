package main

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// Criterion: A crowd at an HTTP port, however large and patient, takes few descriptors, and mail, metrics and readiness are served beside it.
func TestACrowdAtAnHTTPPortTakesNothingFromMail(t *testing.T) {
	proxytest.Need(t, "prlimit")
	imap, _ := inMemory(t, "mail", "alice")
	ready := proxytest.FreeAddress(t)
	p := launchWith(t, imap, fmt.Sprintf("ready_address: %q", ready))
	allow(t, p.cmd.Process.Pid, 300) // fewer than come
	descriptors := func() int {
		used, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(used)
	}
	before := descriptors()
	for i := range 400 {
		c := dialFrom(t, fmt.Sprintf("127.5.%d.%d", i/200, 1+i%200), ready)
		_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: ") // and nothing more
	}
	within(t, 3*time.Second, "few of them are left, before they have to be", func() bool { return descriptors()-before <= 300/4/4 })
	if err := checkReady(t.Context(), ready); err != nil {
		t.Errorf("readiness among them: %v", err)
	}
	talk(t, p.imap, p.ca, lines("S: \\* OK *", `C: a LOGIN alice "secret of alice"`, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
	p.scrape(t)
}

// launchWith starts a Postern with IMAP alone, and more keys of metrics.
func launchWith(t *testing.T, imap, more string) *postern {
	t.Helper()
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	p := newPostern(dir, ca)
	p.start(t, file(t, dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}}}
log: {format: json}
metrics: {%s, address: "127.0.0.1:0"}
`, cert, key, imap, more)))
	p.listens(t, 1)
	for _, l := range p.logged(t, "serving HTTP") {
		if l.text("what") == "metrics" {
			p.metrics = l.text("address")
		}
	}
	return p
}
