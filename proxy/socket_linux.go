//go:build linux && !race

package proxy

import (
	"syscall"
	"unsafe"
)

// ReadDescriptor reads once from a descriptor that does not block; errno 0 is no
// error. RawSyscall is right for such: there is nothing that the scheduler could do
// meanwhile.
func ReadDescriptor(fd uintptr, p []byte) (int, syscall.Errno) {
	return raw(syscall.SYS_READ, fd, p)
}

// writeDescriptor writes once.
func writeDescriptor(fd uintptr, p []byte) (int, syscall.Errno) {
	return raw(syscall.SYS_WRITE, fd, p)
}

func raw(call, fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
