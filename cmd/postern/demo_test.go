package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// startDemo runs the demo and returns what it has printed when it was ready.
func startDemo(t *testing.T) (base int, printed string) {
	t.Helper()
	base = freeBase(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	var log syncBuffer
	done := make(chan error, 1)
	go func() {
		done <- demo(ctx, base, w, &log)
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
			return base, printed
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

// Criterion: the commands that the demo prints work as they are printed; what they send appears in the inbox.
func TestCommandsOfTheDemoWork(t *testing.T) {
	proxytest.Need(t, "curl", "sh")
	_, printed := startDemo(t)
	commands := regexp.MustCompile(`(?m)^  ((?:curl|printf)(?:.*\\\n)?.*)$`).FindAllStringSubmatch(printed, -1)
	if len(commands) != 5 {
		t.Fatalf("%d commands in\n%s", len(commands), printed)
	}
	run := func(i int) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "sh", "-c", strings.Replace(commands[i][1], "curl ", "curl --silent --show-error ", 1)).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", commands[i][1], err, out)
		}
		return string(out)
	}
	before := strings.Count(run(0), "\n")
	for _, i := range []int{1, 2} {
		if got := run(i); !strings.Contains(got, "Subject: Welcome to Postern") {
			t.Errorf("%s printed\n%s", commands[i][1], got)
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
	base, _ := startDemo(t)
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
