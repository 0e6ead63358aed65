package service

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/proxytest"
)

// An ownCredentials backend logs in with a password that the client does not have, as
// Postern does with a token.
type ownCredentials struct{ proxy.Backend }

func (b ownCredentials) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	own := *l
	own.Secret, own.Verified = proxy.NewSecret([]byte("secret of "+l.Account)), false
	return b.Backend.Login(ctx, &own)
}

// startWithPasswords starts a Postern that checks the passwords of all accounts itself.
func startWithPasswords(t *testing.T, p configs.Passwords) (*running, *configs.Config, *lockedBuffer) {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "state.key")
	if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString([]byte("the key of a test has 32 octets!"))), 0o600); err != nil {
		t.Fatal(err)
	}
	imap, submission := inMemory(t, "m", "alice")
	cfg, err := configs.Parse("test.yaml", []byte(baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: submission, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
state: {path: %s, key_file: %s}
control: {socket: off}
log: {level: debug}
guard: {delay: 100ms}
`, imap, submission, filepath.Join(dir, "state"), key)))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Passwords = p
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	log := new(lockedBuffer)
	r := startServiceWith(t, cfg, store, log, checkOwnPasswords)
	r.roots = roots
	return r, cfg, log
}

// checkOwnPasswords makes all services of g check the passwords themselves.
func checkOwnPasswords(g *generation) {
	for _, l := range g.listeners {
		for _, svc := range l.services {
			svc.Backend = g.withPasswords(ownCredentials{svc.Backend}, nil)
		}
	}
}

func one[In, Out any](t *testing.T, r *running, q stored.Question[In, Out], in In) (out Out) {
	t.Helper()
	if err := q.Answer(t.Context(), r.service.Storage, in, func(o Out) error { out = o; return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A dialogue speaks line by line.
type deviceDialogue struct {
	*testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (r *running) dialogue(t *testing.T, listener string) *deviceDialogue {
	t.Helper()
	c := r.secure(r.dial(t, listener))
	_ = c.SetDeadline(time.Now().Add(patience))
	return &deviceDialogue{t, c, bufio.NewReader(c)}
}

// expect reads lines until one begins with want.
func (d *deviceDialogue) expect(want string) {
	d.Helper()
	for {
		line, err := d.in.ReadString('\n')
		if strings.HasPrefix(line, want) {
			return
		}
		if err != nil {
			d.Fatalf("no line %q: %v", want, err)
		}
	}
}

func (d *deviceDialogue) say(line, want string) {
	d.Helper()
	if _, err := fmt.Fprintf(d.conn, "%s\r\n", line); err != nil {
		d.Fatal(err)
	}
	d.expect(want)
}

func plain(account, secret string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + account + "\x00" + secret))
}

// Criterion: Removing a device ends its sessions within 5 s, leaves other devices alone, and lets a message that comes by DATA or BDAT end first, and no second one; so does the process before an upgrade.
func TestARemovedDeviceIsLoggedOutAfterItsMessage(t *testing.T) {
	r, _, log := startWithPasswords(t, configs.Passwords{Devices: true})
	phone := one(t, r, stored.AddDevice, stored.NewDevice{Account: "alice", Name: "phone"})
	copier := one(t, r, stored.AddDevice, stored.NewDevice{Account: "alice", Name: "copier", Protocols: []string{proxy.Submission}})

	imap := r.dialogue(t, "imap")
	imap.expect("* OK")
	imap.say("a AUTHENTICATE PLAIN "+plain("alice", "secret of alice"), "a NO [AUTHENTICATIONFAILED]")
	imap.say("b AUTHENTICATE PLAIN "+plain("alice", copier.Password), "b NO") // right, and not for imap
	imap.say("c LOGIN alice "+strings.ToUpper(phone.Password), "c OK")
	imap.say("d SELECT INBOX", "d OK")
	type sending struct {
		*deviceDialogue
		rest string // of the message
	}
	send := func(device, begin, reply, rest string) sending {
		t.Helper()
		s := r.dialogue(t, "submission")
		s.expect("220")
		s.say("EHLO client.example", "250 ")
		s.say("AUTH PLAIN "+plain("alice", device), "235")
		s.say("MAIL FROM:<alice@example.org>", "250")
		s.say("RCPT TO:<alice@example.org>", "250")
		s.say(begin, reply)
		return sending{s, rest}
	}
	const next = "\r\nMAIL FROM:<alice@example.org>" // a second message, before the reply to the first one
	ended := []sending{
		send(phone.Password, "DATA", "354", "Subject: one\r\n\r\nhello\r\n."),
		send(phone.Password, "BDAT 16\r\nSubject: two\r\n", "250", "BDAT 2 LAST\r\n"+next),
	}
	left := send(copier.Password, "DATA", "354", "Subject: three\r\n\r\nhello\r\n.")
	devices := map[string]int{}
	if err := r.service.listSessions(t.Context(), SessionFilter{Account: "alice"}, func(s Session) error { devices[s.Device]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if devices[phone.ID] != 3 || devices[copier.ID] != 1 {
		t.Errorf("sessions by device: %v", devices)
	}
	if removed := one(t, r, stored.RemoveDevice, stored.DeviceName{Account: "alice", ID: phone.ID}); removed.Ended != 3 {
		t.Errorf("sessions ended: %d, want 3", removed.Ended)
	}
	_ = imap.conn.SetDeadline(time.Now().Add(5 * time.Second))
	if rest, err := io.ReadAll(imap.in); err != nil { // with a BYE, unless the server has sent something a moment before
		t.Errorf("the IMAP session goes on: %q, %v", rest, err)
	}
	time.Sleep(200 * time.Millisecond) // both messages go on
	for _, s := range ended {
		s.say(s.rest, "250")
		begun := time.Now()
		s.expect("421")
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("the session of the removed device has ended after %v", took)
		}
	}
	left.say(left.rest, "250")
	left.say("NOOP", "250")

	// The process before an upgrade gets the same request from the next one.
	busy := send(copier.Password, "BDAT 18\r\nSubject: four\r\n\r\n", "250", "BDAT 2 LAST\r\n")
	if n, err := r.endAsPredecessor(t, peerRequest{Kick: true, Filter: SessionFilter{Account: "alice", Device: copier.ID}}); n != 2 || err != "" {
		t.Errorf("the process before: %d sessions, %s, want 2", n, err)
	}
	left.expect("421")
	busy.say(busy.rest, "250")
	busy.expect("421")

	again := r.dialogue(t, "imap")
	again.expect("* OK")
	again.say("a AUTHENTICATE PLAIN "+plain("alice", phone.Password), "a NO [AUTHENTICATIONFAILED]")

	text := log.String()
	for _, secret := range []string{phone.Password, copier.Password, strings.ReplaceAll(phone.Password, "-", ""), "secret of alice"} {
		if strings.Contains(strings.ToLower(text), secret) {
			t.Error("the log has a password")
		}
	}
	if !strings.Contains(text, "device="+phone.ID) {
		t.Error("the line of the login does not name the device")
	}
	if !strings.Contains(text, "device "+copier.ID+": not for imap") || !strings.Contains(text, "reason=suspended") {
		t.Errorf("the log does not say why the copier was refused:\n%s", text)
	}
}

// endAsPredecessor lets r answer a request of a successor.
func (r *running) endAsPredecessor(t *testing.T, request peerRequest) (ended int, text string) {
	t.Helper()
	here, there := net.Pipe()
	defer func() { _ = there.Close() }()
	go r.service.answerSuccessor(&successor{Peer: &Peer{conn: here}}, &request)
	var m message
	if err := json.NewDecoder(there).Decode(&m); err != nil || m.Answer == nil {
		t.Fatalf("no answer: %v", err)
	}
	return m.Answer.Kicked, m.Answer.Error
}

// Criterion: A reload replaces the stores of passwords.
func TestAReloadReplacesTheStoresOfPasswords(t *testing.T) {
	const hash = "$6$rounds=1000$E/9dx1OfkQN0nO63$8Vgvf6gp5SXtNcKYXLk6wNQJaVIc4awgaxp.fki/OJ.uR60BkrlE6sS0btHzgHCIMf5Rwm8dmH3W9NimiH6qD0" // of "secret of alice"
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second := write("first", "bob:"+hash+"\n"), write("second", "alice:"+hash+"\n")
	r, cfg, _ := startWithPasswords(t, configs.Passwords{File: first})
	try := func(secret, want string) {
		t.Helper()
		d := r.dialogue(t, "imap")
		d.expect("* OK")
		d.say("a AUTHENTICATE PLAIN "+plain("alice", secret), "a "+want)
	}
	apply := func(p configs.Passwords) {
		t.Helper()
		next := *cfg
		next.Passwords = p
		g, err := build(&next, r.service)
		if err != nil {
			t.Fatal(err)
		}
		checkOwnPasswords(g)
		done := make(chan error, 1)
		r.service.changes <- changeRequest{func(ctx context.Context) error { return r.service.apply(ctx, g) }, done}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	try("secret of alice", "NO [AUTHENTICATIONFAILED]")
	if !r.service.known("bob") || r.service.known("alice") {
		t.Error("the log may not name whom the file has")
	}
	r.service.guard.Unlock("alice") // which remembers the wrong password for 30 s
	apply(configs.Passwords{File: second, Memory: 64 << 20})
	try("secret of alice", "OK")
	if r.service.slow.Memory != 64<<20 {
		t.Errorf("passwords.memory is %d", r.service.slow.Memory)
	}
	apply(configs.Passwords{Backend: "main"}) // the server itself, of another backend in real life
	try("secret of alice", "OK")
	try("secret of bob", "NO [AUTHENTICATIONFAILED]")
	apply(configs.Passwords{Devices: true})
	try("secret of alice", "NO [AUTHENTICATIONFAILED]")

	broken := write("broken", "alice:plain\n")
	next := *cfg
	next.Passwords = configs.Passwords{File: broken}
	if _, err := build(&next, r.service); err == nil || !strings.Contains(err.Error(), "passwords.file: "+broken+":1: the hash is not one of") {
		t.Errorf("a file with a mistake: %v", err)
	}
	metrics := r.metrics("postern_password_checks_total")
	for _, line := range []string{`{result="ok",store="file"} 1`, `{result="ok",store="backend"} 1`, `{result="invalid_credentials",store="devices"} 1`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("no metric %s in\n%s", line, metrics)
		}
	}
}
