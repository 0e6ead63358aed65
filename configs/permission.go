package configs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Unreadable returns what to say of the file or folder at path, which err kept from being
// read, and what to do.
func Unreadable(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("%s does not exist: put the file there, or write the path of yours", path)
	case errors.Is(err, fs.ErrPermission):
		return permissionDenied(path)
	}
	return err.Error()
}

// permissionDenied names the user who may not read the file at path, the file or the
// folder that is closed to the user, and the commands that open it for the user's group.
func permissionDenied(path string) string {
	closed := path
	info, err := os.Lstat(closed)
	for errors.Is(err, fs.ErrPermission) && closed != filepath.Dir(closed) {
		closed = filepath.Dir(closed)
		info, err = os.Lstat(closed)
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	denied := fmt.Sprintf("the user %s may not read %s", userName(uid), path)
	if err != nil {
		return denied
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Sprintf("%s, which is a link: let the group %s read the file that the link leads to, and enter its folders", denied, groupName(gid))
	}
	mode := "g+r"
	switch {
	case info.IsDir() && closed == path:
		mode = "g+rx"
	case info.IsDir():
		mode = "g+x"
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		denied += fmt.Sprintf(" (%s has %s:%s, mode %04o)", closed, userName(stat.Uid), groupName(stat.Gid), info.Mode().Perm())
	}
	return fmt.Sprintf("%s: chgrp %s %s && chmod %s %s", denied, groupName(gid), closed, mode, closed)
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
