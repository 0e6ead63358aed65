package proxytest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// mailUser owns the mail of all users: a system user that every Debian has.
const mailUser = "mail"

var deliveries atomic.Int64

// makeMaildir makes a maildir, and the home that it is in, unless it is there.
func makeMaildir(t testing.TB, maildir string) {
	t.Helper()
	uid, gid := lookupUser(t, mailUser)
	for _, dir := range []string{filepath.Dir(maildir), maildir, filepath.Join(maildir, "cur"), filepath.Join(maildir, "new"), filepath.Join(maildir, "tmp")} {
		if _, err := os.Stat(dir); err != nil {
			mkdir(t, dir, uid, gid, 0o700)
		}
	}
}

// deliver puts a message into a maildir, atomically and byte for byte, and
// returns its path.
func deliver(t testing.TB, maildir string, raw []byte) string {
	t.Helper()
	makeMaildir(t, maildir)
	uid, gid := lookupUser(t, mailUser)
	// Servers give UIDs in the order of the names.
	now := time.Now()
	name := fmt.Sprintf("%d.M%06dP%dQ%09d.postern", now.Unix(), now.Nanosecond()/1000, os.Getpid(), deliveries.Add(1))
	tmp, path := filepath.Join(maildir, "tmp", name), filepath.Join(maildir, "new", name)
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(tmp, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// stored returns the messages in a maildir as they are on disk, in the order of
// their file names.
func stored(t testing.TB, maildir string) [][]byte {
	t.Helper()
	var paths []string
	for _, dir := range []string{"cur", "new"} {
		found, err := filepath.Glob(filepath.Join(maildir, dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	slices.SortFunc(paths, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	messages := make([][]byte, len(paths))
	for i, path := range paths {
		var err error
		if messages[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return messages
}
