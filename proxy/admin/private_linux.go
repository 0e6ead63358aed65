package admin

import "syscall"

// bindPrivate makes a socket with mode 0600, whatever the umask.
func bindPrivate(_, _ string, c syscall.RawConn) (err error) {
	if failed := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); failed != nil {
		return failed
	}
	return err
}
