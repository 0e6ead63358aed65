package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// The tests of real_*_test.go have real mail servers behind Postern, and real
// mail programs in front of it. They share a stage, which the first one sets up
// and TestMain strikes, and each has users of its own: so they run in parallel.

const (
	maxUsers = 100
	patience = 30 * time.Second // for a mail program to do its job, and a mail to arrive
)

// A stage is Postern in front of real servers.
type stage struct {
	*postern
	backend   *proxytest.Dovecot // behind Postern: IMAP only
	reference *proxytest.Dovecot // the same mail, by a POP3 server of its own
	postfix   *proxytest.Postfix

	mu    sync.Mutex
	users []user // not yet taken
}

// A user has mail on the stage.
type user struct{ name, password, address string }

var theStage struct {
	once   sync.Once
	stage  *stage
	backer lasting
}

// open returns the stage, for a test that runs in parallel with others and needs
// programs.
func open(t *testing.T, programs ...string) *stage {
	t.Helper()
	proxytest.Need(t, "dovecot", "/usr/lib/dovecot/imap", "/usr/lib/dovecot/pop3", "/usr/lib/postfix/sbin/master")
	proxytest.Need(t, programs...)
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root: the mail servers change their user")
	}
	t.Parallel()
	theStage.once.Do(func() {
		theStage.backer.TB = t
		theStage.stage = newStage(&theStage.backer)
		theStage.backer.started()
	})
	if theStage.stage == nil {
		t.Fatal("the stage could not be set up: see the first test that failed")
	}
	return theStage.stage
}

func newStage(t testing.TB) *stage {
	t.Helper()
	s := &stage{}
	passwords := map[string]string{}
	for i := range maxUsers {
		u := user{name: fmt.Sprintf("user%02d", i), password: newSecret()}
		u.address = u.name + "@example.org"
		s.users = append(s.users, u)
		passwords[u.name] = u.password
	}
	s.backend = proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: quick + compress})
	s.reference = proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, POP3: true, Share: s.backend})
	s.postfix = proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: s.backend})
	s.postern = startPostern(t, behind{
		imap:       fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA),
		submission: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost, tls: starttls}", s.postfix.SMTP, s.postfix.CA),
	}, "")
	return s
}

// quick is a Dovecot that answers wrong passwords at once: the delay that a
// client sees is Postern's, and tests that run in parallel come from one
// address.
const quick = `
auth_failure_delay = 0
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
`

// compress is a Dovecot that offers COMPRESS=DEFLATE.
const compress = `
mail_plugins = zlib
protocol imap {
  mail_plugins = zlib imap_zlib
}
`

// user returns a user that no other test has.
func (s *stage) user(t testing.TB) user {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) == 0 {
		t.Fatalf("more than %d users are wanted", maxUsers)
	}
	u := s.users[0]
	s.users = s.users[1:]
	return u
}

// deliver puts messages into the INBOX of u, with the subjects given.
func (s *stage) deliver(t testing.TB, u user, subjects ...string) {
	t.Helper()
	for _, subject := range subjects {
		s.backend.Deliver(t, u.name, []byte(mail(u, subject)))
	}
}

// mail is a message whose text begins with a dot, has one alone in a line, and
// octets of 8 bits.
func mail(u user, subject string) string {
	return "From: <" + u.address + ">\r\nTo: <" + u.address + ">\r\nSubject: " + subject +
		"\r\nDate: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <" + subject + "." + u.address + ">\r\n" +
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + text
}

const text = ".dot\r\n.\r\n..\r\nGr\xc3\xbc\xc3\x9fe\r\nFrom here\r\nend\r\n"

// stored returns the subjects of the messages in the INBOX of u.
func (s *stage) stored(t testing.TB, u user) []string { return subjects(s.backend.Stored(t, u.name)) }

// subjects also checks that the texts are what mail has put into them.
func subjects(messages [][]byte) []string {
	var all []string
	for _, m := range messages {
		m = bytes.ReplaceAll(m, []byte("\r\n"), []byte("\n"))
		head, body, _ := bytes.Cut(m, []byte("\n\n"))
		subject := "none"
		for line := range strings.SplitSeq(string(head), "\n") {
			if s, ok := strings.CutPrefix(line, "Subject: "); ok {
				subject = s
			}
		}
		if want := strings.ReplaceAll(text, "\r\n", "\n"); string(body) != want {
			subject += fmt.Sprintf(" with the text %q", body)
		}
		all = append(all, subject)
	}
	return all
}

// arrived waits for n messages in the INBOX of u.
func (s *stage) arrived(t testing.TB, u user, n int) [][]byte {
	t.Helper()
	var stored [][]byte
	within(t, patience, fmt.Sprintf("%d messages have arrived", n), func() bool {
		stored = s.backend.Stored(t, u.name)
		return len(stored) >= n
	})
	return stored
}

// within waits until done, and fails the test when that is not so in time.
func within(t testing.TB, limit time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it is not so that %s", limit, what)
		}
	}
}

func wantSubjects(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// run runs a mail program with dir as its home, and returns what it printed. It
// must end with one of the statuses, 0 if none are given.
func run(t testing.TB, dir string, stdin io.Reader, args []string, statuses ...int) string {
	t.Helper()
	return runWithin(t, patience, dir, stdin, args, statuses...)
}

// runWithin is run for a program that may take long.
func runWithin(t testing.TB, limit time.Duration, dir string, stdin io.Reader, args []string, statuses ...int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C.UTF-8", "TERM=vt100"}
	cmd.Stdin = stdin
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	if len(statuses) == 0 {
		statuses = []int{0}
	}
	for _, status := range statuses {
		if cmd.ProcessState.ExitCode() == status {
			return string(out)
		}
	}
	t.Fatalf("%s: %v, want one of the statuses %v:\n%s", hidden(strings.Join(args, " ")), err, statuses, hidden(string(out)))
	return ""
}

// file writes a file that a mail program asks to be private.
func file(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// files returns the contents of the files in a folder, in the order of names.
func files(t testing.TB, pattern string) [][]byte {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	contents := make([][]byte, len(paths))
	for i, path := range paths {
		if contents[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return contents
}

// The passwords of all tests: none of them may be written anywhere.
var secrets struct {
	mu  sync.Mutex
	all []string
}

// newSecret returns a password that occurs nowhere else.
func newSecret() string { return keepSecret(rand.Text()) }

// keepSecret remembers a password.
func keepSecret(password string) string {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	secrets.all = append(secrets.all, password)
	return password
}

// leaked returns how many passwords occur in text, as they are or in base64.
func leaked(text string) (n int) {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	for _, password := range secrets.all {
		for _, form := range forms(password) {
			n += strings.Count(text, form)
		}
	}
	return n
}

// forms are what a password looks like in clear and, wherever it begins, within
// base64.
func forms(password string) []string {
	all := []string{password}
	for skip := range 3 {
		encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", skip) + password))
		all = append(all, encoded[[]int{0, 2, 3}[skip]:(skip+len(password))/3*4])
	}
	return all
}

// What the other tests rely on when they say that a password is nowhere.
func TestPasswordsAreFoundInEveryForm(t *testing.T) {
	password := newSecret()
	for _, text := range []string{
		"a " + password + " z",
		base64Of(password),
		base64Of("\x00user\x00" + password),
		base64Of("\x00users\x00" + password),
		base64Of("\x00user99\x00" + password + "and more"),
		`{"user":"` + base64Of("x"+password) + `"}`,
	} {
		if leaked(text) != 1 {
			t.Errorf("the password is not found once in %s", text)
		}
		if strings.Contains(hidden(text), password) {
			t.Errorf("the password is not hidden in %s", text)
		}
	}
	if leaked("a "+password[1:]) != 0 {
		t.Error("half a password is taken for one")
	}
}

// hidden is text without the passwords, for the output of tests.
func hidden(text string) string {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	for _, password := range secrets.all {
		for _, form := range forms(password) {
			text = strings.ReplaceAll(text, form, "[secret]")
		}
	}
	return text
}

// A postern is a Postern that runs as it does for operators: a process of its
// own with a configuration file.
type postern struct {
	imap, pop3, smtp string // host:port, TLS from the first byte; smtp may be empty
	metrics          string
	ca               string // a PEM file that vouches for localhost
	log              string // the path of all that it prints

	cmd  *exec.Cmd
	done chan struct{}
	err  error // of its end, once done is closed
}

// behind are the servers behind a Postern, as in the configuration file.
type behind struct{ imap, pop3, submission string }

// startPostern starts a Postern, and stops it at the end of the test. More is
// more of its configuration.
func startPostern(t testing.TB, b behind, more string) *postern {
	t.Helper()
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	listeners := "  - {protocol: imap, address: \"127.0.0.1:0\"}\n  - {protocol: pop3, address: \"127.0.0.1:0\"}\n"
	servers := "    imap: " + b.imap + "\n"
	if b.pop3 != "" {
		servers += "    pop3: " + b.pop3 + "\n"
	}
	if b.submission != "" {
		listeners += "  - {protocol: submission, address: \"127.0.0.1:0\"}\n"
		servers += "    submission: " + b.submission + "\n"
	}
	config := file(t, dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners:
%stls:
  certificates:
    - {cert: %q, key: %q}
backends:
  main:
%strusted_networks: [127.0.0.0/8]
metrics: {address: "127.0.0.1:0"}
log: {format: json, level: debug}
%s`, listeners, cert, key, servers, more))
	p := newPostern(dir, ca)
	p.start(t, config)
	p.listens(t, strings.Count(listeners, "\n"))
	return p
}

// newPostern returns a Postern that prints into dir. It does not run yet.
func newPostern(dir, ca string) *postern {
	return &postern{ca: ca, log: filepath.Join(dir, "log"), done: make(chan struct{})}
}

// start runs p with a configuration file, and stops it at the end of the test.
func (p *postern) start(t testing.TB, config string) {
	t.Helper()
	p.startUntil(t, config, p.stop)
}

// startUntil runs p with a configuration file; end is what stops it.
func (p *postern) startUntil(t testing.TB, config string, end func(testing.TB)) {
	t.Helper()
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command("postern", "run", "--config", config) // testscript.Main has put it into $PATH
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		end(t)
		if t.Failed() {
			t.Logf("what Postern printed:\n%s", hidden(p.printed(t)))
		}
	})
}

// listens waits until as many listeners listen.
func (p *postern) listens(t testing.TB, listeners int) {
	t.Helper()
	within(t, patience, "Postern listens", func() bool {
		select {
		case <-p.done:
			t.Fatalf("Postern ended at once: %v\n%s", p.err, p.printed(t))
		default:
		}
		return p.listening(t) == listeners
	})
}

// listening learns from the log where Postern listens.
func (p *postern) listening(t testing.TB) (n int) {
	t.Helper()
	for _, line := range p.logged(t, "serving HTTP") {
		p.metrics = line.text("address")
	}
	if p.metrics == "" {
		return 0
	}
	listening := p.logged(t, "listening")
	for _, line := range listening {
		switch line.text("listener") {
		case "imap":
			p.imap = line.text("address")
		case "pop3":
			p.pop3 = line.text("address")
		case "submission":
			p.smtp = line.text("address")
		}
	}
	return len(listening)
}

// printed returns all that Postern has printed.
func (p *postern) printed(t testing.TB) string {
	t.Helper()
	out, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// A line of the log.
type line map[string]any

func (l line) text(key string) string {
	if l[key] == nil {
		return ""
	}
	return fmt.Sprint(l[key])
}

// logged returns the lines of the log that have this message.
func (p *postern) logged(t testing.TB, message string) (lines []line) {
	t.Helper()
	for text := range strings.SplitSeq(p.printed(t), "\n") {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err == nil && l["msg"] == message {
			lines = append(lines, l)
		}
	}
	return lines
}

// scrape returns what Prometheus would see, by metric and labels.
func (p *postern) scrape(t testing.TB) (values map[string]string, all string) {
	t.Helper()
	response, err := http.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]string{}
	for l := range strings.SplitSeq(string(body), "\n") {
		if i := strings.LastIndexByte(l, ' '); i > 0 && !strings.HasPrefix(l, "#") {
			values[l[:i]] = l[i+1:]
		}
	}
	return values, string(body)
}

// stop stops Postern as an init system does. Its last words are good ones: exit
// status 0, no panic, no race, and not one password in all that it has printed
// and counted.
func (p *postern) stop(t testing.TB) {
	t.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	values, counted := p.scrape(t)
	if got := values["postern_panics_total"]; got != "0" {
		t.Errorf("panics = %s", got)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		_ = p.cmd.Process.Kill()
		<-p.done
		t.Errorf("Postern did not end within %v of SIGTERM", 2*patience)
	}
	if p.err != nil {
		t.Errorf("Postern ended with %v", p.err)
	}
	if n := leaked(p.printed(t)); n > 0 {
		t.Errorf("%d passwords in the log of Postern", n)
	}
	if n := leaked(counted); n > 0 {
		t.Errorf("%d passwords in the metrics of Postern", n)
	}
}

// dial connects without TLS to an address of this machine.
func dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// dialTLS connects to a server whose certificate ca vouches for.
func dialTLS(t testing.TB, address, ca string) *tls.Conn {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", ca)
	}
	return proxytest.ClientTLS(dial(t, address), pool)
}

// port returns the port of a host:port.
func port(t testing.TB, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// A lasting is the testing.TB of what is shared: it belongs to the test that
// starts it until that is done, and then to TestMain.
type lasting struct {
	testing.TB
	over     bool
	failed   bool
	cleanups []func()
}

// Cleanup implements testing.TB: f is called after the last test.
func (l *lasting) Cleanup(f func()) { l.cleanups = append(l.cleanups, f) }

// TempDir implements testing.TB: the folder is there until after the last test.
func (l *lasting) TempDir() string {
	dir, err := os.MkdirTemp("", "stage")
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Error implements testing.TB.
func (l *lasting) Error(args ...any) { l.Errorf("%s", fmt.Sprintln(args...)) }

// Errorf implements testing.TB.
func (l *lasting) Errorf(format string, args ...any) {
	if !l.over {
		l.TB.Errorf(format, args...)
		return
	}
	l.failed = true
	l.Logf(format, args...)
}

// Fatal implements testing.TB.
func (l *lasting) Fatal(args ...any) { l.Fatalf("%s", fmt.Sprintln(args...)) }

// Fatalf implements testing.TB. After the last test nothing is left to be ended
// but the process.
func (l *lasting) Fatalf(format string, args ...any) {
	if !l.over {
		l.TB.Fatalf(format, args...)
	}
	panic(fmt.Sprintf(format, args...))
}

// Logf implements testing.TB.
func (l *lasting) Logf(format string, args ...any) {
	if !l.over {
		l.TB.Logf(format, args...)
		return
	}
	fmt.Fprintf(os.Stderr, "after the last test: "+format+"\n", args...)
}

// Failed implements testing.TB.
func (l *lasting) Failed() bool { return l.failed || !l.over && l.TB.Failed() }

// Helper implements testing.TB.
func (l *lasting) Helper() {}

func (l *lasting) started() { l.over = true }

// A play is the run of all tests, and the strike of the stage.
type play struct{ *testing.M }

// Run implements testscript.TestingM.
func (p play) Run() int {
	status := p.M.Run()
	l := &theStage.backer
	l.over = true
	for _, cleanup := range slices.Backward(l.cleanups) {
		cleanup()
	}
	if l.failed && status == 0 {
		return 1
	}
	return status
}

func mkdir(t testing.TB, elements ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(elements...), 0o700); err != nil {
		t.Fatal(err)
	}
}

// maildir makes the folders of a maildir in dir.
func maildir(t testing.TB, dir string) {
	t.Helper()
	for _, name := range []string{"cur", "new", "tmp"} {
		mkdir(t, dir, name)
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func moveTo(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func sorted(all []string) []string {
	slices.Sort(all)
	return all
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func tryDial(address string) (net.Conn, error) { return net.DialTimeout("tcp", address, time.Second) }
