package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"strconv"
	"syscall"
)

// OpenStorage makes the folder at path, accessible for its owner alone, or checks
// an existing one: it holds private keys, so it must belong to this process's
// user and must not be accessible for others.
func OpenStorage(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make certificate storage: %w", err)
	}
	if err := CheckStorage(path, os.Geteuid()); err != nil {
		return err
	}
	return nil
}

// nameUser returns the name and the number of a user.
func nameUser(uid int) string {
	u, err := osuser.LookupId(strconv.Itoa(uid))
	if err != nil {
		return strconv.Itoa(uid)
	}
	return fmt.Sprintf("%s (uid %d)", u.Username, uid)
}

// CheckStorage checks the folder at path for a process of the user uid. A folder
// that does not exist is no error.
func CheckStorage(path string, uid int) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("certificate storage: %w", err)
	case !info.IsDir():
		return fmt.Errorf("certificate storage %s is not a directory", path)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != uid {
		return fmt.Errorf("certificate storage %s belongs to user %s, and this process runs as user %s: each could not read what the other writes; run this as the former, or, if the folder is to be the latter's, chown -R %d: %s",
			path, nameUser(int(owner.Uid)), nameUser(uid), uid, path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("certificate storage %s may be entered by others (mode %04o): it holds private keys, so want 0700", path, mode)
	}
	return nil
}
