//go:build unix

package relay

import (
	"errors"
	"io"
	"net"
	"syscall"
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

// readReady waits until there is something to read, and only then takes a buffer.
// If b is not nil the caller must give it back.
func readReady(raw syscall.RawConn) (b *[bufferSize]byte, n int, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		b = buffers.Get().(*[bufferSize]byte)
		for {
			if n, err = syscall.Read(int(fd), b[:]); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return true
		}
		buffers.Put(b)
		b = nil
		return false
	})
	switch {
	case waitErr != nil:
		return nil, 0, waitErr
	case err == nil && n == 0:
		err = io.EOF
	}
	return b, max(n, 0), err
}

// readable reports whether a read would return at once, be it with an end.
func readable(raw syscall.RawConn) bool {
	var err error
	controlErr := raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return controlErr == nil && err == nil
}
