package listen

import (
	"errors"
	"fmt"
	"math"
	"syscall"
)

// ErrNoDescriptors is wrapped by the error of CheckDescriptors.
var ErrNoDescriptors = errors.New("no file descriptor is left for clients")

// maxReserve is the largest reserve: the descriptors of three LimitedListeners,
// and as many again as one of them for the control socket and files.
const maxReserve = 128

// baseDescriptors are the descriptors of a process without clients, and some
// more: listening sockets, files, those of an upgrade.
const baseDescriptors = 64

// Descriptors returns how many file descriptors the process may have open
// (RLIMIT_NOFILE), and how many of these are reserved for the control socket,
// LimitedListeners and files: 128, or a quarter of a limit below 512.
func Descriptors() (limit, reserve int) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > math.MaxInt32 {
		return math.MaxInt32, maxReserve // the kernel's own limits are lower
	}
	limit = int(r.Cur)
	return limit, min(maxReserve, limit/4)
}

// DescriptorsFor returns how many file descriptors the process needs for so many
// client connections, each with one to a backend, including the reserve.
func DescriptorsFor(connections int) int { return 2*connections + baseDescriptors + maxReserve }

// CheckDescriptors returns an error that wraps ErrNoDescriptors while only the
// reserve of Descriptors is left, and nil otherwise or if the number is not
// known. It relies on the system using the lowest free number for a new
// descriptor.
func CheckDescriptors() error {
	limit, reserve := Descriptors()
	fd, err := lowestFree()
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w: %w: raise LimitNOFILE", ErrNoDescriptors, err)
	case err != nil || fd < limit-reserve:
		return nil
	}
	return fmt.Errorf("%w: all but %d of %d are in use: raise LimitNOFILE", ErrNoDescriptors, reserve, limit)
}

// lowestFree returns the number that the next descriptor would have.
func lowestFree() (int, error) {
	syscall.ForkLock.RLock() // no child process inherits it
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return 0, err
	}
	return fd, syscall.Close(fd)
}
