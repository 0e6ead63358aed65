package stored

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"strconv"
	"syscall"
)

// AsOwner calls f. If this process is root's, f runs as the user to whom the directory dir
// belongs, if there is one: what f makes belongs to that user, and f can do nothing that this user could
// not, whatever links are in dir.
func AsOwner(dir string, f func() error) (err error) {
	if os.Geteuid() != 0 {
		return f()
	}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return f()
	}
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
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
