package password

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"postern/proxy"
)

// The limits of a passwd file.
const (
	maxFile     = 64 << 20 // octets
	maxLine     = 4 << 10
	maxMistakes = 20
)

// A File is a Check by a passwd file with at least one account: lines as Dovecot's passwd-file and htpasswd have
// them, of which the account and the hash count:
//
//	alice@example.org:{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$...
//	bob@example.org:$2y$10$...:1000:1000::/home/bob::
//
// The file is read again when it changes.
type File struct {
	CaseCounts bool // case of account names, as it does in all of Postern then; it must not change once the File is in use

	proxy.WatchedFile
	slow  *Slow
	table atomic.Pointer[table]
}

// A table has the lines of a file.
type table struct {
	lines    []line
	accounts map[string]int // index in lines
}

type line struct {
	account string // as it is written
	text    string // of the hash
	hash    hashed
}

// Mistakes are the errors of the lines of a file, each as file:line: text.
type Mistakes []error

// Error returns the first mistakes.
func (m Mistakes) Error() string { return errors.Join(m...).Error() }

// OpenFile reads the file at path. Its hashes run under slow, which all Files share. The
// error of a file with mistakes is a Mistakes. No error contains a hash.
func OpenFile(path string, slow *Slow) (*File, error) {
	f := &File{slow: slow}
	f.Path, f.Parse = path, f.parse
	return f, f.Load()
}

func (f *File) parse(file *os.File, info os.FileInfo) (entries int, err error) {
	const others = 0o007
	switch mode := info.Mode(); {
	case !mode.IsRegular() || info.Size() > maxFile:
		return 0, fmt.Errorf("%s: not a regular file of at most %d MiB", f.Path, maxFile>>20)
	case mode.Perm()&others != 0:
		return 0, fmt.Errorf("%s has mode %04o, and its hashes are for Postern alone: chmod o= %[1]s", f.Path, mode.Perm())
	}
	t, err := parseFile(f.Path, io.LimitReader(file, maxFile))
	if err != nil {
		return 0, err
	}
	f.table.Store(t)
	return len(t.lines), nil
}

func parseFile(path string, in io.Reader) (*table, error) {
	t := &table{accounts: make(map[string]int)}
	var mistakes Mistakes
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() && len(mistakes) < maxMistakes {
		n++
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		if err := t.add(string(text)); err != nil {
			mistakes = append(mistakes, fmt.Errorf("%s:%d: %w", path, n, err))
		}
	}
	if err := lines.Err(); err != nil {
		mistakes = append(mistakes, fmt.Errorf("%s:%d: %w", path, n+1, err))
	}
	switch {
	case mistakes != nil:
		return nil, mistakes
	case len(t.lines) == 0: // cut off by a full disk, for example: everybody's password would be wrong
		return nil, fmt.Errorf("%s has no account: write lines account:hash", path)
	}
	return t, nil
}

// add adds the account and the hash of a line.
func (t *table) add(text string) error {
	account, rest, found := bytes.Cut([]byte(text), []byte(":"))
	hash, _, _ := bytes.Cut(rest, []byte(":"))
	if !found || len(account) == 0 || len(hash) == 0 {
		return errors.New("the line is not account:hash")
	}
	name := lower(string(account))
	if _, twice := t.accounts[name]; twice {
		return errors.New("a second line of the same account: remove one of them")
	}
	h, err := parseHash(string(hash))
	if err != nil {
		return err
	}
	t.accounts[name] = len(t.lines)
	t.lines = append(t.lines, line{string(account), string(hash), h})
	return nil
}

// lower returns s with letters of ASCII in lower case.
func lower(s string) string {
	return string(bytes.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, []byte(s)))
}

// Known reports whether the file has a line of account.
func (f *File) Known(account string) bool {
	_, known := f.find(f.table.Load(), account)
	return known
}

// find returns the index of account in t.lines. Where case counts for the guard, a second
// spelling of an account would be a second budget of guesses.
func (f *File) find(t *table, account string) (at int, known bool) {
	at, known = t.accounts[lower(account)]
	return at, known && (!f.CaseCounts || t.lines[at].account == account)
}

// Check implements Check. An account without a line costs what the line of some account
// costs, always the same one: time does not tell which accounts the file has.
func (f *File) Check(ctx context.Context, l *proxy.Login) error {
	t := f.table.Load()
	secret := l.Secret.Reveal()
	if len(secret) == 0 || len(secret) > maxPassword {
		return wrong()
	}
	account := lower(l.Account)
	at, known := f.find(t, l.Account)
	if !known {
		at = f.slow.pick(account, len(t.lines))
	}
	right, err := f.slow.verify(ctx, t.lines[at].hash, account, t.lines[at].text, secret)
	if err != nil {
		return err
	}
	if !known || !right {
		return wrong()
	}
	return nil
}

// pick returns a number below n that belongs to the account until the process ends.
func (s *Slow) pick(account string, n int) int {
	h := hmac.New(sha256.New, s.secret())
	h.Write([]byte("pick "))
	h.Write([]byte(account))
	return int(binary.BigEndian.Uint64(h.Sum(nil)) % uint64(n))
}
