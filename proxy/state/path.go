package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// CheckPath returns the error with which Open would refuse the file at path and its
// directory, whatever the file contains. CheckPath changes nothing. A file or a directory
// that Open can make is no error.
func CheckPath(path string, o Options) error {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) && !o.ReadOnly {
		return CheckMake(dir)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is a file, and has to be a directory", dir)
	}
	if owner, ok := ownerOf(info); ok && owner != os.Geteuid() && (owner != 0 || !o.ReadOnly && !writable(dir)) {
		return errOwner(dir, owner)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o): chmod go-w %s", dir, mode, dir)
	}
	if !o.ReadOnly {
		if err := CheckDir(dir); err != nil {
			return err
		}
	}
	return checkFile(path, o)
}

// CheckDir returns the error with which this process could not make a file in dir, which is
// made if it does not exist. CheckDir changes nothing.
func CheckDir(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return CheckMake(dir)
	}
	if err := access(dir, writeAccess|searchAccess); err != nil {
		return &fs.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}

// CheckAppend returns the error with which this process could not append to the file at path,
// or make it in a directory that exists. CheckAppend changes nothing.
func CheckAppend(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		dir := filepath.Dir(path)
		if _, err = os.Stat(dir); err == nil {
			err = access(dir, writeAccess|searchAccess)
		}
	case err == nil && info.IsDir():
		err = syscall.EISDIR
	case err == nil:
		err = access(path, writeAccess)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return &fs.PathError{Op: "open", Path: path, Err: errno}
	}
	return err
}

// checkFile is CheckPath for the file alone.
func checkFile(path string, o Options) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is open to others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if owner, ok := ownerOf(info); ok && owner != os.Geteuid() && os.Geteuid() != 0 {
		return fmt.Errorf("%s belongs to %s, and this process runs as %s: chown %s: %s",
			path, nameUser(owner), nameUser(os.Geteuid()), userOf(os.Geteuid()), path)
	}
	want := uint32(readAccess)
	if !o.ReadOnly {
		want |= writeAccess
	}
	if err := access(path, want); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil
}

// CheckMake returns the error with which os.MkdirAll would refuse dir, which does not
// exist. CheckMake changes nothing.
func CheckMake(dir string) error {
	above := filepath.Dir(dir)
	if _, err := os.Stat(above); errors.Is(err, fs.ErrNotExist) && above != dir {
		return CheckMake(above)
	}
	if err := access(above, writeAccess|searchAccess); err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

func writable(dir string) bool { return access(dir, writeAccess|searchAccess) == nil }

// IsOwn reports whether a file belongs to the user of this process.
func IsOwn(info fs.FileInfo) bool {
	owner, ok := ownerOf(info)
	return !ok || owner == os.Geteuid()
}

// errOwner is the error of a directory that belongs to another user.
func errOwner(dir string, owner int) error {
	user := os.Geteuid()
	mend := fmt.Sprintf("chown -R %s: %s", userOf(user), dir)
	if owner != 0 {
		become := "sudo -u " + userOf(owner)
		if user == 0 {
			become = "runuser -u " + userOf(owner) + " --"
		}
		if userOf(owner) == strconv.Itoa(owner) {
			become = fmt.Sprintf("setpriv --reuid=%d --clear-groups", owner)
		}
		mend = fmt.Sprintf("run this as that user (%s postern ...), or, if the directory is to be %s's, %s", become, userOf(user), mend)
	}
	return fmt.Errorf("%s belongs to %s, and this process runs as %s: %s", dir, nameUser(owner), nameUser(user), mend)
}

// nameUser returns the name and number of a user for a sentence.
func nameUser(uid int) string {
	if name := userOf(uid); name != strconv.Itoa(uid) {
		return fmt.Sprintf("%s (uid %d)", name, uid)
	}
	return fmt.Sprintf("uid %d, which has no name here", uid)
}

// userOf returns the name of a user for a command: the number if there is no name.
func userOf(uid int) string {
	u, err := osuser.LookupId(strconv.Itoa(uid))
	if err != nil {
		return strconv.Itoa(uid)
	}
	return u.Username
}
