package route

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"maps"
	"math/bits"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// A File is a Rule that reads accounts from a text file. A line has an account,
// the domain of accounts as @example.org, or * for all, and may be followed by
// the name of a backend, and by who answers POP3:
//
//	# moved in November
//	alice@example.org
//	@example.net       new
//	carol@example.net  new pop3=passthrough
//	*                  old
//
// An account's own line goes before its domain's, and that before *. Case does
// not count (ASCII). A # at the begin of a word starts a comment. What a line does
// not say is as in the Choice of the File.
type File struct {
	otherwise Choice
	lines     *lines
}

// OpenFile reads the file at path. otherwise is for what lines do not say; if it has
// no Backend, each line must name one. Only the backends in known may be named, each
// with a POP3Mode that known has for it. The error of a file with mistakes is a
// Mistakes.
func OpenFile(path string, otherwise Choice, known map[string][]string) (*File, error) {
	names := slices.Sorted(maps.Keys(known))
	l, err := openLines(path, func(rest string) error {
		c, err := parseChoice(rest)
		if err != nil {
			return err
		}
		word := c.POP3Mode
		switch c = c.or(otherwise); {
		case c.Backend == "":
			return fmt.Errorf("the line names no backend, nor does its route; there are: %s", listed(names))
		case !slices.Contains(names, c.Backend):
			return fmt.Errorf("there is no backend %q; there are: %s", shorten(c.Backend), listed(names))
		case word == "" || slices.Contains(known[c.Backend], word):
			return nil
		case slices.Contains(POP3Modes(), word):
			return fmt.Errorf("backend %s cannot answer with pop3=%s: %s", c.Backend, word, needs(word))
		}
		return fmt.Errorf("pop3=%s is not known; there are: %s", shorten(word), listed(POP3Modes()))
	})
	if err != nil {
		return nil, err
	}
	return &File{otherwise, l}, nil
}

func needs(mode string) string {
	switch mode {
	case Passthrough:
		return "it has no pop3 server, and pop3.old_server names none"
	case Shadow:
		return "it needs an imap server, a pop3 server (its own or that of pop3.old_server), and state.path"
	}
	return "it has no imap server"
}

// parseChoice reads what follows a key.
func parseChoice(rest string) (c Choice, err error) {
	var names []string
	for word := range strings.FieldsSeq(rest) {
		mode, ok := strings.CutPrefix(word, "pop3=")
		switch {
		case !ok:
			names = append(names, word)
		case c.POP3Mode != "":
			return c, errors.New("the line has pop3= twice")
		case mode == "":
			return c, fmt.Errorf("pop3= has no value; there are: %s", listed(POP3Modes()))
		default:
			c.POP3Mode = mode
		}
	}
	c.Backend = strings.Join(names, " ")
	return c, nil
}

// or returns c, and what c does not say from otherwise.
func (c Choice) or(otherwise Choice) Choice {
	return Choice{cmp.Or(c.Backend, otherwise.Backend), cmp.Or(c.POP3Mode, otherwise.POP3Mode)}
}

// Watch looks at the file in intervals of every until ctx ends, and reads it
// again when it has changed and was the same in two looks. A file that cannot be
// read, or has a mistake, changes nothing.
func (f *File) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	f.lines.Watch(ctx, every, log)
}

// Stale returns why Watch has not loaded the file as it is now; nil: it has.
func (f *File) Stale() error { return f.lines.Stale() }

// Route implements Rule.
func (f *File) Route(_ context.Context, l *proxy.Login) (Choice, error) {
	t := f.lines.table.Load()
	for _, key := range keysOf(l.Account) {
		if rest, ok := t.get(key); ok {
			return f.choice(rest), nil
		}
	}
	return Choice{}, nil
}

// choice returns the Choice of what follows a key.
func (f *File) choice(rest string) Choice {
	c, _ := parseChoice(rest) // OpenFile has checked the line
	return c.or(f.otherwise)
}

// MayReturn implements Rule.
func (f *File) MayReturn(c Choice) bool {
	for rest := range f.lines.table.Load().values {
		if f.choice(rest) == c {
			return true
		}
	}
	return false
}

// Known reports whether the file lists account itself.
func (f *File) Known(account string) bool { return f.lines.known(account) }

// keysOf returns the keys of account in a file, the most specific first.
func keysOf(account string) [3]string {
	account = strings.Map(lowerRune, account)
	domain := ""
	if at := strings.LastIndexByte(account, '@'); at >= 0 {
		domain = account[at:]
	}
	return [...]string{account, domain, "*"}
}

// maxFile is the largest file, in octets. Offsets in it have 32 bits.
const maxFile = 512 << 20

// lines are the entries of a file that is read again when it changes.
type lines struct {
	proxy.WatchedFile
	check func(rest string) error // checks what follows a key
	table atomic.Pointer[table]
}

func openLines(path string, check func(rest string) error) (*lines, error) {
	l := &lines{check: check}
	l.Path, l.Parse = path, l.parse
	return l, l.Load()
}

func (l *lines) known(account string) bool {
	account = strings.Map(lowerRune, account)
	if account == "*" || strings.HasPrefix(account, "@") {
		return false
	}
	_, ok := l.table.Load().get(account)
	return ok
}

func (l *lines) knownDomain(domain string) bool {
	_, ok := l.table.Load().get("@" + strings.Map(lowerRune, domain))
	return ok
}

func (l *lines) parse(file *os.File, info os.FileInfo) (entries int, err error) {
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return 0, fmt.Errorf("%s: not a regular file of at most %d MiB", l.Path, maxFile>>20)
	}
	text := make([]byte, info.Size())
	if _, err := io.ReadFull(file, text); err != nil {
		return 0, fmt.Errorf("read %s: %w", l.Path, err)
	}
	t, wrong := parse(l.Path, text, l.check)
	if wrong != nil {
		return 0, wrong
	}
	l.table.Store(t)
	return t.entries, nil
}

// Mistakes are the errors of the lines of a file, each as file:line: text: the first
// maxMistakes.
type Mistakes []error

const maxMistakes = 100

// Error returns the first mistakes, and how many there are.
func (m Mistakes) Error() string {
	const most = 3
	var texts []string
	for _, err := range m[:min(len(m), most)] {
		texts = append(texts, err.Error())
	}
	if len(m) > most {
		texts = append(texts, fmt.Sprintf("and %d more", len(m)-most))
	}
	return strings.Join(texts, "; ")
}

// quoted returns what follows a key, for an error.
func quoted(value string) string {
	if value == "" {
		return "nothing"
	}
	return fmt.Sprintf("%q", shorten(value))
}

// listed returns names for an error, the first 20 of them.
func listed(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// A table finds lines of a text by their keys. It is the text itself, with the
// keys in lower case, and a hash table of the offsets of lines: a million
// accounts need little more memory than their names.
type table struct {
	text    []byte
	slots   []uint32 // offset + 1; 0: free. The length is a power of two, and at most half are used
	entries int
	values  map[string]*value // by everything that follows a key
}

// A value is what follows keys, and which keys.
type value struct {
	rest  string
	lines Lines
}

// Lines count lines with different keys.
type Lines struct {
	Accounts, Domains int
	All               bool // the line of *
}

// count returns l and one line more, with key.
func (l Lines) count(key []byte) Lines {
	switch {
	case string(key) == "*":
		l.All = true
	case key[0] == '@':
		l.Domains++
	default:
		l.Accounts++
	}
	return l
}

// Plus returns the sum of l and m.
func (l Lines) Plus(m Lines) Lines {
	return Lines{l.Accounts + m.Accounts, l.Domains + m.Domains, l.All || m.All}
}

// String returns l as in "2 accounts, 1 domain and all without another line".
func (l Lines) String() string {
	var parts []string
	add := func(n int, one, many string) {
		if n == 1 {
			parts = append(parts, "1 "+one)
		} else if n > 1 {
			parts = append(parts, fmt.Sprintf("%d %s", n, many))
		}
	}
	add(l.Accounts, "account", "accounts")
	add(l.Domains, "domain", "domains")
	if l.All {
		parts = append(parts, "all without another line")
	}
	if n := len(parts); n > 1 {
		return strings.Join(parts[:n-1], ", ") + " and " + parts[n-1]
	}
	return strings.Join(parts, "")
}

// seed is the same for all tables. It is secret, so that nobody can choose names
// that collide.
var seed = maphash.MakeSeed()

// parse makes a table of text, which is that of the file at path, and keeps text.
func parse(path string, text []byte, check func(rest string) error) (*table, Mistakes) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	size := 2 * (bytes.Count(text, []byte("\n")) + 1)
	t := &table{text: text, slots: make([]uint32, 1<<bits.Len(uint(size-1))), values: make(map[string]*value)}
	var wrong Mistakes
	number := 0
	for begin := 0; begin < len(text); {
		number++
		end := len(text)
		if i := bytes.IndexByte(text[begin:], '\n'); i >= 0 {
			end = begin + i + 1
		}
		if err := t.add(begin, end, check); err != nil {
			wrong = append(wrong, fmt.Errorf("%s:%d: %w", path, number, err))
			if len(wrong) == maxMistakes {
				break
			}
		}
		begin = end
	}
	return t, wrong
}

// add adds the line at text[begin:end].
func (t *table) add(begin, end int, check func(rest string) error) error {
	line := t.text[begin:end]
	key, rest := cutLine(line)
	if len(key) == 0 {
		return nil
	}
	if err := checkKey(key); err != nil {
		return err
	}
	for i, c := range key {
		key[i] = byte(lowerRune(rune(c)))
	}
	v, ok := t.values[string(rest)]
	if !ok {
		if err := check(string(rest)); err != nil {
			return err
		}
		v = &value{rest: string(rest)}
		t.values[v.rest] = v
	}
	slot, taken := t.find(string(key))
	if taken {
		if earlier := t.value(slot, len(key)); earlier != v.rest {
			return fmt.Errorf("%q is also in an earlier line, with %s behind it, and here with %s", shorten(string(key)), quoted(earlier), quoted(v.rest))
		}
		return nil
	}
	v.lines = v.lines.count(key)
	t.slots[slot] = uint32(begin+bytes.Index(line, key)) + 1
	t.entries++
	return nil
}

func checkKey(key []byte) error {
	switch {
	case len(key) > maxAccount:
		return fmt.Errorf("%q: %w", shorten(string(key)), ErrTooLong)
	case bytes.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q: %w", shorten(string(key)), ErrInvisible)
	case len(key) == 1 && key[0] == '@', key[0] == '@' && bytes.IndexByte(key[1:], '@') >= 0:
		return fmt.Errorf("%q is not a domain: write @example.org", shorten(string(key)))
	}
	return nil
}

// cutLine returns the first word of a line, and the rest without a comment.
func cutLine(line []byte) (key, rest []byte) {
	const space = " \t\r\n"
	line = bytes.Trim(line, space)
	if len(line) == 0 || line[0] == '#' {
		return nil, nil
	}
	i := bytes.IndexAny(line, space)
	if i < 0 {
		return line, nil
	}
	key, rest = line[:i], line[i:]
	for j, c := range rest {
		if c == '#' && strings.IndexByte(space, rest[j-1]) >= 0 {
			rest = rest[:j]
			break
		}
	}
	return key, bytes.Trim(rest, space)
}

// get returns what follows key. No key contains a space: "a b" must not find the
// line of a.
func (t *table) get(key string) (rest string, ok bool) {
	if key == "" || strings.ContainsAny(key, " \t\r\n") {
		return "", false
	}
	slot, taken := t.find(key)
	if !taken {
		return "", false
	}
	return t.value(slot, len(key)), true
}

// find returns the slot of key, or the free slot where it belongs.
func (t *table) find(key string) (slot uint64, taken bool) {
	mask := uint64(len(t.slots) - 1)
	for slot = maphash.String(seed, key) & mask; t.slots[slot] != 0; slot = (slot + 1) & mask {
		text := t.text[t.slots[slot]-1:]
		if len(text) >= len(key) && string(text[:len(key)]) == key && (len(text) == len(key) || text[len(key)] <= ' ') {
			return slot, true
		}
	}
	return slot, false
}

// value returns what follows the key of a slot. key is the key's length.
func (t *table) value(slot uint64, key int) string {
	line := t.text[t.slots[slot]-1:]
	if i := bytes.IndexByte(line[key:], '\n'); i >= 0 {
		line = line[:key+i]
	}
	_, rest := cutLine(line)
	return t.values[string(rest)].rest
}
