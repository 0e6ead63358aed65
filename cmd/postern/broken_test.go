package main

import (
	"bytes"
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

	"postern/cmd/postern/internal/stored"
)

// ready asks /readyz.
func (f *processes) ready() (status int, text string, err error) {
	response, err := http.Get("http://" + f.metrics + "/readyz")
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// again starts another process with the same configuration.
func (f *processes) again(t *testing.T) *processes {
	t.Helper()
	g := *f
	g.postern = newPostern(t.TempDir(), f.ca)
	g.imap, g.pop3, g.metrics = f.imap, f.pop3, f.metrics
	g.startUntil(t, g.config, g.end)
	within(t, patience, "Postern listens again", func() bool { return len(g.logged(t, "listening")) == 2 })
	return &g
}

// uidls returns what POP3 shows to each user.
func (f *processes) uidls(t *testing.T, users int) (all []string) {
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

// Criterion: When a state file is changed under a running Postern, POP3 clients get a temporary refusal at once, IMAP goes on, /readyz, the log and a metric say so, commands answer, and SIGTERM ends the process.
func TestARecordThatIsChangedInUseStopsPOP3Alone(t *testing.T) {
	const users, soon = 4, 5 * time.Second
	for name, change := range map[string]func(record string, backup []byte) error{
		"cut off":                 func(record string, _ []byte) error { return os.Truncate(record, 0) },
		"a backup copied over it": overwrite,
	} {
		t.Run(name, func(t *testing.T) {
			f := startProcesses(t, users+1, "")
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
			record := filepath.Join(filepath.Dir(f.config), "state", stored.RecordFile)
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
			if out, err := f.say("status"); err == nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "next: postern state check. If the file is damaged, put a backup back before Postern starts again") {
				t.Errorf("postern status: %v\n%s", err, out)
			}
			close(stop)
			wg.Wait()
			if said := f.logged(t, "state is broken: POP3 clients get a temporary refusal"); len(said) != 1 || said[0].text("level") != "ERROR" || said[0].text("file") != stored.RecordFile {
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
			lost := g.logged(t, stored.LostRecord)
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
	f := startProcesses(t, 2, "")
	path := filepath.Join(filepath.Dir(f.config), "state", stored.CacheFile)
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
	f := startProcesses(t, 1, "")
	first := f.uidls(t, 1)
	f.end(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.config), "state", stored.CacheFile), bytes.Repeat([]byte("garbage"), 5000), 0o600); err != nil {
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
