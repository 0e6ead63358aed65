package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// A Socket is a TCP connection whose system calls take no part in Go's scheduling
// (decision 0046). Of another kind of connection it is that connection.
type Socket struct {
	net.Conn
	raw syscall.RawConn // nil: Conn has no descriptor
}

// NewSocket returns conn as a Socket.
func NewSocket(conn net.Conn) Socket {
	s := Socket{Conn: conn}
	if c, ok := conn.(syscall.Conn); ok {
		s.raw, _ = c.SyscallConn() // fails only if the connection is closed
	}
	return s
}

// A transfer is one Read or Write of a Socket.
type transfer struct {
	p           []byte
	n           int
	noWait      bool
	errno       syscall.Errno // 0: none
	read, write func(fd uintptr) bool
}

// transfers are made once and not for each call.
var transfers = sync.Pool{New: func() any {
	t := new(transfer)
	t.read, t.write = t.readOnce, t.writeAll
	return t
}}

func newTransfer(p []byte, noWait bool) *transfer {
	t := transfers.Get().(*transfer)
	t.p, t.n, t.errno, t.noWait = p, 0, 0, noWait
	return t
}

// end returns the result.
func (t *transfer) end() (n int, errno syscall.Errno) {
	n, errno = t.n, t.errno
	t.p = nil
	transfers.Put(t)
	return n, errno
}

// readOnce reads once. It returns false if nothing has come and the caller has to wait.
func (t *transfer) readOnce(fd uintptr) (done bool) {
	for {
		switch t.n, t.errno = ReadDescriptor(fd, t.p); t.errno {
		case syscall.EINTR:
		case syscall.EAGAIN:
			return t.noWait
		default:
			return true
		}
	}
}

// writeAll writes until there is no more room. It returns false if the caller has to
// wait for room.
func (t *transfer) writeAll(fd uintptr) (done bool) {
	for t.n < len(t.p) {
		n, errno := writeDescriptor(fd, t.p[t.n:])
		t.n += n
		switch errno {
		case 0, syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
	return true
}

// Read implements net.Conn.
func (s Socket) Read(p []byte) (int, error) {
	if s.raw == nil {
		return s.Conn.Read(p)
	}
	return s.read(newTransfer(p, false))
}

// ReadNoWait reads what has come already. If there is nothing, the error is
// temporary.
func (s Socket) ReadNoWait(p []byte) (int, error) {
	if s.raw == nil {
		return 0, errNoInput
	}
	return s.read(newTransfer(p, true))
}

func (s Socket) read(t *transfer) (int, error) {
	empty := len(t.p) == 0
	waited := s.raw.Read(t.read)
	n, errno := t.end()
	switch {
	case waited == nil && errno == syscall.EAGAIN:
		return 0, errNoInput
	case waited == nil && errno == 0 && n == 0 && !empty:
		return 0, io.EOF
	}
	return n, s.explain("read", waited, errno)
}

// Write implements net.Conn.
func (s Socket) Write(p []byte) (int, error) {
	if s.raw == nil {
		return s.Conn.Write(p)
	}
	t := newTransfer(p, false)
	waited := s.raw.Write(t.write)
	n, errno := t.end()
	return n, s.explain("write", waited, errno)
}

// explain returns the error that Conn would have returned. waited is the error of
// waiting: the deadline, or that the connection was closed.
func (s Socket) explain(op string, waited error, errno syscall.Errno) error {
	if waited == nil && errno == 0 {
		return nil
	}
	err := os.NewSyscallError(op, errno)
	if waited != nil {
		err = waited
		if raw, ok := errors.AsType[*net.OpError](waited); ok {
			err = raw.Err
		}
	}
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// SyscallConn implements syscall.Conn.
func (s Socket) SyscallConn() (syscall.RawConn, error) {
	if s.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return s.raw, nil
}

// CloseWrite sends FIN. It does nothing on a connection that has no half-close.
func (s Socket) CloseWrite() error {
	if c, ok := s.Conn.(closeWriter); ok {
		return c.CloseWrite()
	}
	return nil
}

type closeWriter interface{ CloseWrite() error }

// errNoInput is temporary, so that crypto/tls goes on with the record at the next
// Read.
var errNoInput error = noInputError{}

type noInputError struct{}

func (noInputError) Error() string   { return "nothing has come" }
func (noInputError) Timeout() bool   { return false }
func (noInputError) Temporary() bool { return true }
