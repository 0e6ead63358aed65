package token

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

func servesAll(string) bool { return true }

// writeNames writes a file as an editor does that makes a new one.
func writeNames(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestNamesOfMailboxes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	writeNames(t, path, "# comment\n\nScanner@example.org shared@example.net\nanna@example.org imap=shared@example.net submission=anna@example.net\n")
	names, err := OpenNames(path, servesAll)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ account, protocol, want string }{
		{"scanner@example.org", proxy.IMAP, "shared@example.net"},
		{"SCANNER@example.org", proxy.Submission, "shared@example.net"},
		{"anna@example.org", proxy.IMAP, "shared@example.net"},
		{"anna@example.org", proxy.Sieve, "shared@example.net"},
		{"anna@example.org", proxy.Submission, "anna@example.net"},
		{"bob@example.org", proxy.IMAP, "bob@example.org"},
	} {
		if got := names.mailbox(test.account, test.protocol); got != test.want {
			t.Errorf("%s, %s: %s, want %s", test.account, test.protocol, got, test.want)
		}
	}
	if got := (*Names)(nil).mailbox("bob@example.org", proxy.IMAP); got != "bob@example.org" {
		t.Errorf("without a file: %s", got)
	}
	writeNames(t, path, "a@b\nb@b x\nc@b pop3=x@y\nd@b x@y z@y\ne@b x@y\nE@b x@y\n")
	_, err = OpenNames(path, servesAll)
	for _, line := range []string{"line 1:", "line 2:", "line 3:", "line 4:", "line 6:"} {
		if err == nil || !strings.Contains(err.Error(), line) {
			t.Errorf("%v, want %s", err, line)
		}
	}
	p := &Provider{Domains: []string{"example.org"}}
	writeNames(t, path, "a@b.example x@example.org\na@c.example imap=x@EXAMPLE.org submission=x@example.net\n")
	if _, err = OpenNames(path, p.Serves); err == nil || err.Error() != "line 2: the provider's domains do not have that of x@example.net" {
		t.Errorf("a mailbox without tokens: %v", err)
	}
	writeNames(t, path, strings.Repeat("wrong\n", 1000))
	if _, err := OpenNames(path, servesAll); err == nil || strings.Count(err.Error(), "\n") != maxMistakes-1 {
		t.Errorf("%v, want %d lines", err, maxMistakes)
	}
	for _, empty := range []string{"", "# nobody\n"} {
		writeNames(t, path, empty)
		if _, err := OpenNames(path, servesAll); err == nil || !strings.Contains(err.Error(), "has no account") {
			t.Errorf("%q: %v", empty, err)
		}
	}
	if _, err := OpenNames(t.TempDir(), servesAll); err == nil {
		t.Error("a folder is read")
	}
}

// A lockedBuffer is a log that a test reads while others write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was written since the last call.
func (l *lockedBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.b.String()
	l.b.Reset()
	return text
}

// Criterion: A change of names_file counts within 2 s; a file that is broken, emptied or away changes nothing, is logged once and is shown until it is mended.
func TestNamesAreReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	writeNames(t, path, "scanner@example.org shared@example.org\n")
	names, err := OpenNames(path, servesAll)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		ctx, cancel := context.WithCancel(t.Context())
		go names.Watch(ctx, time.Second, slog.New(slog.NewTextHandler(&log, nil)))
		step := func(what, mailbox string, stale bool, lines int) {
			t.Helper()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if got := names.mailbox("scanner@example.org", proxy.IMAP); got != mailbox {
				t.Errorf("%s: %s, want %s", what, got, mailbox)
			}
			if (names.Stale() != nil) != stale {
				t.Errorf("%s: stale is %v", what, names.Stale())
			}
			text := log.take()
			if got := strings.Count(text, "\n"); got != lines {
				t.Errorf("%s: %d lines in the log, want %d:\n%s", what, got, lines, text)
			}
		}
		time.Sleep(time.Millisecond) // between two looks
		step("unchanged", "shared@example.org", false, 0)
		writeNames(t, path, "scanner@example.org other@example.org\n")
		step("changed", "other@example.org", false, 1)
		writeNames(t, path, "scanner@example.org\n")
		step("broken", "other@example.org", true, 1)
		step("broken still", "other@example.org", true, 0)
		writeNames(t, path, "")
		step("emptied", "other@example.org", true, 1)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		step("away", "other@example.org", true, 1)
		writeNames(t, path, "scanner@example.org third@example.org\n")
		step("mended", "third@example.org", false, 1)
		cancel()
		synctest.Wait()
	})
}

func TestEqualNames(t *testing.T) {
	open := func(text string) *Names {
		path := filepath.Join(t.TempDir(), "names")
		writeNames(t, path, text)
		n, err := OpenNames(path, servesAll)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, same, other := open("a@b x@y\n"), open("# a\na@b x@y\n"), open("a@b imap=x@y\n")
	if !a.Equal(a) || !a.Equal(same) || a.Equal(other) || a.Equal(nil) || (*Names)(nil).Equal(a) || !(*Names)(nil).Equal(nil) {
		t.Error("Equal is wrong")
	}
}

// BenchmarkNamesMemory reports what a line of names_file takes.
func BenchmarkNamesMemory(b *testing.B) {
	const lines = 50_000
	path := filepath.Join(b.TempDir(), "names")
	var text bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&text, "user%05d@mail.customer.example imap=shared%05d@customer.example submission=user%05d@customer.example\n", i, i, i)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		names, err := OpenNames(path, servesAll)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/lines, "B/line")
		runtime.KeepAlive(names)
	}
}
