package route

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

var names = []string{"main", "new", "old"}

// backends are the known ones, with the modes of POP3 that each has.
var backends = map[string][]string{"main": {Bridge}, "new": {Bridge, Passthrough}, "old": {Passthrough}}

func writeFile(t testing.TB, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "accounts")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t testing.TB, text string) *File {
	t.Helper()
	f, err := OpenFile(writeFile(t, text), Choice{Backend: "main"}, backends)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func routeOf(t testing.TB, rule Rule, account string) string {
	t.Helper()
	choice, err := rule.Route(t.Context(), &proxy.Login{Account: account})
	if err != nil {
		t.Fatal(err)
	}
	return choice.Backend
}

const moved = "\ufeff# moved in November\r\n" +
	"alice@example.org\r\n" +
	"\t Bob@Example.ORG \t new \t # asked for it\r\n" +
	"\n" +
	"web123p4 old\n" +
	"a#b@example.org#c new #old\n" +
	"jÜrgen@example.org new\n" +
	"@Example.NET new\n" +
	"carol@example.net old\n" +
	"carol@example.net old # again\n" +
	"plain@example.net" // without an end

// Criterion: an account is routed by its own line of the file, else by that of its domain, else by *.
func TestFileRoutes(t *testing.T) {
	f := openFile(t, moved)
	for account, want := range map[string]string{
		"alice@example.org":     "main",
		"ALICE@example.org":     "main",
		"bob@example.org":       "new",
		"web123p4":              "old",
		"a#b@example.org#c":     "new",
		"jÜrgen@example.org":    "new",
		"jürgen@example.org":    "", // what case means beyond ASCII is the server's to say
		"x@example.net":         "new",
		"x@y@example.net":       "new",
		"carol@example.net":     "old",
		"plain@example.net":     "main",
		"x@example.org":         "",
		"alice":                 "",
		"alice@example.or":      "",
		"alice@example.org ":    "",
		"web123p4 old":          "",
		"web123p4 ol":           "",
		"web123p":               "",
		"#":                     "",
		"":                      "",
		"@":                     "",
		"x@":                    "",
		"x@mail.example.net":    "",
		strings.Repeat("x", 99): "",
	} {
		if got := routeOf(t, f, account); got != want {
			t.Errorf("%q goes to %q, want %q", account, got, want)
		}
	}
	f = openFile(t, "* old\n@example.net new\nalice@example.net")
	for account, want := range map[string]string{"x": "old", "x@example.net": "new", "alice@example.net": "main", "": "old"} {
		if got := routeOf(t, f, account); got != want {
			t.Errorf("with *: %q goes to %q, want %q", account, got, want)
		}
	}
}

func TestFileKnowsTheAccountsItLists(t *testing.T) {
	f := openFile(t, moved+"\n* old")
	for account, want := range map[string]bool{
		"alice@example.org": true, "BOB@example.org": true, "web123p4": true, "x@example.net": false, "@example.net": false, "*": false, "": false,
	} {
		if got := (Rules{Default{Backend: "x"}, f}).Known(account); got != want {
			t.Errorf("Known(%q) = %v, want %v", account, got, want)
		}
	}
}

func TestFileMayReturnTheBackendsItNames(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb new": "main new", "a new\nb old": "new old", "": "", "# main new old": "", "a": "main",
	} {
		f := openFile(t, text)
		var got []string
		for _, b := range names {
			if f.MayReturn(Choice{Backend: b}) {
				got = append(got, b)
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("%q leads to %s, want %s", text, got, want)
		}
	}
}

// Criterion: the word pop3=passthrough or pop3=bridge of a line of a file of routes says who answers the account's POP3 clients; without it the route says.
func TestFileSaysWhoAnswersPOP3(t *testing.T) {
	f, err := OpenFile(writeFile(t, "a\nb new\nc new pop3=passthrough\nd pop3=bridge new # back\ne pop3=bridge\n@example.org old pop3=passthrough\n"),
		Choice{"main", Passthrough}, map[string][]string{"main": POP3Modes(), "new": POP3Modes(), "old": {Passthrough}})
	if err != nil {
		t.Fatal(err)
	}
	for account, want := range map[string]Choice{
		"a": {"main", Passthrough}, "b": {"new", Passthrough}, "c": {"new", Passthrough}, "d": {"new", Bridge}, "e": {"main", Bridge},
		"x@example.org": {"old", Passthrough}, "unknown": {},
	} {
		got, err := f.Route(t.Context(), &proxy.Login{Account: account})
		if got != want || err != nil {
			t.Errorf("Route(%s) = %+v, %v, want %+v", account, got, err, want)
		}
		if want.Backend != "" && !f.MayReturn(want) {
			t.Errorf("MayReturn(%+v) = false", want)
		}
	}
	if f.MayReturn(Choice{"old", Bridge}) || f.MayReturn(Choice{Backend: "main"}) {
		t.Error("MayReturn says true of a Choice that no line has")
	}
}

// Criterion: all mistakes of a file of routes are named at once, each with file, line, the wrong word and what there is instead.
func TestFileNamesTheLineOfAMistake(t *testing.T) {
	for text, want := range map[string]string{
		"a\n\n# x\nb nowhere\n":             `:4: there is no backend "nowhere"; there are: main, new, old`,
		"a new\nb\na old":                   `:3: "a" is also in an earlier line, with "new" behind it, and here with "old"`,
		"a new\r\nA\r\n":                    `:2: "a" is also in an earlier line, with "new" behind it, and here with nothing`,
		"@\n":                               `:1: "@" is not a domain: write @example.org`,
		"@a@b new":                          `:1: "@a@b" is not a domain: write @example.org`,
		"a\x00b":                            `:1: "a\x00b": user name with a control or invisible character`,
		"x\n" + strings.Repeat("x", 321):    `:2: "` + strings.Repeat("x", 100) + `": user name of more than 320 octets`,
		"a new old":                         `:1: there is no backend "new old"; there are: main, new, old`,
		"a pop3=bridge\nb pop3=passthrough": `:2: backend main cannot answer with pop3=passthrough: it has no pop3 server, and pop3.old_server names none`,
		"a new pop3=shadow":                 `:1: backend new cannot answer with pop3=shadow: it needs an imap server, a pop3 server (its own or that of pop3.old_server), and state.path`,
		"a old pop3=bridge":                 `:1: backend old cannot answer with pop3=bridge: it has no imap server`,
		"a new pop3=passthru":               `:1: pop3=passthru is not known; there are: bridge, passthrough, shadow`,
		"a new pop3=":                       `:1: pop3= has no value; there are: bridge, passthrough, shadow`,
		"a new pop3=bridge pop3=bridge":     `:1: the line has pop3= twice`,
	} {
		path := writeFile(t, text)
		if _, err := OpenFile(path, Choice{Backend: "main"}, backends); err == nil || err.Error() != path+want {
			t.Errorf("%q: error %v, want %s", text, err, path+want)
		}
	}
	// All mistakes, and the first of them in the log.
	path := writeFile(t, "a nwe\nb new\n@\nc\nC old\nd odl\n")
	_, err := OpenFile(path, Choice{Backend: "main"}, backends)
	mistakes, ok := errors.AsType[Mistakes](err)
	if !ok || len(mistakes) != 4 || mistakes[3].Error() != path+`:6: there is no backend "odl"; there are: main, new, old` ||
		!strings.HasSuffix(err.Error(), "; and 1 more") {
		t.Errorf("%q, %v", mistakes, err)
	}
	_, err = OpenFile(writeFile(t, strings.Repeat("a nwe\n", 1000)), Choice{Backend: "main"}, backends)
	if mistakes, _ := errors.AsType[Mistakes](err); len(mistakes) != maxMistakes {
		t.Errorf("%d mistakes, want %d", len(mistakes), maxMistakes)
	}
	path = writeFile(t, "a new\nb")
	if _, err := OpenFile(path, Choice{}, backends); err == nil || !strings.Contains(err.Error(), ":2: the line names no backend") {
		t.Errorf("error = %v", err)
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "missing"), t.TempDir()} {
		if _, err := OpenFile(path, Choice{Backend: "main"}, backends); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("error = %v, want one that names %s", err, path)
		}
	}
}

// A lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

// Criterion: a map file is read again when it has changed; a bad one leaves the old one in force, and the log says file and line.
func TestFileIsReadAgainWhenItChanges(t *testing.T) {
	const every = 2 * time.Second
	path := writeFile(t, "alice new\n")
	f, err := OpenFile(path, Choice{Backend: "main"}, backends)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		go f.Watch(t.Context(), every, slog.New(slog.NewTextHandler(&out, nil)))
		clock := time.Now()
		step := func(what, want, log string, change func() error) {
			t.Helper()
			out.Reset()
			if err := change(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * every)
			synctest.Wait()
			if got := routeOf(t, f, "alice"); got != want {
				t.Errorf("%s: alice goes to %q, want %q", what, got, want)
			}
			if got := out.String(); (log == "") != (got == "") || !strings.Contains(got, log) || strings.Count(got, "\n") > 1 {
				t.Errorf("%s: log %q, want one line with %q", what, got, log)
			}
		}
		put := func(text string) func() error {
			return func() error {
				clock = clock.Add(time.Second)
				return errorsOf(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, clock, clock))
			}
		}
		step("unchanged", "new", "", func() error { return nil })
		step("changed", "old", "entries=2", put("alice old\nbob\n"))
		step("same size", "new", "entries=2", put("alice new\nbob\n"))
		step("wrong", "new", path+":2: there is no backend", put("alice old\nbob nowhere\n"))
		step("still wrong", "new", "", func() error { return nil })
		step("gone", "new", "level=WARN", func() error { return os.Rename(path, path+".old") })
		step("back, and still wrong", "new", "", func() error { return os.Rename(path+".old", path) })
		step("renamed over", "main", "entries=1", func() error {
			return errorsOf(os.WriteFile(path+".new", []byte("ALICE"), 0o600), os.Rename(path+".new", path))
		})
		step("empty", "", "entries=0", put(""))

		out.Reset() // somebody writes, slowly
		for i := range 5 {
			if err := put(fmt.Sprintf("alice old\n%s", strings.Repeat("#", i)))(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(every)
			synctest.Wait()
			if got := routeOf(t, f, "alice"); got != "" {
				t.Fatalf("a file was read while it was written: alice goes to %q", got)
			}
		}
		time.Sleep(every)
		synctest.Wait()
		if got := routeOf(t, f, "alice"); got != "old" {
			t.Errorf("alice goes to %q when it is written, want old", got)
		}
	})
}

func errorsOf(errs ...error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	return errs[i]
}

func millionAccounts(t testing.TB) (path string) {
	t.Helper()
	var text bytes.Buffer
	for i := range 1_000_000 {
		fmt.Fprintf(&text, "customer%07d@example-%03d.org %s\n", i, i%997, names[i%3])
	}
	return writeFile(t, text.String())
}

// Criterion: a map file of a million entries needs less than 150 MiB, also while it is read again.
func TestFileOfAMillionIsSmall(t *testing.T) {
	path := millionAccounts(t)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	f, err := OpenFile(path, Choice{Backend: "main"}, backends)
	if err != nil {
		t.Fatal(err)
	}
	if got := (heap() - before) >> 20; got > 75 { // there are two while it is read again
		t.Errorf("a million entries need %d MiB", got)
	} else {
		t.Logf("a million entries need %d MiB", got)
	}
	if got := f.lines.table.Load().entries; got != 1_000_000 {
		t.Errorf("%d entries", got)
	}
	for i := 0; i < 1_000_000; i += 997 {
		account := fmt.Sprintf("customer%07d@example-%03d.org", i, i%997)
		if got := routeOf(t, f, account); got != names[i%3] {
			t.Fatalf("%s goes to %q, want %s", account, got, names[i%3])
		}
		if got := routeOf(t, f, "x"+account); got != "" {
			t.Fatalf("x%s goes to %q", account, got)
		}
	}
}

// BenchmarkFile looks up accounts that are far from each other. The aim is less
// than a microsecond.
func BenchmarkFile(b *testing.B) {
	f, err := OpenFile(millionAccounts(b), Choice{Backend: "main"}, backends)
	if err != nil {
		b.Fatal(err)
	}
	logins := make([]*proxy.Login, 4096)
	for i := range logins {
		n := i * 104729 % 1_000_000
		logins[i] = &proxy.Login{Account: fmt.Sprintf("customer%07d@example-%03d.org", n, n%997)}
	}
	for name, suffix := range map[string]string{"hit": "", "miss": "x"} {
		b.Run(name, func(b *testing.B) {
			requests := make([]*proxy.Login, len(logins))
			for i, l := range logins {
				requests[i] = &proxy.Login{Account: l.Account + suffix}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				_, _ = f.Route(b.Context(), requests[i%len(requests)])
			}
		})
	}
}

// FuzzTable compares a table with a line-by-line search.
func FuzzTable(f *testing.F) {
	for _, text := range []string{moved, "a b\nA b", "* x\n@y z # c", "a\xff b\r\r\n\n", "#\n #\na #\n"} {
		f.Add([]byte(text), "alice@example.org")
	}
	f.Fuzz(func(t *testing.T, text []byte, account string) {
		want := make(map[string]string)
		for line := range strings.SplitSeq(strings.TrimPrefix(string(text), "\ufeff"), "\n") {
			words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r", r) })
			if i := slices.IndexFunc(words, func(w string) bool { return w[0] == '#' }); i >= 0 {
				words = words[:i]
			}
			if len(words) > 2 {
				return
			}
			if len(words) > 0 {
				want[asciiLower(words[0])] = strings.Join(words[1:], "")
			}
		}
		table, err := parse("accounts", slices.Clone(text), func(string) error { return nil })
		if err != nil {
			return
		}
		if table.entries != len(want) {
			t.Errorf("%d entries, want %d", table.entries, len(want))
		}
		for key, rest := range want {
			if got, ok := table.get(key); got != rest || !ok {
				t.Errorf("get(%q) = %q, %v, want %q", key, got, ok, rest)
			}
		}
		if _, ok := table.get(account); ok {
			if _, listed := want[account]; !listed {
				t.Errorf("get(%q) finds what is not there", account)
			}
		}
	})
}

// asciiLower leaves octets that are no UTF-8 unchanged.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = byte(lowerRune(rune(c)))
	}
	return string(b)
}
