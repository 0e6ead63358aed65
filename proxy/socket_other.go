//go:build !linux || race

package proxy

import (
	"errors"
	"syscall"
)

// ReadDescriptor reads once from a descriptor that does not block; errno 0 is no
// error. The race detector learns of it from syscall.
func ReadDescriptor(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Read(int(fd), p)
	return max(n, 0), number(err)
}

// writeDescriptor writes once.
func writeDescriptor(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Write(int(fd), p)
	return max(n, 0), number(err)
}

func number(err error) syscall.Errno {
	errno, _ := errors.AsType[syscall.Errno](err)
	return errno
}
