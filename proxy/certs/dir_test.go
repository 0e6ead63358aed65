package certs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
)

// subfolder makes the folder of a name as certbot does.
func subfolder(t testing.TB, live, name string) Pair {
	t.Helper()
	dir := filepath.Join(live, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return Pair{filepath.Join(dir, folderCert), filepath.Join(dir, folderKey)}
}

// Criterion: of a folder of certificates, each name is served, new and renewed ones too, and what is wrong with one harms no other.
func TestFolderHasAPairForEachName(t *testing.T) {
	live := t.TempDir()
	writePair(t, subfolder(t, live, "a"), certTemplate{names: []string{"a.example.org"}})
	gone := subfolder(t, live, "gone")
	writePair(t, gone, certTemplate{names: []string{"gone.example.org"}})
	bad := subfolder(t, live, "bad")
	writePair(t, bad, certTemplate{names: []string{"bad.example.org"}})
	writeKey(t, bad.Key, newKey(t, false))
	subfolder(t, live, "empty")
	if err := os.WriteFile(filepath.Join(live, "README"), []byte("certbot's"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Folders: []string{live}, Default: "b.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	config := s.TLS(proxy.IMAP, proxy.Modern)
	shown := func(name string) string {
		t.Helper()
		return servedCertificate(t, config, clientConfig(name)).DNSNames[0]
	}
	if got := shown("a.example.org"); got != "a.example.org" {
		t.Errorf("a.example.org is shown the certificate of %s", got)
	}
	if _, err := s.reload(); err == nil || !strings.Contains(err.Error(), bad.Cert) {
		t.Errorf("the first look: %v, want what is wrong with %s", err, bad.Cert)
	}
	if _, err := s.reload(); err != nil {
		t.Errorf("the second look says again: %v", err)
	}

	writePair(t, subfolder(t, live, "b"), certTemplate{names: []string{"b.example.org"}})
	writeKey(t, bad.Key, newKey(t, false)) // still not the certificate's
	if renewed, err := s.reload(); len(renewed) != 1 || err == nil {
		t.Errorf("after a new one, and a key that is still wrong: %d new, %v", len(renewed), err)
	}
	for name, want := range map[string]string{"b.example.org": "b.example.org", "": "b.example.org", "unknown.example": "b.example.org"} {
		if got := shown(name); got != want {
			t.Errorf("%q is shown the certificate of %s, want %s", name, got, want)
		}
	}
	// What is bad now is served as it was, also by another configuration.
	b := subfolder(t, live, "b")
	if err := os.WriteFile(b.Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(Config{Folders: []string{live}, Default: "a.example.org"}); err != nil {
		t.Fatal(err)
	}
	if got := shown("b.example.org"); got != "b.example.org" {
		t.Errorf("b.example.org, whose key is half written, is shown the certificate of %s", got)
	}
	writePair(t, b, certTemplate{names: []string{"b.example.org"}})
	writePair(t, bad, certTemplate{names: []string{"bad.example.org"}})
	if err := os.RemoveAll(filepath.Dir(gone.Cert)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reload(); err != nil {
		t.Errorf("after all is well: %v", err)
	}
	if got := shown("bad.example.org"); got != "bad.example.org" {
		t.Errorf("bad.example.org, put right, is shown the certificate of %s", got)
	}
	if got := shown("gone.example.org"); got == "gone.example.org" {
		t.Error("a certificate whose folder is gone is shown")
	}
}

func TestCertificateThatComesBeforeItsKeyIsServedInTheEnd(t *testing.T) {
	live := t.TempDir()
	p := subfolder(t, live, "a")
	writePair(t, p, certTemplate{names: []string{"a.example.org"}})
	s, err := New(Config{Folders: []string{live}})
	if err != nil {
		t.Fatal(err)
	}
	later := subfolder(t, t.TempDir(), "a")
	want := writePair(t, later, certTemplate{names: []string{"a.example.org"}})
	if err := os.Rename(later.Cert, p.Cert); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reload(); err == nil {
		t.Error("a certificate without its key: no error")
	}
	if err := os.Rename(later.Key, p.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reload(); err != nil {
		t.Error(err)
	}
	if got := servedCertificate(t, s.TLS(proxy.IMAP, proxy.Modern), clientConfig("a.example.org")); !got.Equal(want) {
		t.Error("the renewed certificate is not served")
	}
}

// Criterion: a pipe, a device or an endless file in the place of a certificate or a key stops no other certificate.
func TestFilesThatDoNotEnd(t *testing.T) {
	live := t.TempDir()
	good := subfolder(t, live, "good")
	writePair(t, good, certTemplate{names: []string{"good.example.org"}})
	pipe, device, large := subfolder(t, live, "pipe"), subfolder(t, live, "device"), subfolder(t, live, "large")
	writePair(t, pipe, certTemplate{names: []string{"pipe.example.org"}})
	writePair(t, large, certTemplate{names: []string{"large.example.org"}})
	for _, err := range []error{
		os.Remove(pipe.Key), syscall.Mkfifo(pipe.Key, 0o600), os.Symlink("/dev/zero", device.Cert), os.Truncate(large.Cert, 1<<40),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan string)
	go func() {
		s, err := New(Config{Folders: []string{live}, Default: "good.example.org"})
		if err != nil {
			t.Error(err)
			close(done)
			return
		}
		_, err = s.reload()
		done <- fmt.Sprint(err)
	}()
	select {
	case got := <-done:
		for _, want := range []string{pipe.Key + " is no regular file", device.Cert + " is no regular file", large.Cert + " has more than"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s, want %q", got, want)
			}
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a file does not end")
	}
}

func TestFolderThatIsEmptiedKeepsItsCertificates(t *testing.T) {
	live := filepath.Join(t.TempDir(), "live")
	writePair(t, subfolder(t, live, "a"), certTemplate{names: []string{"a.example.org"}})
	s, err := New(Config{Folders: []string{live}})
	if err != nil {
		t.Fatal(err)
	}
	away := live + ".away"
	if err := os.Rename(live, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(live, 0o700); err != nil { // as a mount point is
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(live, long, long); err != nil {
		t.Fatal(err)
	}
	served := func() int { return len(s.current.Load().certs) }
	if _, err := s.reload(); err == nil || !strings.Contains(err.Error(), "none any more") || served() != 1 {
		t.Errorf("emptied: %v, %d certificates are served", err, served())
	}
	// What stays the same is not told again, but for the files.
	if _, err := s.reload(); err != nil && strings.Contains(err.Error(), "none any more") {
		t.Errorf("still empty: %v", err)
	}
	if err := os.Remove(live); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, live); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reload(); err != nil || served() != 1 {
		t.Errorf("filled again: %v, %d certificates are served", err, served())
	}
	if err := os.RemoveAll(filepath.Join(live, "a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(Config{Folders: []string{live}}); err != nil || served() != 0 {
		t.Errorf("emptied, and told to look: %v, %d certificates are served", err, served())
	}
}

func TestFolderThatCannotBeReadIsAMistake(t *testing.T) {
	if _, err := New(Config{Folders: []string{filepath.Join(t.TempDir(), "none")}}); err == nil {
		t.Error("New with a folder that is not there: no error")
	}
}

func TestExpiryOfAFolderIsThatOfTheWorst(t *testing.T) {
	live := t.TempDir()
	writePair(t, subfolder(t, live, "a"), certTemplate{names: []string{"a.example.org"}})
	worst := writePair(t, subfolder(t, live, "b"), certTemplate{names: []string{"b.example.org"}, ended: -1e9})
	s, err := New(Config{Folders: []string{live}})
	if err != nil {
		t.Fatal(err)
	}
	want := Validity{AllNames, SourceFolder, worst.NotBefore, worst.NotAfter, "expires in a minute, self-signed", slog.LevelWarn}
	if got := s.Expiry(); len(got) != 1 || got[0] != want {
		t.Errorf("Expiry() = %v, want only %v", got, want)
	}
}

// BenchmarkFolderLook measures a look at 5,000 names of which none has changed.
func BenchmarkFolderLook(b *testing.B) {
	live := b.TempDir()
	f := &folder{path: live}
	for i := range 5000 {
		p := subfolder(b, live, fmt.Sprintf("n%d.example.org", i))
		if err := os.WriteFile(p.Cert, []byte("x"), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := f.list(false); err != nil {
		b.Fatal(err)
	}
	for _, pair := range f.files {
		pair.changed()
	}
	f.info = statFile(live) // as when the folder is older than it is here
	for b.Loop() {
		if _, _, err := f.reload(); err != nil {
			b.Fatal(err)
		}
	}
}
