package stored

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// user is locked while this process is another user than at its start: a user is that of all
// threads, as the variable is of the process. user is read-locked while this must not happen.
var user sync.RWMutex

// AsSelf calls f while this process is the user that has started it, whatever other goroutines
// call AsOwner.
func AsSelf(f func() error) error {
	user.RLock()
	defer user.RUnlock()
	return f()
}

// maxLinks is how many symbolic links are followed, as by Linux.
const maxLinks = 40

// AsOwner calls f. If this process is root's, f runs as the first user other than root to whom
// a directory on the way to dir belongs, dir included: what f makes belongs to that user, and f
// can do nothing that this user could not, whatever links the user has put there. dir need not
// exist. AsOwner calls one f at a time, and f must not call AsOwner or AsSelf.
func AsOwner(dir string, f func() error) (err error) {
	user.Lock()
	defer user.Unlock()
	if os.Geteuid() != 0 {
		return f()
	}
	owner, err := firstOwner(dir)
	if err != nil {
		return err
	}
	if owner == nil {
		return f()
	}
	gid, groups := groupsOf(owner)
	before, err := syscall.Getgroups()
	if err != nil {
		return fmt.Errorf("become the owner of %s: %w", dir, err)
	}
	defer func() {
		// The real and saved ids have stayed root's.
		back := errors.Join(syscall.Setresuid(-1, 0, -1), syscall.Setresgid(-1, 0, -1), syscall.Setgroups(before))
		if back != nil {
			err = errors.Join(err, fmt.Errorf("become root again: %w", back))
		}
	}()
	// The user comes last: afterwards the groups cannot be set.
	for _, become := range []func() error{
		func() error { return syscall.Setgroups(groups) },
		func() error { return syscall.Setresgid(-1, gid, -1) },
		func() error { return syscall.Setresuid(-1, int(owner.Uid), -1) },
	} {
		if err := become(); err != nil {
			return fmt.Errorf("become the owner of %s: %w", dir, err)
		}
	}
	return f()
}

// firstOwner returns whose the first directory, or link, on the way to dir is that does not
// belong to root: that user chooses what comes behind it. It returns nil if there is none.
func firstOwner(dir string) (*syscall.Stat_t, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	const slash = string(filepath.Separator)
	at, names := slash, strings.Split(dir, slash)
	for links := 0; len(names) > 0; {
		name := names[0]
		names = names[1:]
		path := filepath.Join(at, name) // at has no links: .. is the directory above
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
			return stat, nil
		}
		if info.Mode().Type() != fs.ModeSymlink {
			at = path
			continue
		}
		if links++; links > maxLinks {
			return nil, &fs.PathError{Op: "stat", Path: dir, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(path)
		if err != nil {
			return nil, err
		}
		if filepath.IsAbs(target) {
			at = slash
		}
		names = append(strings.Split(target, slash), names...)
	}
	return nil, nil
}

// groupsOf returns the primary group of the owner of a directory and all his groups. Without
// a name he has the group of the directory.
func groupsOf(owner *syscall.Stat_t) (gid int, groups []int) {
	gid = int(owner.Gid)
	if u, err := osuser.LookupId(strconv.FormatUint(uint64(owner.Uid), 10)); err == nil {
		if n, err := strconv.Atoi(u.Gid); err == nil {
			gid = n
		}
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				groups = append(groups, n)
			}
		}
	}
	return gid, groups
}
