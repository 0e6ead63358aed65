package service

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/proxytest"
)

// Criterion: A reload changes how many connections an account may have, up and down; those that are open count on, at both listeners, and end no sooner for it.
func TestAReloadCountsConnectionsOn(t *testing.T) {
	cert, key, _ := proxytest.CertFiles(t)
	backend, _ := inMemory(t, "m", "alice", "bob")
	path := filepath.Join(t.TempDir(), "postern.yaml")
	one, two := proxytest.FreeAddress(t), proxytest.FreeAddress(t)
	write := func(limit string) {
		t.Helper()
		text := fmt.Appendf(nil, `
hostname: mail.example.org
listeners: [{protocol: imap, address: %q}, {protocol: imap, address: %q}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}, %s account_wait: 0s}}
metrics: {address: off}
control: {socket: off}
`, one, two, cert, key, backend, limit)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("account_connections: {imap: 2},")
	cfg, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	store, err := certs.New(CertificateSources(cfg))
	if err != nil {
		t.Fatal(err)
	}
	r := startServiceWith(t, cfg, store, t.Output())
	r.service.path = path
	logIn := func(listener, user, want string) *tls.Conn {
		t.Helper()
		c := tls.Client(r.dial(t, listener), &tls.Config{InsecureSkipVerify: true})
		proxytest.Transcript(t, c, fmt.Sprintf("S: \\* OK *\nC: a LOGIN %s \"secret of %s\"\nS: a %s", user, user, want))
		return c
	}
	const full = "NO \\[LIMIT] Too many sessions of this account are open*"
	first := logIn("imap", "alice", "OK *")
	logIn("imap-2", "alice", "OK *")
	logIn("imap", "alice", full)
	logIn("imap", "bob", "OK *")
	for _, step := range []struct{ limit, want string }{
		{"account_connections: {imap: 3},", "OK *"}, // the third
		{"account_connections: {imap: 1},", full},
		{"account_connections: {imap: 3},", full},
		{"", "OK *"}, // no limit, and the fourth is not counted
	} {
		write(step.limit)
		done := make(chan error, 1)
		r.service.changes <- changeRequest{r.service.reload, done}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		logIn("imap-2", "alice", step.want)
	}
	proxytest.Transcript(t, first, "C: b NOOP\nS: b OK *\nC: c LOGOUT\nS: \\* BYE *\nS: c OK *\nS: <EOF>")
}
