package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// A hosted is a machine on which Postern runs as a user of its own and root gives the
// commands.
type hosted struct {
	dir, state, config string
	ca, address        string
}

// The users of a hosted. They exist on every Debian and own nothing.
const (
	serviceUID   = 65534 // nobody
	foreignerUID = 1     // daemon
)

func newHosted(t *testing.T) *hosted {
	t.Helper()
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to have a file of another user")
	}
	dir, err := os.MkdirTemp("", "po") // short: it has a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cert, key, ca := proxytest.CertFiles(t, "mail.example.org")
	h := &hosted{dir: dir, state: filepath.Join(dir, "state"), ca: ca, address: proxytest.FreeAddress(t)}
	for name, from := range map[string]string{"mail.pem": cert, "mail.key": key} {
		b, err := os.ReadFile(from)
		must(t, err)
		file(t, dir, name, string(b))
	}
	chain, err := os.OpenFile(filepath.Join(dir, "mail.pem"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	issuer, err := os.ReadFile(ca)
	must(t, err)
	_, err = chain.Write(issuer) // without it check has a warning
	must(t, err, chain.Close())
	must(t, os.Chmod(dir, 0o755), os.Mkdir(h.state, 0o700), os.Chown(h.state, serviceUID, serviceUID))
	secret := filepath.Join(dir, "mail.key")
	must(t, os.Chmod(filepath.Join(dir, "mail.pem"), 0o644), os.Chmod(secret, 0o600), os.Chown(secret, serviceUID, serviceUID))
	h.configure(t, mailForScripts(t), "cyrus")
	return h
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// configure writes the configuration, with a format of unique ids.
func (h *hosted) configure(t *testing.T, imap, format string) {
	t.Helper()
	h.config = file(t, h.dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: pop3, address: %q}]
tls: {certificates: [{cert: mail.pem, key: mail.key}]}
backends: {main: {imap: {address: %q, tls: none}}}
metrics: {address: off}
limits: {max_connections: 100}
pop3: {uidl: %q}
state: {path: %q}
`, h.address, imap, format, h.state))
	must(t, os.Chmod(h.config, 0o644))
}

// as returns the command that runs postern as a user.
func (h *hosted) as(t *testing.T, uid uint32, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Args = append(append([]string{"postern"}, args...), "--config", h.config)
	cmd.Dir = h.dir
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	return cmd
}

// root runs a command as root, which has to succeed, and returns its output.
func (h *hosted) root(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.as(t, 0, args...).CombinedOutput()
	if err != nil {
		t.Errorf("postern %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// refused runs a command that has to fail, and returns its output.
func (h *hosted) refused(t *testing.T, uid uint32, args ...string) string {
	t.Helper()
	out, err := h.as(t, uid, args...).CombinedOutput()
	if err == nil {
		t.Errorf("postern %s, by user %d, does not fail:\n%s", strings.Join(args, " "), uid, out)
	}
	return string(out)
}

// serving calls f while the service runs as its user.
func (h *hosted) serving(t *testing.T, f func()) {
	t.Helper()
	cmd := h.as(t, serviceUID, "run")
	log, err := os.Create(filepath.Join(h.dir, "log"))
	must(t, err)
	defer func() { _ = log.Close() }()
	cmd.Stderr = log
	must(t, cmd.Start())
	f()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Errorf("Postern ended: %v\n%s", err, text)
	}
}

// shown returns the unique ids that alice sees.
func (h *hosted) shown(t *testing.T) string {
	t.Helper()
	ids, err := shownBy(h.ca, h.address, "alice", "secret of alice")
	if err != nil {
		t.Error(err)
	}
	return strings.Join(ids, " ")
}

// wantOwner wants all files of the state to belong to the service's user.
func (h *hosted) wantOwner(t *testing.T, after string) {
	t.Helper()
	entries, err := os.ReadDir(h.state)
	must(t, err)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != serviceUID || stat.Gid != serviceUID {
			t.Errorf("after %s %s belongs to %d:%d", after, e.Name(), stat.Uid, stat.Gid)
		}
	}
}

// folder returns all that can be known of a folder: names, owners, modes, times and contents.
func folder(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, path := range append([]string{dir}, paths(dir, entries)...) {
		info, err := os.Lstat(path)
		must(t, err)
		stat := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&all, path, info.Mode(), info.Size(), info.ModTime().UnixNano(), stat.Ctim.Nano(), stat.Uid, stat.Ino)
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&all, "%x\n", sha256.Sum256(b))
		}
	}
	return all.String()
}

func paths(dir string, entries []os.DirEntry) (all []string) {
	for _, e := range entries {
		all = append(all, filepath.Join(dir, e.Name()))
	}
	return all
}

// Criterion: With Postern stopped, root can back up, check, restore, export, import and forget in a state that belongs to the service's user; what is made there belongs to that user; and after damage a backup made by root brings the same unique ids back.
func TestRootRestoresTheStateOfTheService(t *testing.T) {
	h := newHosted(t)
	backup := filepath.Join(h.dir, "backup.db") // as root makes it: for root alone
	inside := filepath.Join(h.state, "inside.db")
	var before string
	h.serving(t, func() {
		before = h.shown(t)
		h.root(t, "state", "backup", backup)
		h.root(t, "state", "backup", inside)
	})
	if before != "7.1 7.2 7.3" {
		t.Fatalf("alice sees %q", before)
	}
	must(t, os.Remove(inside))

	untouched := folder(t, h.state)
	for _, args := range [][]string{
		{"state", "check"}, {"state", "check", "--json"}, {"state", "backup", filepath.Join(h.dir, "second.db")}, {"state", "backup", "-"},
		{"uidl", "export"}, {"uidl", "history", "alice"}, {"account", "list"},
	} {
		if h.root(t, args...) == "" && args[len(args)-1] != filepath.Join(h.dir, "second.db") {
			t.Errorf("postern %v prints nothing", args)
		}
		if now := folder(t, h.state); now != untouched {
			t.Fatalf("postern %v has changed\n%s to\n%s", args, untouched, now)
		}
	}

	exported, err := h.as(t, 0, "uidl", "export").Output()
	must(t, err)
	login := time.Now().Format("Jan _2 15:04:05") + " mail dovecot: imap-login: Login: user=<alice>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=1, TLS, session=<a>\n"
	log := file(t, h.dir, "mail.log", login)
	for _, args := range [][]string{
		{"uidl", "import"}, {"account", "show", "alice"}, {"account", "export", "alice"}, {"guard", "seed", "--from", log},
		{"uidl", "accept", "main"}, {"uidl", "forget", "--yes", "alice"}, {"account", "forget", "--yes", "alice"},
	} {
		cmd := h.as(t, 0, args...)
		cmd.Stdin = strings.NewReader(string(exported))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("postern %v: %v\n%s", args, err, out)
		}
		h.wantOwner(t, strings.Join(args, " "))
	}

	must(t, os.Truncate(filepath.Join(h.state, "record.db"), 5000))
	for _, said := range []string{h.refused(t, 0, "state", "check"), h.refused(t, serviceUID, "run"), h.refused(t, 0, "uidl", "export")} {
		if !strings.Contains(said, "state is damaged") || !strings.Contains(said, "postern state restore") {
			t.Errorf("of a damaged record it says %s", said)
		}
	}
	text, err := os.ReadFile(h.config)
	must(t, err)
	file(t, h.dir, "postern.yaml", strings.Replace(string(text), "cyrus", "dovecot", 1)) // without the record the ids would differ
	if said := h.refused(t, serviceUID, "state", "restore", "--yes", backup); !strings.Contains(said, "run this as root") {
		t.Errorf("the service's user, who cannot read the backup, is told %s", said)
	}
	h.root(t, "state", "restore", "--yes", backup)
	h.wantOwner(t, "state restore")
	h.serving(t, func() {
		if after := h.shown(t); after != before {
			t.Errorf("after a restore alice sees %q, want %q", after, before)
		}
	})
}

// Criterion: A state folder of somebody hostile makes root neither read nor write what is not in it.
func TestRootIsNotLedAstray(t *testing.T) {
	h := newHosted(t)
	outside := filepath.Join(h.dir, "outside")
	must(t, os.Mkdir(outside, 0o755))
	secret := file(t, outside, "secret", strings.Repeat("only root may read this\n", 1000))
	h.serving(t, func() { h.shown(t) })
	backup := filepath.Join(h.dir, "backup.db")
	h.root(t, "state", "backup", backup)

	link := filepath.Join(h.state, "backup.db")
	must(t, os.Symlink(secret, link))
	h.refused(t, 0, "state", "restore", "--yes", link)
	h.refused(t, 0, "state", "restore", "--yes", secret)
	// A file in the way of what restore and a start make.
	for _, name := range []string{"record.db.restore", "cache.db.damaged", "record.db.before-restore"} {
		must(t, os.Symlink(secret, filepath.Join(h.state, name)))
	}
	untouched := folder(t, outside)
	h.refused(t, 0, "state", "restore", "--yes", backup)
	record := filepath.Join(h.state, "record.db")
	must(t, os.Rename(record, record+".away"), os.Symlink(secret, record))
	for _, args := range [][]string{{"state", "check"}, {"uidl", "export"}, {"uidl", "forget", "--yes", "--all"}} {
		h.refused(t, 0, args...)
	}
	if now := folder(t, outside); now != untouched {
		t.Errorf("root has changed\n%s to\n%s", untouched, now)
	}
	entries, err := os.ReadDir(h.state)
	must(t, err)
	for _, path := range paths(h.state, entries) {
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if b, _ := os.ReadFile(path); strings.Contains(string(b), "only root") {
			t.Errorf("%s has what only root may read", path)
		}
	}
}

// Criterion: A user to whom the state does not belong is told to whom it does, and the command that works.
func TestStateOfAnotherUserIsRefusedWithTheCommand(t *testing.T) {
	h := newHosted(t)
	h.serving(t, func() { h.shown(t) })
	for _, args := range [][]string{{"state", "check"}, {"uidl", "export"}, {"account", "list"}, {"state", "restore", "--yes", h.config}} {
		if said := h.refused(t, foreignerUID, args...); !strings.Contains(said, h.state+" belongs to nobody (uid 65534), and this process runs as daemon (uid 1)") ||
			!strings.Contains(said, "sudo -u nobody postern") {
			t.Errorf("postern %v says %s", args, said)
		}
	}
	if said := h.refused(t, 0, "run"); !strings.Contains(said, "runuser -u nobody -- postern") || !strings.Contains(said, "chown -R root: "+h.state) {
		t.Errorf("run by root says %s", said)
	}
	gone := h.state + ".gone"
	must(t, os.Rename(h.state, gone))
	if said := h.refused(t, 0, "state", "restore", "--yes", h.config); !strings.Contains(said, "install -d -m 0700 -o postern -g postern "+h.state) {
		t.Errorf("without a folder restore says %s", said)
	}
	if _, err := os.Stat(h.state); err == nil {
		t.Errorf("%s was made by root, for root (%s)", h.state, strconv.Itoa(os.Getuid()))
	}
}

// Criterion: With Postern stopped, root can list certificates whose storage belongs to the service's user, and leaves it as it is.
func TestRootListsTheCertificatesOfTheService(t *testing.T) {
	h := newHosted(t)
	storage := filepath.Join(h.dir, "acme")
	must(t, os.Mkdir(storage, 0o700), os.Chown(storage, serviceUID, serviceUID))
	text, err := os.ReadFile(h.config)
	must(t, err)
	file(t, h.dir, "postern.yaml", strings.Replace(string(text), "tls: {",
		fmt.Sprintf("tls: {acme: {email: a@example.org, names: [new.example.org], storage: %s, http_address: \"127.0.0.1:0\"}, ", storage), 1))
	if said := h.root(t, "certs"); !strings.Contains(said, "mail.example.org  file") || !strings.Contains(said, "new.example.org") {
		t.Errorf("certs says\n%s", said)
	}
	entries, err := os.ReadDir(storage)
	must(t, err)
	for _, path := range paths(storage, entries) {
		if info, err := os.Stat(path); err != nil || info.Sys().(*syscall.Stat_t).Uid != serviceUID {
			t.Errorf("%s is not the service's: %v", path, err)
		}
	}
}
