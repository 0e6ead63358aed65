package password

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy"
)

// quick is a hash of "secret of alice" that takes a millisecond.
const quick = "$6$rounds=1000$E/9dx1OfkQN0nO63$8Vgvf6gp5SXtNcKYXLk6wNQJaVIc4awgaxp.fki/OJ.uR60BkrlE6sS0btHzgHCIMf5Rwm8dmH3W9NimiH6qD0"

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func openFile(t *testing.T, text string) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "passwd")
	writeFile(t, path, text)
	f, err := OpenFile(path, new(Slow))
	if err != nil {
		t.Fatal(err)
	}
	return f, path
}

// Criterion: Lines as Dovecot's passwd-file and htpasswd have them log accounts in; an unknown account, an empty password and another account's are wrong.
func TestLinesOfAPasswdFile(t *testing.T) {
	f, _ := openFile(t, "# moved in November\n\n"+
		"alice@example.org:{SHA512-CRYPT}"+quick+"\n"+
		"Bob@Example.org:"+writtenByTools[4]+":1000:1000::/home/bob::userdb_quota_rule=*:storage=1G\r\n"+
		"carol@example.org:"+strings.Replace(quick, "8Vgvf", "9Vgvf", 1)+"\n")
	for _, account := range []string{"alice@example.org", "bob@example.org", "BOB@example.org"} {
		expect(t, f, login(account, "secret of alice"), 0, false)
		for _, secret := range []string{"", "secret of Alice", "secret of alice ", strings.Repeat("x", maxPassword+1)} {
			expect(t, f, login(account, secret), proxy.Wrong, false)
		}
	}
	if !f.Known("ALICE@example.org") || f.Known("dave@example.org") {
		t.Error("it is not known who has a line")
	}
	for _, account := range []string{"carol@example.org", "dave@example.org", "", "#", "# moved in November"} {
		expect(t, f, login(account, "secret of alice"), proxy.Wrong, false)
	}
}

// Criterion: A mistake in the passwd file is reported with its line, and without the hash.
func TestMistakesOfAPasswdFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	writeFile(t, path, "alice:"+quick+"\nbob:{PLAIN}planted\nALICE:"+quick+"\nno colon planted\n:"+quick+"\nerin:\n"+strings.Repeat("x", maxLine+1)+"\n")
	_, err := OpenFile(path, new(Slow))
	mistakes, ok := errors.AsType[Mistakes](err)
	if !ok || len(mistakes) != 6 {
		t.Fatalf("OpenFile = %v, want 6 mistakes", err)
	}
	for i, line := range []string{":2: the scheme", ":3: a second line", ":4: the line is not", ":5: the line is not", ":6: the line is not", ":7: "} {
		if text := mistakes[i].Error(); !strings.HasPrefix(text, path+line) || strings.Contains(text, "planted") || strings.Contains(text, quick) {
			t.Errorf("mistake %d is %q, want %q", i, text, line)
		}
	}
	for _, empty := range []string{"", "\n# nobody\n"} {
		writeFile(t, path, empty)
		if _, err := OpenFile(path, new(Slow)); err == nil || !strings.Contains(err.Error(), "has no account") {
			t.Errorf("OpenFile of a file without accounts = %v", err)
		}
	}
	writeFile(t, path, "alice:"+quick+"\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path, new(Slow)); err == nil || !strings.Contains(err.Error(), "chmod o=") {
		t.Errorf("a file for all to read: %v", err)
	}
	if _, err := OpenFile(t.TempDir(), new(Slow)); err == nil {
		t.Error("a folder is read")
	}
}

// Criterion: A wrong password costs the same for accounts of the passwd file and for unknown ones.
func TestAWrongPasswordCostsTheSameForAll(t *testing.T) {
	f, _ := openFile(t, "alice:"+quick+"\nbob:"+quick+"\n")
	known, unknown := login("alice", "wrong"), login("nobody", "wrong")
	sameTime(t, 1000, func() { _ = f.Check(t.Context(), known) }, func() { _ = f.Check(t.Context(), unknown) })
}

// Criterion: Changes of the passwd file count without a reload; a file with a mistake, or none, keeps the content of before and is logged once.
func TestAChangedFileIsReadAgain(t *testing.T) {
	f, path := openFile(t, "alice:"+quick+"\n")
	var log safeBuffer
	done := make(chan struct{})
	ctx := t.Context()
	go func() {
		defer close(done)
		f.Watch(ctx, 5*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	t.Cleanup(func() { <-done })
	until := func(what string, ok func() bool) {
		t.Helper()
		for range 1000 {
			if ok() {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("%s: does not happen; log: %s", what, log.String())
	}
	knows := func(account string) bool { return f.Check(t.Context(), login(account, "secret of alice")) == nil }

	writeFile(t, path, "bob:"+quick+"\n")
	until("bob comes, and alice goes", func() bool { return knows("bob") && !knows("alice") })
	for _, text := range []string{"", "bob:" + quick + "\ncarol:planted\n"} {
		writeFile(t, path, text)
		until("the mistake is noticed", func() bool {
			err := f.Stale()
			return err != nil && strings.Contains(err.Error(), "no account") == (text == "")
		})
	}
	if !knows("bob") {
		t.Error("a mistake loses the content of before")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	until("the loss is noticed", func() bool { return f.Stale() != nil && errors.Is(f.Stale(), os.ErrNotExist) })
	if !knows("bob") {
		t.Error("a loss of the file loses the content of before")
	}
	writeFile(t, path, "alice:"+quick+"\n")
	until("the file is back", func() bool { return f.Stale() == nil && knows("alice") && !knows("bob") })
	if text := log.String(); strings.Count(text, "carol") != 0 || strings.Contains(text, "planted") || strings.Count(text, ":2:") != 1 {
		t.Errorf("log: %s", text)
	}
}

// A safeBuffer may be written and read by several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func FuzzPasswdFile(f *testing.F) {
	f.Add("alice:" + quick + "\n# comment\nbob@example.org:{BLF-CRYPT}" + writtenByTools[4] + ":1000::\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseFile("passwd", strings.NewReader(text))
		if err != nil {
			return
		}
		for account, at := range table.accounts {
			if account == "" || account != lower(account) || at >= len(table.lines) || table.lines[at].hash == nil {
				t.Errorf("account %q has line %d of %d", account, at, len(table.lines))
			}
		}
	})
}
