package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/memserver"
)

const (
	demoAccount  = "demo@example.org"
	demoClientID = "postern-demo"
)

// demoOAuth runs Postern as usual, in front of servers in memory that take tokens alone.
func demoOAuth(ctx context.Context, base int, stdout, stderr io.Writer) error {
	folder, err := os.MkdirTemp("", "postern-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	provider := &authorizationServer{id: demoClientID, secret: rand.Text(), tokens: map[string]time.Time{}}
	mail, err := startMail(memserver.Options{Accounts: []memserver.Account{{User: demoAccount}}, TakesToken: provider.takes})
	if err != nil {
		return err
	}
	defer func() { _ = mail.Close() }()
	server := &http.Server{Handler: provider, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	defer func() { _ = server.Close() }()
	tokens, err := serveInMemory(func(ln net.Listener) error { return server.Serve(ln) })
	if err != nil {
		return err
	}
	cert, err := certs.SelfSigned("localhost")
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`# The configuration of postern demo --oauth. It goes with the demo.
providers:
  memory: {kind: oauth, token_url: "http://%s/token", scope: mail, client_id: %s, client_secret_file: secret, domains: [example.org]}
backends:
  memory:
    token: memory
    imap: {address: %q, tls: none}
    submission: {address: %q, tls: none}
passwords: {devices: true}
state: {path: state, key_file: state.key}
tls: {certificates: [{cert: cert.pem, key: key.pem}]}
`+demoListeners, tokens, demoClientID, mail.imap, mail.submission, base+993, base+995, base+465, base+930)
	config, err := writeDemo(folder, text, provider.secret, cert)
	if err != nil {
		return err
	}
	cfg, err := configs.Load(config)
	if err != nil {
		return err
	}
	s, err := demoService(cfg, cert, stderr)
	if err != nil {
		return err
	}
	if err := s.Storage.Open(ctx, cfg); err != nil {
		return err
	}
	defer func() { _ = s.Storage.Close() }()
	var device stored.MadeDevice
	s.Storage.DeviceKeys = func() ([][]byte, error) { return stored.ReadDeviceKeys(cfg) }
	made := func(d stored.MadeDevice) error { device = d; return nil }
	if err := stored.AddDevice.Answer(ctx, s.Storage, stored.NewDevice{Account: demoAccount, Name: "curl"}, made); err != nil {
		return err
	}
	s.Ready = func([]proxy.Binding) {
		_, _ = fmt.Fprintf(stdout, welcomeOAuth, base+995, base+993, base+465, base+930, device.Password, config)
		device.Password = "" // shown once
	}
	return s.Serve(ctx, cfg)
}

const welcomeOAuth = `
Postern stands in front of a mail server in memory that takes tokens of OAuth and no
passwords. Postern gets the tokens from an authorization server, in memory, too. The
account is demo@example.org. Its device has this password, which Postern has made and
checks; it is not shown again, and stored as a keyed hash:

  %[5]s

The certificate is self-signed (hence --insecure). Try:

  curl --insecure --user demo@example.org:%[5]s pop3s://127.0.0.1:%[1]d/            # list, by POP3
  curl --insecure --user demo@example.org:%[5]s pop3s://127.0.0.1:%[1]d/1           # fetch message 1, by POP3
  curl --insecure --user demo@example.org:%[5]s 'imaps://127.0.0.1:%[2]d/INBOX;MAILINDEX=1'   # fetch it by IMAP
  printf 'Subject: hello\r\n\r\nIt works.\r\n' | curl --insecure --user demo@example.org:%[5]s --url smtps://127.0.0.1:%[3]d \
    --mail-from demo@example.org --mail-rcpt demo@example.org --upload-file -   # send; the list then shows one more
  curl http://127.0.0.1:%[4]d/metrics                                  # what Prometheus sees
  postern provider check memory demo@example.org --config %[6]s        # is there a token, and does it open the mailbox?
  postern password list --config %[6]s                                 # who has a password; add and remove work, too
and open http://127.0.0.1:%[4]d/ in a browser: the status page.

Ctrl-C ends it. What happens:

`

// writeDemo writes a configuration and the files that it names to folder. It returns the
// path of the configuration.
func writeDemo(folder, config, secret string, cert tls.Certificate) (path string, err error) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return "", err
	}
	stateKey := make([]byte, 32)
	_, _ = rand.Read(stateKey) // never fails
	path = filepath.Join(folder, "postern.yaml")
	for name, content := range map[string][]byte{
		path:                               []byte(config),
		filepath.Join(folder, "secret"):    []byte(secret),
		filepath.Join(folder, "state.key"): []byte(base64.StdEncoding.EncodeToString(stateKey)),
		filepath.Join(folder, "cert.pem"):  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		filepath.Join(folder, "key.pem"):   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			return "", err
		}
	}
	return path, nil
}

// An authorizationServer gives tokens to one application: RFC 6749 section 4.4.
type authorizationServer struct {
	id, secret string

	mu     sync.Mutex
	tokens map[string]time.Time // when each ends
}

const demoTokenLife = time.Hour

// ServeHTTP answers a request for a token.
func (a *authorizationServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const most = 1 << 14 // octets of a request
	r.Body = http.MaxBytesReader(w, r.Body, most)
	equal := func(field, want string) bool {
		return subtle.ConstantTimeCompare([]byte(r.PostFormValue(field)), []byte(want)) == 1
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // RFC 6749 section 5.1
	if r.Method != http.MethodPost || !equal("grant_type", "client_credentials") || !equal("client_id", a.id) || !equal("client_secret", a.secret) {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_client"})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": a.issue(), "token_type": "Bearer", "expires_in": demoTokenLife.Seconds()})
}

// issue returns a new token, and forgets those that have ended.
func (a *authorizationServer) issue() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, token := time.Now(), rand.Text()
	for t, ends := range a.tokens {
		if now.After(ends) {
			delete(a.tokens, t)
		}
	}
	a.tokens[token] = now.Add(demoTokenLife)
	return token
}

// takes reports whether a token lets a user in: it is valid. It is the application's, and so
// lets every user in.
func (a *authorizationServer) takes(_, token string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.tokens[token])
}
