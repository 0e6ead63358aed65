package admin

import (
	"cmp"
	"syscall"
)

// bindPrivate makes a socket with mode 0600, whatever the umask.
func bindPrivate(_, _ string, c syscall.RawConn) (err error) {
	if failed := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); failed != nil {
		return failed
	}
	return err
}

// peer returns the process at the other end of c, which is a unix socket, and its user:
// SO_PEERCRED, unix(7).
func peer(c syscall.RawConn) (pid int, uid uint32, err error) {
	failed := c.Control(func(fd uintptr) {
		var u *syscall.Ucred
		if u, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid, uid = int(u.Pid), u.Uid
		}
	})
	return pid, uid, cmp.Or(failed, err)
}
