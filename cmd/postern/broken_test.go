package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/state"
)

// ready asks /readyz.
func (f *fleet) ready() (status int, text string, err error) {
	response, err := http.Get("http://" + f.metrics + "/readyz")
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// again starts another process with the same configuration.
func (f *fleet) again(t *testing.T) *fleet {
	t.Helper()
	g := *f
	g.postern = newPostern(t.TempDir(), f.ca)
	g.imap, g.pop3, g.metrics = f.imap, f.pop3, f.metrics
	g.startUntil(t, g.config, g.end)
	within(t, patience, "Postern listens again", func() bool { return len(g.logged(t, "listening")) == 2 })
	return &g
}

// uidls returns what POP3 shows to each user.
func (f *fleet) uidls(t *testing.T, users int) (all []string) {
	t.Helper()
	for user := range users {
		c, err := f.popSession(user)
		if err == nil {
			err = c.wants("QUIT", "+OK")
		}
		if err != nil {
			t.Fatalf("u%d: %v", user, err)
		}
		_ = c.Close()
		all = append(all, c.uidls)
	}
	return all
}

// overwrite puts what is in from over the file at path, as cp does.
func overwrite(path string, from []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(from)
	return errors.Join(err, f.Close())
}

// Criterion: When a state file is changed under a running Postern, POP3 clients are refused for now and at once, IMAP goes on, /readyz, the log and a metric say so, commands answer, and SIGTERM ends the process.
func TestARecordThatIsChangedInUseStopsPOP3Alone(t *testing.T) {
	const users, soon = 4, 5 * time.Second
	for name, change := range map[string]func(record string, backup []byte) error{
		"cut off":                 func(record string, _ []byte) error { return os.Truncate(record, 0) },
		"a backup copied over it": overwrite,
	} {
		t.Run(name, func(t *testing.T) {
			f := startFleet(t, users+1, "")
			first := f.uidls(t, users)
			saved := filepath.Join(t.TempDir(), "backup")
			if out, err := f.say("state", "backup", saved); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			backup, err := os.ReadFile(saved)
			if err != nil {
				t.Fatal(err)
			}
			if c, err := f.popSession(users); err != nil || c.wants("QUIT", "+OK") != nil { // else the backup is what is there
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var refused atomic.Int64
			var wg sync.WaitGroup
			for user := range users {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						begun := time.Now()
						c, err := f.popSession(user)
						if err == nil {
							err = c.wants("QUIT", "+OK")
						}
						if c != nil {
							_ = c.Close()
						}
						if err != nil && !strings.Contains(err.Error(), "-ERR [SYS/TEMP]") {
							t.Errorf("u%d: %v", user, err)
							return
						}
						if took := time.Since(begun); took > soon {
							t.Errorf("u%d was answered after %v", user, took)
						}
						if err != nil {
							refused.Add(1)
						}
					}
				})
			}
			time.Sleep(100 * time.Millisecond)
			record := filepath.Join(filepath.Dir(f.config), "state", recordFile)
			if err := change(record, backup); err != nil {
				t.Fatal(err)
			}
			within(t, patience, "/readyz says so", func() bool {
				status, text, err := f.ready()
				return err == nil && status == http.StatusServiceUnavailable && strings.Contains(text, "record.db is broken")
			})
			before := refused.Load()
			within(t, patience, "clients are refused", func() bool { return refused.Load() > before+2*users })
			if c, err := f.imapSession(0); err != nil {
				t.Errorf("IMAP: %v", err)
			} else {
				_ = c.wants("a LOGOUT", "* BYE")
				_ = c.Close()
			}
			if values, _ := f.scrape(t); values[`postern_state_file_broken{file="record.db"}`] != "1" || values[`postern_state_file_broken{file="cache.db"}`] != "0" {
				t.Errorf("metrics have %v", values)
			}
			for _, args := range [][]string{{"upgrade"}, {"state", "check"}, {"state", "backup", saved}, {"uidl", "export"}, {"account", "forget", "u0", "--yes"}} {
				begun := time.Now()
				if out, err := f.say(args...); err == nil || !strings.Contains(out, "restart") || time.Since(begun) > soon {
					t.Errorf("postern %v took %v: %v\n%s", args, time.Since(begun), err, out)
				}
			}
			close(stop)
			wg.Wait()
			if said := f.logged(t, "state is broken: POP3 clients are told to come again later"); len(said) != 1 || said[0].text("level") != "ERROR" || said[0].text("file") != recordFile {
				t.Errorf("the log says %v", said)
			}
			begun := time.Now()
			_ = f.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-f.done:
			case <-time.After(patience):
				t.Fatalf("SIGTERM is not obeyed within %v", time.Since(begun))
			}

			g := f.again(t)
			lost := g.logged(t, lostRecord)
			if name == "cut off" {
				if len(lost) != 1 || lost[0].text("level") != "ERROR" || lost[0].text("accounts") != fmt.Sprint(users+1) {
					t.Errorf("at the next start the log says\n%s", g.printed(t))
				}
				if out, err := g.say("state", "check"); err == nil || !strings.Contains(out, "record.db  lost") || !strings.Contains(out, "restore") {
					t.Errorf("state check: %v\n%s", err, out)
				}
				return
			}
			if len(lost) != 0 {
				t.Errorf("a backup is called lost: %v", lost)
			}
			if second := g.uidls(t, users); !slices.Equal(second, first) {
				t.Errorf("unique ids were\n%sand are\n%s", first, second)
			}
		})
	}
}

// Criterion: A cache.db that is changed under a running Postern costs time and nothing else.
func TestACacheThatIsChangedInUseCostsTime(t *testing.T) {
	f := startFleet(t, 2, "")
	path := filepath.Join(filepath.Dir(f.config), "state", cacheFile)
	first := f.uidls(t, 2)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if now := f.uidls(t, 2); !slices.Equal(now, first) {
			t.Errorf("unique ids were\n%sand are\n%s", first, now)
		}
	}
	if status, text, err := f.ready(); err != nil || status != http.StatusOK || !strings.Contains(text, "cache.db is broken") {
		t.Errorf("/readyz: %d %s, %v", status, text, err)
	}
	if said := f.logged(t, "state is broken: POP3 logins take longer"); len(said) != 1 {
		t.Errorf("the log says %v", said)
	}
}

// What the login guard knew is gone with a cache that is begun anew.
func TestACacheThatIsBegunAnewIsInTheLog(t *testing.T) {
	f := startFleet(t, 1, "")
	first := f.uidls(t, 1)
	f.end(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.config), "state", cacheFile), bytes.Repeat([]byte("garbage"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	f = f.again(t)
	if now := f.uidls(t, 1); !slices.Equal(now, first) {
		t.Errorf("unique ids were\n%sand are\n%s", first, now)
	}
	if said := f.logged(t, "state was damaged and is begun anew: the login guard knows nobody, POP3 logins take longer"); len(said) != 1 {
		t.Errorf("the log says %v", said)
	}
}

// Criterion: A record.db that is empty, or missing, beside a cache.db that knows accounts is a lost one, and the start and postern state check say so; a backup, or files of before, are none.
func TestARecordThatWasLostIsNoNewOne(t *testing.T) {
	ctx := t.Context()
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
	record := filepath.Join(cfg.State.Path, recordFile)
	lost := func(what string, want int64) {
		t.Helper()
		m, err := openMemory(ctx, cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer func() { _ = m.Close() }()
		if m.archive.unidentified != nil {
			t.Errorf("%s: %v", what, m.archive.unidentified)
		}
		if got := m.archive.lost.Load(); got != want {
			t.Errorf("%s: lost are %d, want %d", what, got, want)
		}
	}
	change := func(f func(*archive) error) {
		t.Helper()
		m, err := openMemory(ctx, cfg)
		if err == nil {
			err = errors.Join(f(m.archive), m.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	comes := func(accounts ...string) func(*archive) error {
		return func(a *archive) error {
			for _, account := range accounts {
				for _, in := range []*state.Bucket{a.cache.Bucket(listingsBucket), a.record.Bucket(uidlBucket)} {
					if err := in.Put(ctx, account+"\x00INBOX", []byte("x")); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	nameless := func(a *archive) error { // as an older Postern left them
		return errors.Join(a.record.Bucket(identityBucket).Put(ctx, identityKey, nil), a.cache.Bucket(identityBucket).Put(ctx, identityKey, nil))
	}
	lost("new files", 0)
	change(comes("alice", "bob"))
	lost("files that are used", 0)
	var backup, old bytes.Buffer
	change(func(a *archive) error { _, err := a.record.WriteTo(&backup); return err })
	change(comes("carol"))
	change(func(a *archive) error {
		if err := a.record.Bucket(identityBucket).Put(ctx, identityKey, nil); err != nil {
			return err
		}
		_, err := a.record.WriteTo(&old)
		return err
	})
	for name, content := range map[string][]byte{"a backup": backup.Bytes(), "a backup of an older version": old.Bytes()} {
		if err := state.Restore(ctx, record, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		lost(name, 0)
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	lost("no record", 3)
	lost("no record, the second time", 3)
	change(comes("alice", "dave"))
	lost("after some have come", 2)
	if err := os.Truncate(record, 0); err != nil {
		t.Fatal(err)
	}
	lost("an empty record", 4)
	change(func(a *archive) error {
		n, err := a.forgetLost(ctx, func(account string) bool { return account == "alice" })
		if err == nil && n != 1 {
			err = fmt.Errorf("forgotten: %d", n)
		}
		return err
	})
	lost("one of them forgotten", 3)
	change(func(a *archive) error { _, err := a.forgetLost(ctx, func(string) bool { return true }); return err })
	lost("all forgotten", 0)
	change(comes("alice"))
	lost("as new", 0)
	change(nameless)
	lost("files of before", 0)
	change(nameless)
	if err := os.Truncate(record, 0); err != nil {
		t.Fatal(err)
	}
	lost("files of before, and the record is lost", 1)
	change(func(a *archive) error { return a.accept(ctx) })
	lost("begun anew, as the operator wants", 0)
	if err := os.Remove(filepath.Join(cfg.State.Path, cacheFile)); err != nil {
		t.Fatal(err)
	}
	lost("no cache", 0)
}

// An import puts a lost record back as well as a backup does: readiness and the
// alert end with it, not with the next start.
func TestAnImportEndsALostRecord(t *testing.T) {
	ctx := t.Context()
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
	open := func() *memory {
		t.Helper()
		m, err := openMemory(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	m := open()
	for _, account := range []string{"alice", "bob"} {
		if err := m.archive.cache.Bucket(listingsBucket).Put(ctx, account+"\x00INBOX", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(cfg.State.Path, recordFile), 0); err != nil {
		t.Fatal(err)
	}
	m = open()
	for _, step := range []struct {
		account string
		want    int64
	}{{"", 2}, {"alice", 1}, {"bob", 0}} {
		if step.account != "" {
			var r bridge.Recorded
			if err := json.Unmarshal([]byte(`{"account":"`+step.account+`","record":{"uidvalidity":1,"eras":[{"from":1,"format":"dovecot"}]}}`), &r); err != nil {
				t.Fatal(err)
			}
			if err := importUIDLs.answer(ctx, m, []bridge.Recorded{r}, func(int) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if got := m.archive.lost.Load(); got != step.want {
			t.Errorf("after the import of %q lost are %d, want %d", step.account, got, step.want)
		}
	}
}

// Criterion: the error about a record.db that is damaged at a start says what to do.
func TestADamagedRecordStopsAStartWithARemedy(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), bytes.Repeat([]byte("damaged"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := openMemory(t.Context(), &configs.Config{State: configs.State{Path: dir}})
	if err == nil {
		_ = m.Close()
	}
	if !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), "postern state restore") {
		t.Errorf("%v, want one that names postern state restore", err)
	}
}
