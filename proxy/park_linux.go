package proxy

import (
	"errors"
	"os"
	"syscall"
)

// canPark reports whether newPoller can open a poller on this system.
const canPark = true

// An epoll is a poller. Each descriptor fires once for each watch (EPOLLONESHOT), also
// for what had come before. It is the descriptor's file that is watched: the kernel
// forgets it when the connection is closed.
type epoll struct {
	file  *os.File
	raw   syscall.RawConn
	calls epollCalls
}

// epollCalls are the calls of the system.
type epollCalls struct {
	create func(flags int) (fd int, err error)
	ctl    func(epfd, op, fd int, event *syscall.EpollEvent) error
	wait   func(epfd int, events []syscall.EpollEvent, msec int) (n int, err error)
}

// newPoller returns an epoll.
func newPoller() (poller, error) {
	return newEpoll(epollCalls{create: syscall.EpollCreate1, ctl: syscall.EpollCtl, wait: syscall.EpollWait})
}

func newEpoll(calls epollCalls) (*epoll, error) {
	fd, err := calls.create(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // so that the runtime's poller takes the descriptor
		_ = syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	e := &epoll{file: os.NewFile(uintptr(fd), "epoll"), calls: calls}
	if e.raw, err = e.file.SyscallConn(); err != nil {
		_ = e.file.Close()
		return nil, err
	}
	return e, nil
}

// watch implements poller.
func (e *epoll) watch(conn syscall.RawConn, key uint64) (err error) {
	event := syscall.EpollEvent{
		Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(uint32(key)), Pad: int32(uint32(key >> 32)),
	}
	control := func(own uintptr) {
		controlErr := conn.Control(func(fd uintptr) {
			err = e.ctl(int(own), syscall.EPOLL_CTL_MOD, int(fd), &event)
			if errors.Is(err, syscall.ENOENT) { // the connection's first time
				err = e.ctl(int(own), syscall.EPOLL_CTL_ADD, int(fd), &event)
			}
		})
		if controlErr != nil {
			err = controlErr
		}
	}
	if ownErr := e.raw.Control(control); ownErr != nil {
		return ownErr
	}
	return os.NewSyscallError("epoll_ctl", err)
}

func (e *epoll) ctl(own, op, fd int, event *syscall.EpollEvent) (err error) {
	for {
		if err = e.calls.ctl(own, op, fd, event); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// run implements poller. The runtime's poller says once that there are events, so all of
// them are taken before run waits again.
func (e *epoll) run(wake func(key uint64)) {
	var events [128]syscall.EpollEvent
	for {
		n, err := 0, error(nil)
		waitErr := e.raw.Read(func(fd uintptr) bool {
			for {
				if n, err = e.calls.wait(int(fd), events[:], 0); !errors.Is(err, syscall.EINTR) {
					break
				}
			}
			return n > 0 || err != nil
		})
		if waitErr != nil || err != nil {
			return
		}
		for _, event := range events[:n] {
			wake(uint64(uint32(event.Pad))<<32 | uint64(uint32(event.Fd)))
		}
	}
}

// close implements poller.
func (e *epoll) close() { _ = e.file.Close() }
