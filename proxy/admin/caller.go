package admin

import (
	"log/slog"
	"net"
	"os/user"
	"strconv"
	"syscall"
)

// A caller is the user of the process that has opened a connection.
type caller struct{ uid uint32 }

// A callerKey is the key of the caller in a connection's context.
type callerKey struct{}

// callerOf returns the user at the other end of c, as the kernel knows it. ok is false
// where the kernel does not tell.
func callerOf(c net.Conn) (by caller, ok bool) {
	raw, isSocket := c.(syscall.Conn)
	if !isSocket {
		return by, false
	}
	conn, err := raw.SyscallConn()
	if err != nil {
		return by, false
	}
	_, by.uid, err = peer(conn)
	return by, err == nil
}

// Running returns the process that listens at the socket at path. ok is false if there is
// none, or this process may not ask it.
func Running(path string) (pid int, ok bool) {
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err != nil {
		return 0, false
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, false
	}
	pid, _, err = peer(raw)
	return pid, err == nil
}

// attrs returns the number and the name of the user. A user without a name here, such
// as one of a container, has the number only.
func (c caller) attrs() []slog.Attr {
	id := strconv.FormatUint(uint64(c.uid), 10)
	attrs := []slog.Attr{slog.String("uid", id)}
	if u, err := user.LookupId(id); err == nil {
		attrs = append(attrs, slog.String("user", u.Username))
	}
	return attrs
}

// Arguments returns the argument of a request for the log: pairs of a key and a value,
// without those that have no value.
func Arguments(pairs ...string) slog.Value {
	var attrs []slog.Attr
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			attrs = append(attrs, slog.String(pairs[i], pairs[i+1]))
		}
	}
	return slog.GroupValue(attrs...)
}
