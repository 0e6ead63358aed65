//go:build !unix

package relay

import (
	"errors"
	"net"
	"syscall"
)

// rawConn returns nil: descriptors differ.
func rawConn(net.Conn) syscall.RawConn { return nil }

// wakeConn returns nil: sessions do not park.
func wakeConn(net.Conn) syscall.RawConn { return nil }

func readReady(syscall.RawConn) (*[bufferSize]byte, int, error) { return nil, 0, errors.ErrUnsupported }
