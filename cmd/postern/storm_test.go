package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// A storm is many IMAP clients that come at once, each from an address and with
// an account of its own. They are a process of their own, for a process has few
// descriptors.
type storm struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

// A stormed is what became of them.
type stormed struct {
	OK, Unavailable, Wrong, Lost int
	Longest                      time.Duration // from the dial to the answer
	Waited                       time.Duration // from LOGIN to the answer, at the most
	Odd                          string        // one of the other answers or errors
}

// raise lets the clients of these numbers come.
func raise(t testing.TB, p *postern, first, n int) *storm {
	t.Helper()
	s := &storm{cmd: exec.Command("storm", p.imap, p.ca, strconv.Itoa(first), strconv.Itoa(n))} // testscript.Main has put it into $PATH
	s.cmd.Stderr = os.Stderr
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.calm)
	return s
}

// result waits until all clients have an answer. They stay.
func (s *storm) result(t testing.TB) (r stormed) {
	t.Helper()
	line, err := s.out.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &r)
	}
	if err != nil {
		t.Fatalf("the storm says %q, %v", line, err)
	}
	return r
}

// calm lets all clients go. It may be called again.
func (s *storm) calm() {
	_ = s.in.Close()
	_ = s.cmd.Wait()
}

// beStorm is the main function of a storm's process.
func beStorm() {
	address, ca := os.Args[1], os.Args[2]
	first, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(os.Args[4])
	if err != nil {
		panic(err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", CurvePreferences: []tls.CurveID{tls.X25519}}
	var all stormed
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := first; i < first+n; i++ {
		wg.Go(func() {
			begun := time.Now()
			answer, waited, err := enter(address, config, i)
			took := time.Since(begun)
			mu.Lock()
			defer mu.Unlock()
			all.Longest, all.Waited = max(all.Longest, took), max(all.Waited, waited)
			switch {
			case err != nil:
				all.Lost++
				all.Odd = err.Error()
			case strings.HasPrefix(answer, "a OK"):
				all.OK++
			case strings.HasPrefix(answer, "a NO [AUTHENTICATIONFAILED]"):
				all.Wrong++
			case strings.HasPrefix(answer, "a NO [UNAVAILABLE]"):
				all.Unavailable++
				all.Odd = answer
			default:
				all.Lost++
				all.Odd = answer
			}
		})
	}
	wg.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		panic(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until told to leave
}

// enter logs the client of a number in, and leaves it connected.
func enter(address string, config *tls.Config, i int) (answer string, waited time.Duration, err error) {
	home := net.IPv4(127, byte(1+i/250), byte(i%250), 9) // none has a neighbour
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: home}, Timeout: time.Minute}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return "", 0, err
	}
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	c := tls.Client(conn, config)
	in := bufio.NewReaderSize(c, 512)
	if _, err := in.ReadString('\n'); err != nil {
		return "", 0, fmt.Errorf("greeting: %w", err)
	}
	begun := time.Now()
	if _, err := fmt.Fprintf(c, "a LOGIN user%d@example.org right\r\n", i); err != nil {
		return "", 0, err
	}
	answer, err = in.ReadString('\n')
	return answer, time.Since(begun), err
}

// A slowServer is an IMAP server that takes some time for each login, and then
// says yes.
type slowServer struct {
	address string
	latency time.Duration

	mu            sync.Mutex
	running, most int // logins
}

func newSlowServer(t testing.TB, latency time.Duration) *slowServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slowServer{address: ln.Addr().String(), latency: latency}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.serve(conn) })
		}
	})
	return s
}

func (s *slowServer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\r\n")
	in := bufio.NewReaderSize(conn, 512)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		tag, command, _ := strings.Cut(line, " ")
		if strings.HasPrefix(command, "AUTHENTICATE") {
			s.count(+1)
			time.Sleep(s.latency)
			s.count(-1)
		}
		_, _ = io.WriteString(conn, tag+" OK [CAPABILITY IMAP4rev1] done\r\n")
	}
}

func (s *slowServer) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running += n
	s.most = max(s.most, s.running)
}

// behindStorm starts a Postern in front of s.
func behindStorm(t testing.TB, s *slowServer, more string) *postern {
	t.Helper()
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	config := file(t, dir, "postern.yaml", fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}}}
metrics: {address: "127.0.0.1:0"}
log: {format: json}
%s`, cert, key, s.address, more))
	p := newPostern(dir, ca)
	p.start(t, config)
	p.listens(t, 1)
	return p
}

// wantProof skips the test unless it may take as long as make proof bears.
func wantProof(t testing.TB) {
	t.Helper()
	if os.Getenv("POSTERN_PROOF") != "1" {
		t.Skip("takes a minute and two cores: POSTERN_PROOF=1 lets it run")
	}
}

// patient lets a storm take longer than it does where nobody else computes: a
// crowd of handshakes keeps the logins behind it waiting.
const patient = "timeouts: {handshake: 1m, login: 2m}\n"

// Criterion: 9,000 clients that come at once after a restart are all let in, by a Postern that remembers nobody, with 256 of them at most at a server that takes 50 ms a login.
func TestProofARestartStormIsServed(t *testing.T) {
	wantProof(t)
	const clients, attempts = 9000, 256
	server := newSlowServer(t, 50*time.Millisecond)
	p := behindStorm(t, server, fmt.Sprintf("limits: {attempts: %d, attempt_wait: 1m}\n", attempts)+patient)
	got := raise(t, p, 0, clients).result(t)
	most := peak(t, p)
	t.Logf("%+v; at the server %d at once; at most %d MiB", got, server.most, most>>20)
	if most > 350<<20 && !raced() {
		t.Errorf("%d MiB of memory, want at most 350", most>>20)
	}
	if got.OK != clients {
		t.Errorf("of %d clients: %+v", clients, got)
	}
	if server.most > attempts {
		t.Errorf("%d logins were at the server at once, want at most %d", server.most, attempts)
	}
}

// Criterion: While 6,000 strangers crowd at a slow server, 1,000 clients of networks that their accounts have logged in from are served sooner, all are let in, and nobody's password is called wrong.
func TestProofKnownNetworksAreServedInAStorm(t *testing.T) {
	wantProof(t)
	const strangers, known, attempts = 6000, 1000, 256
	server := newSlowServer(t, 100*time.Millisecond)
	p := behindStorm(t, server, fmt.Sprintf("limits: {attempts: %d, attempt_wait: 1m}\nguard: {learning: 0s}\n", attempts)+patient)
	if before := raise(t, p, 0, known); before.result(t).OK != known {
		t.Fatal("the known clients could not log in before")
	} else {
		before.calm()
	}
	crowd := raise(t, p, known, strangers)
	time.Sleep(500 * time.Millisecond) // some of it is there
	got := raise(t, p, 0, known).result(t)
	others := crowd.result(t)
	t.Logf("known: %+v; strangers: %+v; at most %d MiB", got, others, peak(t, p)>>20)
	// How soon is the machine's to say, where others compute: the guard's tests have
	// the 5 s of its own clock.
	if got.OK != known || got.Waited > others.Waited {
		t.Errorf("of %d known clients: %+v", known, got)
	}
	if others.OK != strangers {
		t.Errorf("of %d strangers: %+v", strangers, others)
	}
}

// peak returns the most memory that p has had, in octets, as the kernel says.
func peak(t testing.TB, p *postern) int {
	t.Helper()
	octets, ok := peakOf(p.cmd.Process.Pid)
	if !ok {
		t.Fatal("the kernel does not say how much memory Postern has had")
	}
	return octets
}

// peakOf is peak for a process, which may have ended.
func peakOf(pid int) (octets int, ok bool) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, false
	}
	line := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)
	if line == nil {
		return 0, false
	}
	kB, err := strconv.Atoi(string(line[1]))
	return kB << 10, err == nil
}

// raced reports whether the race detector is built in: it takes several times
// the memory.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}
