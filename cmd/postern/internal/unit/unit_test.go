package unit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// install puts files into the root of a file system.
func install(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func find(t *testing.T, files map[string]string) *Unit {
	t.Helper()
	u, err := Find(install(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

const installed = "usr/lib/systemd/system/postern.service"

// shipped returns the unit of the package.
func shipped(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../../configs/systemd/postern.service")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Criterion: The paths in the documented configuration are writable by the service of the packaged unit, and others are said not to be.
func TestTheShippedUnit(t *testing.T) {
	u := find(t, map[string]string{installed: shipped(t)})
	if u.User != "postern" || u.Config != "/etc/postern/postern.yaml" || u.Files != 524288 || u.Path != "/"+installed {
		t.Errorf("the unit is %+v", u)
	}
	for _, path := range []string{"/var/lib/postern/record.db", "/var/log/postern/failed-logins.log", "/run/postern/control.sock", "/tmp/x"} {
		if err := u.CheckWrite(path); err != nil {
			t.Error(err)
		}
	}
	for _, path := range []string{"/var/log/failed-logins.log", "/var/lib/posternish/x", "/etc/postern/x", "/srv/state", "/run/control.sock", "/"} {
		if err := u.CheckWrite(path); err == nil || !strings.Contains(err.Error(), path+": read-only file system for the service, by ProtectSystem=strict in /"+installed) {
			t.Errorf("writing to %s: %v", path, err)
		}
	}
	if err := u.CheckWriteIn("/srv/state"); err == nil || !strings.Contains(err.Error(), "make a drop-in with ReadWritePaths=/srv/state (systemctl edit postern)") {
		t.Errorf("a state in /srv: %v", err)
	}
	for path, seen := range map[string]bool{"/home/alice/key.pem": false, "/root/key.pem": false, "/homework": true, "/etc/postern/tls/mail.pem": true} {
		if err := u.CheckRead(path); (err == nil) != seen {
			t.Errorf("reading %s: %v", path, err)
		}
	}
	if !u.Makes("/var/lib/postern") || u.Makes("/var/lib") || !u.Private("/tmp/x") || u.Private("/var/log/postern") {
		t.Error("directories of the service are not known")
	}
}

func TestDropInsChangeAUnit(t *testing.T) {
	u := find(t, map[string]string{
		installed: shipped(t),
		"etc/systemd/system/postern.service.d/override.conf":     "[Service]\nUser=mail\n# a comment\nReadWritePaths=/srv/state \\\n  -/srv/log\nLogsDirectory=\n",
		"usr/lib/systemd/system/postern.service.d/override.conf": "[Service]\nUser=hidden by the one in /etc\n",
		"run/systemd/system/postern.service.d/z.conf":            "[Unit]\nUser=of another section\n[Service]\nLimitNOFILE=1000:2000\nExecStart=\nExecStart=/opt/postern run -c /etc/other.yaml\n",
	})
	if u.User != "mail" || u.Files != 2000 || u.Config != "/etc/other.yaml" {
		t.Errorf("the unit is %+v", u)
	}
	if err := u.CheckWrite("/srv/state/record.db"); err != nil {
		t.Error(err)
	}
	if err := u.CheckWrite("/srv/log/x"); err != nil {
		t.Error(err)
	}
	if u.CheckWrite("/var/log/postern/x") == nil {
		t.Error("a list that was taken back still counts")
	}
}

// Nothing false is said of what is not understood.
func TestAUnitThatIsNotUnderstoodIsNone(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"none":       {},
		"specifiers": {installed: "[Service]\nStateDirectory=%n\n"},
		"bind mount": {installed: shipped(t) + "\n[Service]\nBindPaths=/a:/b\n"},
		"other root": {installed: "[Service]\nRootDirectory=/srv\n"},
	} {
		if u := find(t, files); u != nil {
			t.Errorf("%s: %+v", name, u)
		}
	}
	root := install(t, map[string]string{installed: shipped(t), "etc/systemd/system/other": ""})
	if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system/postern.service")); err != nil {
		t.Fatal(err)
	}
	if u, err := Find(root); u != nil || err != nil {
		t.Errorf("masked: %+v, %v", u, err)
	}
	var u *Unit
	if u.CheckWrite("/x") != nil || u.CheckRead("/x") != nil || u.Makes("/x") || u.Private("/tmp") || !slices.Equal(u.Directories(), nil) {
		t.Error("no unit forbids something")
	}
}

// A link leads where it leads.
func TestLinksAreFollowed(t *testing.T) {
	dir := t.TempDir()
	u := find(t, map[string]string{installed: "[Service]\nProtectSystem=strict\nReadWritePaths=" + dir + "\n"})
	away, inside := filepath.Join(t.TempDir(), "link"), filepath.Join(dir, "link")
	for link, to := range map[string]string{away: dir, inside: t.TempDir()} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.CheckWrite(filepath.Join(away, "new", "file")); err != nil {
		t.Error(err)
	}
	if u.CheckWrite(filepath.Join(inside, "file")) == nil {
		t.Error("a link leads out of what can be written")
	}
}
