package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/cmd/postern/internal/service"
)

// tree returns all that can be known of a folder and those in it.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all.WriteString(folder(t, path))
		}
		return err
	}))
	return all.String()
}

// mistakesOf returns the mistakes of the configuration in an output.
func mistakesOf(config, said string) (all []string) {
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, config+":") {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}

// Criterion: What `postern run` refuses of state.path, control.socket, log.fail2ban, tls.acme.storage and ports `postern check` says in the same words, as the service's user, as root, and by root for that user; check changes nothing, and neither does a run that refuses.
func TestCheckFindsWhatRunRefuses(t *testing.T) {
	in := func(h *hosted, name string) string { return filepath.Join(h.dir, name) }
	write := func(t *testing.T, path string, owner int, mode fs.FileMode) {
		t.Helper()
		must(t, os.WriteFile(path, []byte("in the way"), mode), os.Chmod(path, mode), os.Chown(path, owner, owner))
	}
	folder := func(t *testing.T, path string, owner int, mode fs.FileMode) {
		t.Helper()
		must(t, os.Mkdir(path, mode), os.Chmod(path, mode), os.Chown(path, owner, owner))
	}
	for _, test := range []struct {
		name     string
		config   string // more keys; DIR is the folder
		spoil    func(t *testing.T, h *hosted, owner int)
		key      string
		want     string
		userOnly bool // root may do that
	}{
		{"state is a file", "", func(t *testing.T, h *hosted, owner int) {
			must(t, os.RemoveAll(h.state))
			write(t, h.state, owner, 0o600)
		}, "state.path", "is a file, and has to be a directory", false},
		{"state of another user", "", func(t *testing.T, h *hosted, _ int) {
			must(t, os.Chown(h.state, foreignerUID, foreignerUID))
		}, "state.path", "belongs to daemon (uid 1), and this process runs as ", false},
		{"state of root", "", func(t *testing.T, h *hosted, _ int) {
			must(t, os.Chown(h.state, 0, 0), os.Chmod(h.state, 0o755))
		}, "state.path", "belongs to root (uid 0), and this process runs as nobody (uid 65534): chown -R nobody: ", true},
		{"state for all", "", func(t *testing.T, h *hosted, _ int) {
			must(t, os.Chmod(h.state, 0o777))
		}, "state.path", "can be written by others (mode 0777): chmod go-w ", false},
		{"state that cannot be made", "", func(t *testing.T, h *hosted, _ int) {
			must(t, os.RemoveAll(h.state))
		}, "state.path", "mkdir", true},
		{"state without the right to write", "", func(t *testing.T, h *hosted, _ int) {
			must(t, os.Chmod(h.state, 0o500))
		}, "state.path", "permission denied", true},
		{"damaged record", "", func(t *testing.T, h *hosted, owner int) {
			write(t, filepath.Join(h.state, "record.db"), owner, 0o600)
		}, "state.path", "state is damaged: invalid database: put a backup back (postern state restore FILE)", false},
		{"record that was cut off", "", func(t *testing.T, h *hosted, _ int) {
			h.serving(t, func() { h.shown(t) })
			must(t, os.Truncate(filepath.Join(h.state, "record.db"), 5000))
		}, "state.path", "put a backup back (postern state restore FILE)", true},
		{"record of root", "", func(t *testing.T, h *hosted, _ int) {
			write(t, filepath.Join(h.state, "record.db"), 0, 0o600)
		}, "state.path", "belongs to root (uid 0), and this process runs as nobody (uid 65534): chown nobody: ", true},
		{"cache for others", "", func(t *testing.T, h *hosted, owner int) {
			write(t, filepath.Join(h.state, "cache.db"), owner, 0o644)
		}, "state.path", "is open to others (mode 0644): chmod 600 ", false},
		{"link in the place of the record", "", func(t *testing.T, h *hosted, _ int) {
			must(t, os.Symlink("/etc/hostname", filepath.Join(h.state, "record.db")))
		}, "state.path", "is no regular file", false},
		{"no folder for fail2ban", "log: {fail2ban: DIR/log/failed-logins.log}", func(*testing.T, *hosted, int) {},
			"log.fail2ban", "no such file or directory: make the directory ", false},
		{"folder of root for fail2ban", "log: {fail2ban: DIR/log/failed-logins.log}", func(t *testing.T, h *hosted, _ int) {
			folder(t, in(h, "log"), 0, 0o755)
		}, "log.fail2ban", "permission denied", true},
		{"fail2ban's file is a folder", "log: {fail2ban: DIR/log}", func(t *testing.T, h *hosted, owner int) {
			folder(t, in(h, "log"), owner, 0o755)
		}, "log.fail2ban", "is a directory", false},
		{"fail2ban's file of root", "log: {fail2ban: DIR/failed-logins.log}", func(t *testing.T, h *hosted, _ int) {
			write(t, in(h, "failed-logins.log"), 0, 0o644)
		}, "log.fail2ban", "permission denied", true},
		{"socket in a folder that cannot be made", "control: {socket: DIR/run/postern/control.sock}", func(*testing.T, *hosted, int) {},
			"control.socket", "/run: permission denied", true},
		{"socket in a folder for all", "control: {socket: DIR/run/control.sock}", func(t *testing.T, h *hosted, owner int) {
			folder(t, in(h, "run"), owner, 0o777)
		}, "control.socket", "can be written by others (mode 0777)", false},
		{"socket in a folder of root", "control: {socket: DIR/run/control.sock}", func(t *testing.T, h *hosted, _ int) {
			folder(t, in(h, "run"), 0, 0o755)
		}, "control.socket", "permission denied", true},
		{"file in the place of the socket", "control: {socket: DIR/run/control.sock}", func(t *testing.T, h *hosted, owner int) {
			folder(t, in(h, "run"), owner, 0o755)
			write(t, in(h, "run/control.sock"), owner, 0o600)
		}, "control.socket", "there is something that is no socket", false},
		{"group of others", "control: {socket: DIR/run/control.sock, group: daemon}", func(t *testing.T, h *hosted, owner int) {
			folder(t, in(h, "run"), owner, 0o755)
		}, "control.socket", "is not in the group daemon: usermod -a -G daemon nobody", true},
		{"storage of another user", "", func(t *testing.T, h *hosted, _ int) {
			folder(t, in(h, "acme"), foreignerUID, 0o700)
		}, "tls.acme.storage", "belongs to ", false},
		{"storage for others", "", func(t *testing.T, h *hosted, owner int) {
			folder(t, in(h, "acme"), owner, 0o755)
		}, "tls.acme.storage", "mode 0755", false},
		{"storage that cannot be made", "", func(*testing.T, *hosted, int) {}, "tls.acme.storage", "mkdir", true},
		{"port of another process", "PORT", func(*testing.T, *hosted, int) {}, "metrics.ready_address", "address already in use by ", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, owner := range []int{serviceUID, 0} {
				if owner == 0 && test.userOnly {
					continue
				}
				h := newHosted(t)
				text, err := os.ReadFile(h.config)
				must(t, err)
				more := strings.ReplaceAll(test.config, "DIR", h.dir)
				if test.key == "tls.acme.storage" {
					text = []byte(strings.Replace(string(text), "tls: {", fmt.Sprintf("tls: {acme: {email: a@example.org, names: [mail.example.org], storage: %s, http_address: \"127.0.0.1:0\"}, ", in(h, "acme")), 1))
				}
				if more == "PORT" {
					ln, err := net.Listen("tcp", "127.0.0.1:0")
					must(t, err)
					defer func() { _ = ln.Close() }()
					text = []byte(strings.Replace(string(text), "metrics: {", fmt.Sprintf("metrics: {ready_address: %q, ", ln.Addr()), 1))
					more = ""
				}
				must(t, os.WriteFile(h.config, append(text, more+"\n"...), 0o644), os.Chown(h.state, owner, owner))
				test.spoil(t, h, owner)

				before := tree(t, h.dir)
				as := map[string]string{"by root": h.refused(t, 0, "check", "--as", map[int]string{0: "root", serviceUID: "nobody"}[owner])}
				if test.config != "PORT" { // only root knows who has it
					as["by the user"] = h.refused(t, uint32(owner), "check")
				}
				checked := tree(t, h.dir)
				want := mistakesOf(h.config, h.refused(t, uint32(owner), "run"))
				if test.config == "PORT" {
					must(t, os.Chown(h.state, 0, 0))
					want = mistakesOf(h.config, h.refused(t, 0, "check")) // run cannot name a process of another user
					must(t, os.Chown(h.state, owner, owner))
				}
				if len(want) != 1 || !strings.Contains(want[0], ": "+test.key+": ") || !strings.Contains(want[0], test.want) {
					t.Errorf("run says %q, want %s: %s", want, test.key, test.want)
				}
				for who, said := range as {
					if got := mistakesOf(h.config, said); !slices.Equal(got, want) {
						t.Errorf("%s check says\n%s\nrun\n%q", who, said, want)
					}
				}
				if checked != before {
					t.Errorf("check has changed\n%s to\n%s", before, checked)
				}
				if now := tree(t, h.dir); now != before && test.config != "PORT" { // ports come last
					t.Errorf("run has changed\n%s to\n%s", before, now)
				}
			}
		})
	}
}

// Criterion: postern check --json has mistakes and warnings with file, line and key, and as which user the files were tried.
func TestCheckAsJSON(t *testing.T) {
	h := newHosted(t)
	check := func(uid uint32, args ...string) (r service.Report) {
		t.Helper()
		out, _ := h.as(t, uid, append([]string{"check", "--json"}, args...)...).Output()
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return r
	}
	if r := check(0, "--as", "nobody"); !r.Valid || r.User != "nobody" || r.File != h.config || r.Mistakes != nil || r.Warnings != nil {
		t.Errorf("of what is valid: %+v", r)
	}
	h.serving(t, func() {
		h.shown(t)
		if r := check(0, "--as", "nobody"); !r.Valid || r.Warnings != nil {
			t.Errorf("while Postern runs: %+v", r)
		}
	})
	must(t, os.Truncate(filepath.Join(h.state, "cache.db"), 5000))
	if r := check(serviceUID); !r.Valid || len(r.Warnings) != 1 || r.Warnings[0].Key != "state.path" || r.Warnings[0].Line != 9 ||
		!strings.Contains(r.Warnings[0].Text, "a start begins it anew") {
		t.Errorf("of a damaged cache: %+v", r)
	}
	must(t, os.Remove(filepath.Join(h.state, "cache.db")))
	if r := check(serviceUID); !r.Valid || r.Warnings != nil {
		t.Errorf("without a cache: %+v", r)
	}
	must(t, os.Chmod(h.state, 0o777))
	if r := check(0, "--as", "nobody"); r.Valid || len(r.Mistakes) != 1 || r.Mistakes[0].Key != "state.path" {
		t.Errorf("of a mistake: %+v", r)
	}
}

// Criterion: A record that was lost is a warning of postern check.
func TestCheckFindsALostRecord(t *testing.T) {
	h := newHosted(t)
	h.serving(t, func() { h.shown(t) })
	record := filepath.Join(h.state, "record.db")
	for name, spoil := range map[string]func() error{
		"missing": func() error { return os.Remove(record) },
		"empty":   func() error { return os.WriteFile(record, nil, 0o600) },
	} {
		must(t, spoil())
		if name == "empty" {
			must(t, os.Chown(record, serviceUID, serviceUID))
		}
		out, err := h.as(t, serviceUID, "check").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "state.path: warning: the record of unique ids was lost: record.db has nothing of 1 accounts that cache.db knows") {
			t.Errorf("of a record that is %s check says %v\n%s", name, err, out)
		}
	}
}
