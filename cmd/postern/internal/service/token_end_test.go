package service

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// shortTokens is a token endpoint whose tokens last for life, and the mail server that takes
// them.
type shortTokens struct {
	life time.Duration

	mu   sync.Mutex
	ends []time.Time // of token0, token1, ...
	used []int       // in logins
}

func (s *shortTokens) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"access_token":"token%d","token_type":"Bearer","expires_in":%.0f}`, len(s.ends), s.life.Seconds())
	s.ends = append(s.ends, time.Now().Add(s.life))
}

func (s *shortTokens) takes(_, token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	if _, err := fmt.Sscanf(token, "token%d", &n); err != nil || n >= len(s.ends) || time.Now().After(s.ends[n]) {
		return false
	}
	s.used = append(s.used, n)
	return true
}

// Criterion: When a token ends, an IMAP client in IDLE hears BYE a moment before and can log in again at once; a POP3 client gets a message that was cut as a whole, from a connection with another token (stable_bodies).
func TestSessionsWhenTheirTokenEnds(t *testing.T) {
	const account = "alice@example.org"
	tokens := &shortTokens{life: 3 * time.Second}
	endpoint := httptest.NewServer(tokens)
	defer endpoint.Close()
	m := memserver.New(memserver.Options{Accounts: []memserver.Account{{User: account}}, TakesToken: tokens.takes})
	defer func() { _ = m.Close() }()
	message := "Subject: long\r\n\r\n" + strings.Repeat("A line of a long message.\r\n", 40_000)
	if err := m.Append(account, []byte(message)); err != nil {
		t.Fatal(err)
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	relay := proxytest.StartRelay(t, imap)
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cfg, err := configs.Parse("test.yaml", []byte(baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: pop3, address: "127.0.0.1:0"}]
providers: {own: {kind: microsoft, tenant: example.org, token_url: %q, client_id: x, client_secret_file: %q, domains: [example.org]}}
backends: {main: {token: own, imap: {address: %q, tls: none, stable_bodies: true}}}
passwords: {devices: true}
state: {path: %q, key_file: %q}
control: {socket: off}
`, endpoint.URL, write("secret", "x"), relay.Addr, filepath.Join(dir, "state"), write("state.key", "dGhlIGtleSBvZiBhIHRlc3QgaGFzIDMyIG9jdGV0cyE="))))
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	log := new(lockedBuffer)
	r := startServiceWith(t, cfg, store, log, func(*generation) {})
	r.roots = roots
	device := one(t, r, stored.AddDevice, stored.NewDevice{Account: account, Name: "old client"})

	for range 2 { // it logs in again at once
		d := r.dialogue(t, proxy.IMAP)
		d.expect("* OK")
		begun := time.Now()
		d.say("a LOGIN "+account+" "+device.Password, "a OK")
		d.say("b SELECT INBOX", "b OK")
		d.say("c IDLE", "+ ")
		d.expect("* BYE This session has lasted for as long as it may: log in again (session ")
		if took := time.Since(begun); took > tokens.life {
			t.Errorf("the BYE came after %v, and the token has ended after %v", took, tokens.life)
		}
		if rest, err := io.ReadAll(d.in); len(rest) > 0 || err != nil {
			t.Errorf("after the BYE: %q, %v", rest, err)
		}
	}

	relay.SetFaults(proxytest.Faults{CutRead: int64(len(message) / 2)})
	pop3 := r.dialogue(t, proxy.POP3)
	pop3.expect("+OK")
	pop3.say("USER "+account, "+OK")
	pop3.say("PASS "+device.Password, "+OK")
	relay.SetFaults(proxytest.Faults{}) // of the next connection
	time.Sleep(tokens.life)
	pop3.say("RETR 1", "+OK")
	var got strings.Builder
	for {
		line, err := pop3.in.ReadString('\n')
		if err != nil {
			t.Fatalf("after %d octets: %v", got.Len(), err)
		}
		if line == ".\r\n" {
			break
		}
		got.WriteString(line)
	}
	if got.String() != message {
		t.Errorf("the message has %d octets, want %d", got.Len(), len(message))
	}
	pop3.say("QUIT", "+OK")

	tokens.mu.Lock()
	defer tokens.mu.Unlock()
	if n := len(tokens.used); n != 4 || tokens.used[2] == tokens.used[3] {
		t.Errorf("tokens %v have logged in, want another one after the cut", tokens.used)
	}
	if text := log.String(); strings.Count(text, "end=token") != 2 || strings.Contains(text, "token0") {
		t.Errorf("the log has not two sessions with end=token, or a token:\n%s", text)
	}
}
