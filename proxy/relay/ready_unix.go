//go:build unix

package relay

import (
	"io"
	"net"
	"syscall"

	"postern/proxy"
)

// rawConn returns the descriptor of conn, or nil if conn has none to give.
func rawConn(conn net.Conn) syscall.RawConn {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// wakeConn returns the descriptor that has something to read when conn may have, or nil
// if there is none. Under TLS it does not say what a Read would return.
func wakeConn(conn net.Conn) syscall.RawConn {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = c.NetConn()
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// readReady waits until there is something to read, and only then takes a buffer.
// If b is not nil the caller must give it back.
func readReady(raw syscall.RawConn) (b *[bufferSize]byte, n int, err error) {
	errno := syscall.EINTR
	waitErr := raw.Read(func(fd uintptr) bool {
		b = buffers.Get().(*[bufferSize]byte)
		for errno = syscall.EINTR; errno == syscall.EINTR; {
			n, errno = proxy.ReadDescriptor(fd, b[:])
		}
		if errno != syscall.EAGAIN {
			return true
		}
		buffers.Put(b)
		b = nil
		return false
	})
	switch {
	case waitErr != nil:
		return nil, 0, waitErr
	case errno != 0:
		return b, 0, errno
	case n == 0:
		return b, 0, io.EOF
	}
	return b, n, nil
}
