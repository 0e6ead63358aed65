package state

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ownerOf returns the user that a file belongs to.
func ownerOf(info fs.FileInfo) (int, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(stat.Uid), true
}

// What a process may do with a file or a directory: access(2).
const (
	searchAccess = 1 << iota
	writeAccess
	readAccess
)

// access returns the error of a process that wants to use path.
func access(path string, want uint32) error {
	const (
		atCWD     = -100
		effective = 0x200 // AT_EACCESS: as open, by the effective user
	)
	return syscall.Faccessat(atCWD, path, want, effective)
}

// lockHolder describes the process that has locked the file at path.
func lockHolder(path string) string {
	const unknown = "another process"
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		return unknown
	}
	locks, err := os.ReadFile("/proc/locks") // "1: FLOCK ADVISORY WRITE 4711 fd:01:131 0 EOF"
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], ":"+strconv.FormatUint(stat.Ino, 10)) {
			continue
		}
		name, err := os.ReadFile("/proc/" + f[4] + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf("process %s (%s)", f[4], bytes.TrimSpace(name))
	}
	return unknown
}
