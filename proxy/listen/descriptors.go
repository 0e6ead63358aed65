package listen

import (
	"errors"
	"fmt"
	"math"
	"syscall"
)

// ErrNoRoom is in the tree of an error of Room.
var ErrNoRoom = errors.New("no file descriptor is left for clients")

// maxReserve is the most that are kept: what three Limited listeners take, and
// as much again as one of them for the control socket and files.
const maxReserve = 128

// others are the descriptors that a process without clients has open, and some
// more: listening sockets, files, those of an upgrade.
const others = 64

// Descriptors returns how many file descriptors the process may have open
// (RLIMIT_NOFILE), and how many of these clients leave to the control socket, to
// Limited listeners and to files: 128, or a quarter of a limit below 512.
func Descriptors() (limit, reserve int) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > math.MaxInt32 {
		return math.MaxInt32, maxReserve // the kernel's own limits are lower
	}
	limit = int(r.Cur)
	return limit, min(maxReserve, limit/4)
}

// Needed returns how many file descriptors so many connections of clients take,
// each with one to a backend, beside the reserve and what else is open.
func Needed(connections int) int { return 2*connections + others + maxReserve }

// Room returns an error that wraps ErrNoRoom while only the reserve of
// Descriptors is left, and nil when it is not or when the system does not say.
// The system gives the lowest number that is free: it tells how many are not.
func CheckDescriptors() error {
	limit, reserve := Descriptors()
	fd, err := lowestFree()
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w: %w: raise LimitNOFILE", ErrNoRoom, err)
	case err != nil || fd < limit-reserve:
		return nil
	}
	return fmt.Errorf("%w: all but %d of %d are in use: raise LimitNOFILE", ErrNoRoom, reserve, limit)
}

// lowestFree returns the number that the next descriptor would have.
func lowestFree() (int, error) {
	syscall.ForkLock.RLock() // no child gets it
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return 0, err
	}
	return fd, syscall.Close(fd)
}
