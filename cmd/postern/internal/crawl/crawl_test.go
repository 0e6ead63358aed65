package crawl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func accounts(n int) (all []Account) {
	for i := range n {
		all = append(all, Account{User: fmt.Sprintf("user%d", i)})
	}
	return all
}

// Criterion: A crawl that was stopped goes on with the accounts that are missing, and with those that failed.
func TestACrawlGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	visited := make(map[string]int)
	run := func(visit func(user string) (int, error)) (outcomes map[string]string, err error) {
		t.Helper()
		j, err := OpenJournal[int](path, "test")
		if err != nil {
			t.Fatal(err)
		}
		outcomes = make(map[string]string)
		err = Run(t.Context(), accounts(30), j, Options{}, func(_ context.Context, a Account) (int, error) {
			visited[a.User]++
			return visit(a.User)
		}, func(o Outcome[int]) error {
			outcomes[o.User] = fmt.Sprint(o.Result, o.Error)
			return nil
		})
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		return outcomes, err
	}
	stop := errors.New("stopped")
	n := 0
	j, _ := OpenJournal[int](path, "test")
	err := Run(t.Context(), accounts(30), j, Options{}, func(_ context.Context, a Account) (int, error) {
		visited[a.User]++
		if a.User == "user3" {
			return 0, errors.New("away")
		}
		return 7, nil
	}, func(Outcome[int]) error {
		if n++; n == 10 {
			return stop
		}
		return nil
	})
	if _ = j.Close(); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	_, _ = f.WriteString(`{"user":"user20","res`) // a crash
	_ = f.Close()
	outcomes, err := run(func(string) (int, error) { return 8, nil })
	if err != nil || len(outcomes) != 30 {
		t.Fatalf("%d outcomes, %v", len(outcomes), err)
	}
	for user, want := range map[string]struct {
		outcome string
		visits  int
	}{"user0": {"7", 1}, "user3": {"8", 2}, "user20": {"8", 1}} {
		if outcomes[user] != want.outcome || visited[user] != want.visits {
			t.Errorf("%s: %q after %d visits, want %q after %d", user, outcomes[user], visited[user], want.outcome, want.visits)
		}
	}
	if _, err := OpenJournal[int](path, "another test"); err == nil || !strings.Contains(err.Error(), "not the file of this command") {
		t.Errorf("the journal of another crawl: %v", err)
	}
}

// A password file, or a list of accounts, given in the place of the journal stays as it is.
func TestAFileThatIsNoJournal(t *testing.T) {
	for name, content := range map[string]string{
		"one line": "secret\n", "without a line end": "secret", "accounts": "alice,secret\nbob,secret\n", "a crash in the first line": `"`,
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenJournal[int](path, "test")
		if after, _ := os.ReadFile(path); content != `"` && (err == nil || string(after) != content || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: got %v, and the file has %q", name, err, after)
		} else if content == `"` && (err != nil || string(after) != "\"test\"\n") {
			t.Errorf("%s: got %v, and the file has %q", name, err, after)
		}
	}
	if _, err := OpenJournal[int](os.DevNull, "test"); err == nil {
		t.Error("a device is a journal")
	}
}

func TestAccountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		begun := time.Now()
		j, _ := OpenJournal[bool]("", "")
		var last Progress
		err := Run(t.Context(), accounts(10), j, Options{AtOnce: 4, Progress: func(p Progress) { last = p }}, func(context.Context, Account) (bool, error) {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(time.Second)
			now.Add(-1)
			return true, nil
		}, func(Outcome[bool]) error { return nil })
		if err != nil || most.Load() != 4 || time.Since(begun) != 3*time.Second || last != (Progress{10, 0, 10}) {
			t.Errorf("%d at once, %v, %+v, %v", most.Load(), time.Since(begun), last, err)
		}
	})
}

// Ten wrong passwords from the beginning end a crawl; later ones do not.
func TestACrawlInVain(t *testing.T) {
	refused := errors.New("refused")
	for good, want := range map[int]int{0: 30, -1: refusedInARow} {
		j, _ := OpenJournal[bool]("", "")
		n := 0
		err := Run(t.Context(), accounts(30), j, Options{}, func(_ context.Context, a Account) (bool, error) {
			if a.User == fmt.Sprint("user", good) {
				return true, nil
			}
			return false, refused
		}, func(Outcome[bool]) error { n++; return nil })
		if n != want || errors.Is(err, refused) != (good < 0) {
			t.Errorf("good: %d: %d visits, %v", good, n, err)
		}
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, p := time.Now(), NewPace(10)
		for range 5 {
			if err := p.Wait(t.Context(), 4); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begun); took != 1600*time.Millisecond {
			t.Errorf("the last of 20 after %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.Wait(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if NewPace(0).Wait(t.Context(), 1000) != nil {
			t.Error("a pace without a bound")
		}
	})
}

func TestReadList(t *testing.T) {
	got, err := ReadList(strings.NewReader("# users\nalice, top secret \n\n\"bob@example.org\",\"with, comma\"\n"), "list", true)
	if err != nil || len(got) != 2 || got[0].User != "alice" || string(got[0].Secret.Reveal()) != " top secret " || string(got[1].Secret.Reveal()) != "with, comma" {
		t.Errorf("%v, %v", got, err)
	}
	got, err = ReadList(strings.NewReader("alice\nbob\n"), "list", false)
	if err != nil || len(got) != 2 || got[1] != (Account{User: "bob"}) {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{
		"":                          "list: there is no account in it",
		"alice":                     "list:1: 1 columns, want two: user and password",
		"alice,x,y":                 "list:1: 3 columns, want two",
		"a,x\nb,y\na,z":             "list:3: a is in line 1 already",
		",x":                        "list:1: there is no user",
		"alice,":                    "list:1: there is no password",
		"a,\"hidden\nsecret\"\nb,y": "list:1: there is no password",
	} {
		if _, err := ReadList(strings.NewReader(text), "list", true); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ReadList(strings.NewReader("a,hidden"), "list", false); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("a password in a list for a master user: %v", err)
	}
	if !slices.ContainsFunc(got, func(a Account) bool { return a.Secret == nil }) {
		t.Error("a list for a master user has secrets")
	}
}
