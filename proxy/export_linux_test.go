package proxy

import (
	"sync/atomic"
	"syscall"
)

// EpollFaults are errors that the system's calls for parking return before they work.
type EpollFaults struct {
	Create, Ctl, Wait syscall.Errno // 0: none
	Times             int64         // that each of them fails
}

// InjectEpollFaults makes the next poller of s fail as f says.
func InjectEpollFaults(s *Server, f EpollFaults) {
	fails := func(err syscall.Errno) func() error {
		var left atomic.Int64
		left.Store(f.Times)
		return func() error {
			if err == 0 || left.Add(-1) < 0 {
				return nil
			}
			return err
		}
	}
	create, ctl, wait := fails(f.Create), fails(f.Ctl), fails(f.Wait)
	s.parker.openPoller = func() (poller, error) {
		return newEpoll(epollCalls{
			create: func(flags int) (int, error) {
				if err := create(); err != nil {
					return -1, err
				}
				return syscall.EpollCreate1(flags)
			},
			ctl: func(epfd, op, fd int, event *syscall.EpollEvent) error {
				if err := ctl(); err != nil {
					return err
				}
				return syscall.EpollCtl(epfd, op, fd, event)
			},
			wait: func(epfd int, events []syscall.EpollEvent, msec int) (int, error) {
				if err := wait(); err != nil {
					return -1, err
				}
				return syscall.EpollWait(epfd, events, msec)
			},
		})
	}
}
