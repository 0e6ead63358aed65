// Package unit reads what systemd lets the service do, from the files of its unit: as which
// user it runs, and which paths it can write and see. systemd.exec(5) explains the settings.
package unit

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const name = "postern.service"

// folders are the places of units: a file in an earlier one hides a file with the same name
// in a later one. They begin without a slash: see Find.
var folders = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

// beyond are settings that change which files the service sees in ways that this package
// does not follow.
var beyond = []string{"RootDirectory", "RootImage", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "DynamicUser", "InaccessiblePaths", "ExecPaths", "NoExecPaths"}

// A Unit has the settings of an installed unit. A nil Unit is none: everything is allowed.
type Unit struct {
	Path   string // of its file
	User   string // the service's; "": root
	Config string // the configuration file of the service
	Files  int    // LimitNOFILE, the hard limit; 0: not set

	values map[string]string   // settings of one value
	lists  map[string][]string // settings of several values
}

// Find returns the unit of the service that is installed in the file system at root, which is
// "/" but for tests. It returns nil if there is none, and for a unit that sets what this
// package does not understand: nothing is known of it then.
func Find(root string) (*Unit, error) {
	main, dropIns, err := files(root)
	if err != nil || main == "" {
		return nil, err
	}
	u := &Unit{Path: "/" + strings.TrimPrefix(strings.TrimPrefix(main, root), "/"), values: map[string]string{}, lists: map[string][]string{}}
	for _, path := range append([]string{main}, dropIns...) {
		if err := u.read(path); err != nil {
			return nil, fmt.Errorf("read the unit of the service: %w", err)
		}
	}
	u.User, u.Config = u.values["User"], config(u.lists["ExecStart"])
	if limit := u.values["LimitNOFILE"]; limit != "" {
		_, hard, _ := strings.Cut(limit, ":")
		if hard == "" {
			hard = limit
		}
		u.Files, _ = strconv.Atoi(hard) // infinity: not a limit
	}
	if !u.understood() {
		return nil, nil
	}
	return u, nil
}

// files returns the file of the unit, "" if there is none, and its drop-ins in the order in
// which they count.
func files(root string) (main string, dropIns []string, err error) {
	byName := map[string]string{}
	for _, folder := range folders {
		path := filepath.Join(root, folder, name)
		if info, err := os.Stat(path); err == nil && main == "" {
			if !info.Mode().IsRegular() { // masked: a link to /dev/null
				return "", nil, nil
			}
			main = path
		}
		entries, err := os.ReadDir(path + ".d")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
		for _, e := range entries {
			if n := e.Name(); byName[n] == "" && strings.HasSuffix(n, ".conf") {
				byName[n] = filepath.Join(path+".d", n)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(byName)) {
		dropIns = append(dropIns, byName[n])
	}
	return main, dropIns, nil
}

// read adds the settings of a file.
func (u *Unit) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	section, begun := "", ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" && begun == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		line, begun = begun+line, ""
		if rest, goesOn := strings.CutSuffix(line, `\`); goesOn {
			begun = rest + " "
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if ok && section == "[Service]" {
			u.set(strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
	return nil
}

// set adds a setting: the last value counts, of a list all do; no value takes back all.
func (u *Unit) set(key, value string) {
	u.values[key] = value
	if value == "" {
		delete(u.lists, key)
		return
	}
	u.lists[key] = append(u.lists[key], strings.Fields(value)...)
}

// config returns the configuration file in a command line, "" if it has none.
func config(command []string) string {
	for i, word := range command {
		if path, ok := strings.CutPrefix(word, "--config="); ok {
			return path
		}
		if (word == "--config" || word == "-c") && i+1 < len(command) {
			return command[i+1]
		}
	}
	return ""
}

// understood reports whether this package knows all that the settings mean for files.
func (u *Unit) understood() bool {
	for _, key := range beyond {
		if v := u.values[key]; v != "" && !no(v) {
			return false
		}
	}
	for _, key := range []string{"StateDirectory", "LogsDirectory", "RuntimeDirectory", "CacheDirectory", "ReadWritePaths", "ReadOnlyPaths", "ExecStart", "User"} {
		if strings.ContainsAny(strings.Join(u.lists[key], " "), `%"'\`) { // specifiers and quotes
			return false
		}
	}
	return true
}

func no(v string) bool { return slices.Contains([]string{"no", "false", "off", "0"}, v) }

// bases are where the settings for directories have them.
var bases = map[string]string{"StateDirectory": "/var/lib", "LogsDirectory": "/var/log", "RuntimeDirectory": "/run", "CacheDirectory": "/var/cache"}

// Directories returns the directories that systemd makes at a start and gives to the
// service's user.
func (u *Unit) Directories() (all []string) {
	if u == nil {
		return nil
	}
	for setting, base := range bases {
		for _, dir := range u.lists[setting] {
			dir, _, _ = strings.Cut(dir, ":") // its links
			all = append(all, filepath.Join(base, dir))
		}
	}
	slices.Sort(all)
	return all
}

// Makes reports whether systemd makes dir at a start and gives it to the service's user.
func (u *Unit) Makes(dir string) bool { return slices.Contains(u.Directories(), resolve(dir)) }

// CheckWriteIn is CheckWrite for what is in the directory dir.
func (u *Unit) CheckWriteIn(dir string) error { return u.checkWrite(dir, dir) }

// CheckWrite returns an error if the service cannot change the file at path, or make it,
// whatever its mode.
func (u *Unit) CheckWrite(path string) error { return u.checkWrite(path, filepath.Dir(path)) }

// checkWrite is CheckWrite. dir is the directory that would have to be writable.
func (u *Unit) checkWrite(path, dir string) error {
	if u == nil {
		return nil
	}
	if err := u.CheckRead(path); err != nil {
		return err
	}
	at := resolve(path)
	if longest(at, u.writable()) < longest(at, u.readOnly()) {
		return fmt.Errorf("%w for the service, by ProtectSystem=%s in %s: choose a path in %s, or make a drop-in with ReadWritePaths=%s (systemctl edit postern)",
			&fs.PathError{Op: "write to", Path: path, Err: syscall.EROFS}, u.values["ProtectSystem"], u.Path, strings.Join(u.Directories(), " or "), dir)
	}
	return nil
}

// CheckRead returns an error if the service does not see path.
func (u *Unit) CheckRead(path string) error {
	if u == nil {
		return nil
	}
	if v := u.values["ProtectHome"]; (v == "yes" || v == "true" || v == "tmpfs") && longest(resolve(path), homes) > longest(resolve(path), u.lists["ReadWritePaths"]) {
		return fmt.Errorf("%s is hidden from the service, by ProtectHome=%s in %s: choose another path, such as one in /etc/postern", path, v, u.Path)
	}
	return nil
}

// Private returns whether the service has a folder of its own in the place of that of path,
// which other programs do not see.
func (u *Unit) Private(path string) bool {
	return u != nil && u.values["PrivateTmp"] != "" && !no(u.values["PrivateTmp"]) && longest(resolve(path), temporary) >= 0
}

var (
	homes     = []string{"/home", "/root", "/run/user"}
	temporary = []string{"/tmp", "/var/tmp"}
)

// readOnly returns the paths below which the service can write nothing.
func (u *Unit) readOnly() (all []string) {
	switch v := u.values["ProtectSystem"]; v {
	case "strict":
		all = []string{"/"}
	case "full":
		all = []string{"/usr", "/boot", "/efi", "/etc"}
	case "", "no", "false", "off", "0":
	default:
		all = []string{"/usr", "/boot", "/efi"}
	}
	if u.values["ProtectHome"] == "read-only" {
		all = append(all, homes...)
	}
	return append(all, u.paths("ReadOnlyPaths")...)
}

// Writable returns the paths below which the service can write, but for those that systemd
// leaves to all; nil: all.
func (u *Unit) Writable() []string {
	if u.readOnly() == nil {
		return nil
	}
	return append(u.Directories(), u.paths("ReadWritePaths")...)
}

// writable returns the paths below which the service can write.
func (u *Unit) writable() []string {
	all := append(u.Writable(), "/dev", "/proc", "/sys")
	if u.Private("/tmp") {
		all = append(all, temporary...)
	}
	return all
}

func (u *Unit) paths(setting string) (all []string) {
	for _, p := range u.lists[setting] {
		all = append(all, filepath.Clean(strings.TrimLeft(p, "-+"))) // may be missing; in the root directory
	}
	return all
}

// longest returns the length of the longest of some folders that path is in, -1 if it is in
// none.
func longest(path string, folders []string) int {
	n := -1
	for _, f := range folders {
		if path == f || strings.HasPrefix(path, strings.TrimSuffix(f, "/")+"/") {
			n = max(n, len(f))
		}
	}
	return n
}

// resolve returns path without links, as far as it exists.
func resolve(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if above := filepath.Dir(path); above != path {
		return filepath.Join(resolve(above), filepath.Base(path))
	}
	return path
}
