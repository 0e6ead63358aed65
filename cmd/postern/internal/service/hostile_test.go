package service

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// Criterion: attackers from 150 addresses at the real listener get to guess few
// passwords of an account, its owner logs in among them without delay, and who
// is throttled is not even asked about with the right password.
func TestOwnerLogsInAmongAttackers(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	r, log := startWithLog(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
guard: {delay: 100ms, learning: 0s}
log: {format: json}
`, imap))
	login := func(source, password string) string {
		c, err := r.from(t, source, "imap")
		if err != nil {
			return err.Error()
		}
		defer func() { _ = c.Close() }()
		in := bufio.NewReader(c)
		answer, err := say(c, in, "a LOGIN alice \""+password+"\"\r\nb LOGOUT\r\n", "a ")
		if err != nil {
			return err.Error()
		}
		_, _ = io.Copy(io.Discard, in)
		return answer
	}
	const owner, attackers = "127.7.0.1", 150
	if got := login(owner, "secret of alice"); !strings.HasPrefix(got, "a OK") {
		t.Fatalf("the owner hears %q", got)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range attackers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			source := fmt.Sprintf("127.%d.%d.%d", 20+i%100, i/100, 1+i%250)
			for j := range 2 {
				if got := login(source, fmt.Sprint("guess ", i, j)); !strings.Contains(got, "[AUTHENTICATIONFAILED]") && !strings.Contains(got, "[UNAVAILABLE]") {
					t.Errorf("an attacker hears %q", got)
				}
			}
		})
	}
	attack := make(chan struct{})
	go func() { wg.Wait(); close(attack) }()
	logins := 1
	for going := true; going; logins++ {
		select {
		case <-attack:
			going = false // once more after it
		default:
		}
		if got := login(owner, "secret of alice"); !strings.HasPrefix(got, "a OK") {
			t.Errorf("the owner hears %q", got)
		}
	}
	asked := r.count(t, `backend_login_duration_seconds_count{backend="main",protocol="imap"}`)
	if most := 16; asked-logins > most || asked-logins < 4 {
		t.Errorf("%d guesses were verified, want at most %d", asked-logins, most)
	}
	if got := login("127.20.0.1", "secret of alice"); !strings.Contains(got, "[UNAVAILABLE]") {
		t.Errorf("with the right password the throttled hears %q", got)
	}
	if again := r.count(t, `backend_login_duration_seconds_count{backend="main",protocol="imap"}`); again != asked {
		t.Errorf("the backend was asked about who is throttled")
	}
	within(t, patience, "each login has its event", func() bool {
		return strings.Count(log.String(), `"msg":"login"`)+strings.Count(log.String(), `"msg":"login refused"`) == logins+2*attackers+1
	})
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, `"ip":"`+owner+`"`) && strings.Contains(line, `"delay"`) {
			t.Errorf("the owner was delayed: %s", line)
		}
	}
}

// Criterion: an unknown name, a wrong password and the same wrong password again
// are answered with the same octets, not before the delay, in all protocols.
func TestWrongIsWrong(t *testing.T) {
	imap, submission := inMemory(t, "mail", "alice")
	r, _ := startWithLog(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: pop3, address: "127.0.0.1:0"}, {protocol: submission, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
guard: {delay: 300ms}
`, imap, submission))
	session := regexp.MustCompile(`\(session [A-Z0-9]+\)`)
	for protocol, dialogue := range map[string]func(user, password string) []string{
		"imap": func(user, password string) []string {
			return []string{"a LOGIN " + user + " " + password + "\r\n", "a "}
		},
		"pop3": func(user, password string) []string {
			return []string{"USER " + user + "\r\n", "+OK", "PASS " + password + "\r\n", "-ERR"}
		},
		"submission": func(user, password string) []string {
			return []string{"EHLO client\r\n", "250 ", "AUTH PLAIN " + base64Of("\x00"+user+"\x00"+password) + "\r\n", "5"}
		},
	} {
		answers := map[string]bool{}
		for _, attempt := range [][2]string{{"nobody", "wrong"}, {"alice", "wrong"}, {"alice", "wrong"}, {"alice", "other"}, {"nobody", "wrong"}} {
			c, err := r.from(t, "127.0.0.1", protocol)
			if err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(c)
			if _, err := in.ReadString('\n'); err != nil { // the greeting
				t.Fatal(err)
			}
			answer, begun := "", time.Now()
			for words := dialogue(attempt[0], attempt[1]); len(words) > 0; words = words[2:] {
				begun = time.Now()
				if answer, err = say(c, in, words[0], words[1]); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(begun); took < 270*time.Millisecond {
				t.Errorf("%s: %s is answered after %s", protocol, attempt[0], took)
			}
			answers[session.ReplaceAllString(answer, "")] = true
			_ = c.Close()
		}
		if len(answers) != 1 {
			t.Errorf("%s: the answers are %q, want one", protocol, slices.Collect(maps.Keys(answers)))
		}
	}
	if got := r.metrics(`decision="repeated"`); !strings.Contains(got, `tier="stranger_fresh"} 2`) && !strings.Contains(got, `tier="stranger_used"}`) {
		t.Errorf("no repeat was counted:\n%s", got)
	}
}

// Criterion: a password is nowhere but on its way: not in the log at debug, not
// in metrics, the status page, the state or the file for fail2ban, wherever
// clients put it and however they break it.
func TestPasswordsAreNowhere(t *testing.T) {
	canary := "Cn4ry" + rand.Text()
	m := memserver.New(memserver.Options{Accounts: []memserver.Account{{User: "alice", Password: canary}}})
	t.Cleanup(func() { _ = m.Close() })
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	submission, err := serveInMemory(m.ServeSMTP)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Run("clients", func(t *testing.T) { // what it leaves is looked at when it has ended
		r, log := startWithLog(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: pop3, address: "127.0.0.1:0"}, {protocol: submission, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
guard: {delay: 100ms}
state: {path: %q}
log: {level: debug, fail2ban: %q}
`, imap, submission, filepath.Join(dir, "state"), filepath.Join(dir, "failed.log")))
		plain := base64Of("\x00alice\x00" + canary)
		for protocol, lines := range map[string][]string{
			"imap": {
				"a LOGIN alice " + canary + "\r\n", "a LOGIN alice x" + canary + "\r\n", "a LOGIN " + canary + " x\r\n", "a AUTHENTICATE PLAIN " + plain + "!\r\n",
				"a AUTHENTICATE PLAIN " + plain + "\r\n", "a AUTHENTICATE PLAIN\r\n" + plain + "\r\n", "a AUTHENTICATE " + canary + "\r\n", "a AUTHENTICATE XOAUTH2 " + base64Of(canary) + "\r\n",
				"a LOGIN alice {" + fmt.Sprint(len(canary)) + "+}\r\n" + canary + "\r\n", "a LOGIN alice \"" + canary + "\r\n", canary + "\r\n", "a LOGIN alice " + strings.Repeat(canary, 1000) + "\r\n",
				"a LOGIN alice {99999999+}\r\n" + canary,
			},
			"pop3": {
				"USER alice\r\nPASS " + canary + "\r\n", "USER alice\r\nPASS x" + canary + "\r\n", "USER " + canary + "\r\nPASS x\r\n", "PASS " + canary + "\r\n", "APOP alice " + canary + "\r\n",
				"AUTH PLAIN " + plain + "\r\n", "AUTH PLAIN\r\n" + plain + "!\r\n", canary + "\r\n", "USER alice\r\nPASS " + strings.Repeat(canary, 1000) + "\r\n",
			},
			"submission": {
				"EHLO x\r\nAUTH PLAIN " + plain + "\r\n", "EHLO x\r\nAUTH PLAIN " + base64Of("\x00alice\x00x"+canary) + "\r\n", "EHLO x\r\nAUTH LOGIN\r\n" + base64Of("alice") + "\r\n" + base64Of(canary) + "\r\n",
				"EHLO x\r\nAUTH PLAIN " + plain + "!\r\n", "EHLO " + canary + "\r\n", "EHLO x\r\nMAIL FROM:<" + canary + ">\r\n", "EHLO x\r\nAUTH " + canary + "\r\n", canary + "\r\n",
			},
		} {
			for i, line := range lines {
				// One half after the other, so that the password is split as well.
				source := fmt.Sprintf("127.1.%d.%d", len(protocol), i+1)
				c, err := r.from(t, source, protocol)
				if err != nil {
					t.Fatal(err)
				}
				half := len(line) - len(canary)/2 - 2
				_, _ = io.WriteString(c, line[:half])
				time.Sleep(time.Millisecond)
				_, _ = io.WriteString(c, line[half:])
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
			c := r.dial(t, protocol) // without TLS
			_, _ = io.WriteString(c, lines[0])
			_, _ = io.Copy(io.Discard, c)
		}
		page := httptest.NewRecorder()
		r.service.page.ServeHTTP(page, httptest.NewRequest("GET", "/", nil))
		if !strings.Contains(log.String(), `login refused`) || !strings.Contains(log.String(), `msg=login `) || !strings.Contains(page.Body.String(), "<html") {
			t.Errorf("nothing was looked at")
		}
		wantNoCanary(t, canary, "the log", []byte(log.String()))
		wantNoCanary(t, canary, "the metrics", []byte(r.metrics("")))
		wantNoCanary(t, canary, "the page", page.Body.Bytes())
	})
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		wantNoCanary(t, canary, d.Name(), b)
		if files++; d.Name() == "failed.log" && len(b) == 0 {
			t.Error("no wrong password is in failed.log")
		}
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files were looked at, %v", files, err)
	}
}

func wantNoCanary(t *testing.T, canary, where string, b []byte) {
	t.Helper()
	forms := []string{canary, hex.EncodeToString([]byte(canary)), fmt.Sprintf("%d", []byte(canary))}
	for shift := range 3 { // base64 of it, wherever it begins; the ends depend on what is beside it
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + canary))
		forms = append(forms, text[4:len(text)-4])
	}
	for _, form := range forms {
		if i := bytes.Index(b, []byte(form)); i >= 0 {
			t.Errorf("%s has a password: %q", where, b[max(0, i-40):i])
		}
	}
}

// Criterion: clients that send an octet now and then are ended in time, however
// many they are, and a login among them works.
func TestSlowClientsAreEnded(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	r, _ := startWithLog(t, fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
`, imap)+baseConfigWith("login: 2s, handshake: 2s"))
	const slow = 200
	var wg sync.WaitGroup
	begun := make(chan struct{}, slow)
	for i := range slow {
		wg.Go(func() {
			c, err := r.from(t, fmt.Sprintf("127.3.%d.1", i%20), "imap")
			if err != nil {
				t.Error(err)
				begun <- struct{}{}
				return
			}
			if i%2 == 0 { // the others are slow in the handshake
				_ = c.Handshake()
			}
			begun <- struct{}{}
			for _, octet := range []byte("a LOGIN alice " + strings.Repeat("x", 10_000)) {
				var err error
				if i%2 == 0 {
					_, err = c.Write([]byte{octet})
				} else {
					_, err = c.NetConn().Write([]byte{22})
				}
				if err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Error("a client has all the time it wants")
		})
	}
	for range slow {
		<-begun
	}
	proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
		S: \* OK *
		C: a LOGIN alice "secret of alice"
		S: a OK *
	`)
	wg.Wait()
}

// Criterion: lines, literals and floods of commands without end are refused or
// end the connection, within bounds.
func TestFloodsBeforeLoginAreBounded(t *testing.T) {
	imap, submission := inMemory(t, "mail", "alice")
	r, _ := startWithLog(t, fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: pop3, address: "127.0.0.1:0"}, {protocol: submission, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
`, imap, submission)+baseConfigWith("login: 3s, stall: 2s"))
	proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
		S: \* OK *
		C: a LOGIN {4294967295}
		S: a BAD *
		C: b LOGIN {18446744073709551616}
		S: b BAD *
		C: c LOGIN alice "secret of alice"
		S: c OK *
	`)
	all := map[string][]string{
		"imap":       {strings.Repeat("x", 4<<20), "a LOGIN {99999999+}\r\n" + strings.Repeat("x", 4<<20), strings.Repeat("a CAPABILITY\r\n", 10_000), strings.Repeat("a NOOP\r\n", 1_000_000)},
		"pop3":       {strings.Repeat("x", 4<<20), strings.Repeat("CAPA\r\n", 10_000), strings.Repeat("NOOP\r\n", 100_000)},
		"submission": {strings.Repeat("x", 4<<20), strings.Repeat("EHLO x\r\n", 10_000), strings.Repeat("NOOP\r\n", 100_000)},
	}
	before := heap()
	for protocol, floods := range all {
		for _, flood := range floods {
			for _, reads := range []bool{true, false} {
				c := r.secure(r.dial(t, protocol))
				_ = c.SetDeadline(time.Now().Add(patience))
				if reads {
					go func() { _, _ = io.Copy(io.Discard, c) }()
				}
				_, err := io.WriteString(c, flood)
				if !reads {
					_, err = io.Copy(io.Discard, c)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s takes %.20q... without end", protocol, flood)
				}
				if grown := heap() - before; grown > 2<<20 { // of both ends of the connection
					t.Errorf("%s: %.20q... takes %d KiB", protocol, flood, grown>>10)
				}
				_ = c.Close()
			}
		}
	}
}

// heap returns the octets of the heap that are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Criterion: a client that reads no more of a message stops the backend, is
// ended after the stall, and leaves nothing behind.
func TestClientsThatStopReadingAreEnded(t *testing.T) {
	m := memserver.New(memserver.Options{Accounts: []memserver.Account{{User: "alice", Password: "secret of alice"}}})
	t.Cleanup(func() { _ = m.Close() })
	if err := m.Append("alice", []byte("Subject: big\r\n\r\n"+strings.Repeat(strings.Repeat("x", 70)+"\r\n", 32<<20/72))); err != nil {
		t.Fatal(err)
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := startWithLog(t, fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
`, imap)+baseConfigWith("stall: 1s"))
	settled := func() int { runtime.GC(); return runtime.NumGoroutine() }
	before := settled()
	for range 5 {
		var wg sync.WaitGroup
		for protocol, script := range map[string]string{
			"imap": "S: \\* OK *\nC: a LOGIN alice \"secret of alice\"\nS: a OK *\nC: b SELECT INBOX\nC: c FETCH 1 BODY[]",
			"pop3": "S: +OK *\nC: USER alice\nS: +OK *\nC: PASS secret of alice\nS: +OK *\nC: RETR 1",
		} {
			wg.Go(func() {
				c := r.secure(r.dial(t, protocol))
				proxytest.Transcript(t, c, script)
				within(t, patience, protocol+": the session has ended", func() bool {
					return r.count(t, `sessions_active{protocol="`+protocol+`"}`) == 0
				})
				_ = c.Close()
			})
		}
		wg.Wait()
	}
	within(t, patience, "all goroutines are gone", func() bool { return settled() <= before+2 })
}
