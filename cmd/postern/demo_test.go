package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// startDemo runs a demo and returns what it has printed when it was ready, and its log.
func startDemo(t *testing.T, demo func(ctx context.Context, base int, stdout, stderr io.Writer) error) (base int, printed string, log *syncBuffer) {
	t.Helper()
	base = freeBase(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	log = &syncBuffer{}
	done := make(chan error, 1)
	go func() {
		done <- demo(ctx, base, w, log)
		_ = w.Close()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("demo ended with %v", err)
		}
		if t.Failed() {
			t.Logf("log of the demo:\n%s", log.String())
		}
	})
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		printed += lines.Text() + "\n"
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return base, printed, log
		}
	}
	t.Fatalf("demo is not ready: %v\n%s", <-done, printed)
	panic("unreachable")
}

// freeBase returns a base whose four ports are free at this moment.
func freeBase(t *testing.T) int {
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		base := portOf(ln) - 993
		ln.Close()
		free := base > 0 && base < 60000
		for _, port := range []int{993, 995, 465, 930} {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+port))
			if free = free && err == nil; err == nil {
				ln.Close()
			}
		}
		if free {
			return base
		}
	}
	t.Fatal("no free ports")
	panic("unreachable")
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// demoCommands returns what runs the n commands of curl that a demo has printed.
func demoCommands(t *testing.T, printed string, n int) (run func(i int) string) {
	t.Helper()
	commands := regexp.MustCompile(`(?m)^  ((?:curl|printf)(?:.*\\\n)?.*)$`).FindAllStringSubmatch(printed, -1)
	if len(commands) != n {
		t.Fatalf("%d commands in\n%s", len(commands), printed)
	}
	return func(i int) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "sh", "-c", strings.Replace(commands[i][1], "curl ", "curl --silent --show-error ", 1)).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", commands[i][1], err, out)
		}
		return string(out)
	}
}

// fetchAndSend runs the commands of a demo: a list, two that fetch, one that sends, and the
// metrics.
func fetchAndSend(t *testing.T, run func(i int) string) {
	t.Helper()
	before := strings.Count(run(0), "\n")
	for _, i := range []int{1, 2} {
		if got := run(i); !strings.Contains(got, "Subject: Welcome to Postern") {
			t.Errorf("command %d printed\n%s", i, got)
		}
	}
	run(3)
	if after := strings.Count(run(0), "\n"); after != before+1 {
		t.Errorf("%d messages after one was sent, %d before", after, before)
	}
	if got := run(4); !strings.Contains(got, `postern_auth_attempts_total{mechanism="plain",protocol="pop3",result="ok"} 3`) {
		t.Errorf("metrics do not count three logins by POP3:\n%s", grep(got, "auth_attempts"))
	}
}

// Criterion: the commands that the demo prints work as they are printed; what they send appears in the inbox.
func TestCommandsOfTheDemoWork(t *testing.T) {
	proxytest.Need(t, "curl", "sh")
	_, printed, _ := startDemo(t, demo)
	fetchAndSend(t, demoCommands(t, printed, 5))
}

// Criterion: the commands that the demo of OAuth prints work as they are printed, with a device password in front of a mail server that takes tokens alone; the log has neither the password nor a token, and the folder of the demo is gone afterwards.
func TestCommandsOfTheDemoOfOAuthWork(t *testing.T) {
	proxytest.Need(t, "curl", "sh")
	var folder string
	t.Run("demo", func(t *testing.T) {
		base, printed, log := startDemo(t, demoOAuth)
		password := regexp.MustCompile(`(?m)^  ([0-9a-z-]{30,})$`).FindStringSubmatch(printed)
		config := regexp.MustCompile(`--config (\S+)`).FindStringSubmatch(printed)
		if password == nil || config == nil {
			t.Fatalf("no password or no configuration in\n%s", printed)
		}
		folder = filepath.Dir(config[1])
		fetchAndSend(t, demoCommands(t, printed, 5))
		for _, line := range regexp.MustCompile(`(?m)^  (postern .*?) +#`).FindAllStringSubmatch(printed, -1) {
			out := run(t, t.TempDir(), nil, strings.Fields(line[1]))
			if !strings.Contains(out, "demo@example.org") || strings.Contains(out, password[1]) {
				t.Errorf("%s printed\n%s", line[1], out)
			}
		}
		added := run(t, t.TempDir(), nil, []string{"postern", "password", "add", demoAccount, "--name", "another", "--config", config[1]})
		another := regexp.MustCompile(`password +(\S+)`).FindStringSubmatch(added)
		if another == nil {
			t.Fatal("no password was made")
		}
		curl := exec.Command("curl", "--silent", "--show-error", "--insecure", "--user", demoAccount+":"+another[1], fmt.Sprintf("pop3s://127.0.0.1:%d/", base+995))
		if out, err := curl.CombinedOutput(); err != nil {
			t.Errorf("another password: %v\n%s", err, out)
		}
		if strings.Contains(log.String(), password[1]) || strings.Contains(log.String(), strings.ReplaceAll(password[1], "-", "")) {
			t.Error("the log has the password")
		}
		if got := log.String(); !strings.Contains(got, "device=") {
			t.Errorf("no login in the log has its device:\n%s", got)
		}
	})
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of the demo: %v, want that it is gone", err)
	}
}

func grep(text, word string) string {
	var found []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

func TestDemoIsReadyInAMoment(t *testing.T) {
	base, _, _ := startDemo(t, demo)
	for path, want := range map[string]string{"healthz": "alive\n", "readyz": "ready\n"} {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/%s", base+930, path))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != want || resp.StatusCode != http.StatusOK {
			t.Errorf("/%s says %d %s", path, resp.StatusCode, got)
		}
	}
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", base+465), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	proxytest.Transcript(t, c, `
		S: 220 localhost *
		C: QUIT
		S: 221 *
	`)
}

func TestDemoNamesAPortThatIsTaken(t *testing.T) {
	base := freeBase(t)
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+995))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = demo(t.Context(), base, io.Discard, io.Discard)
	if want := fmt.Sprintf("listen on 127.0.0.1:%d: address already in use by ", base+995); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("demo: %v, want ...%s...", err, want)
	}
}
