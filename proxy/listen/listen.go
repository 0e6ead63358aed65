// Package listen opens the sockets on which clients are awaited.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// keepAlive finds clients that are gone without a word, after 7 minutes. It is
// more patient than usual because each probe wakes a phone's radio.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: 30 * time.Second, Count: 4}

func openTCP(ctx context.Context, address string) (*net.TCPListener, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	config.SetMultipathTCP(false) // a client's address is what the guard counts by
	ln, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w%s", address, cause(err), advice(address, err))
	}
	return ln.(*net.TCPListener), nil
}

// cause drops what net says around the system's error: the address, again.
func cause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

func advice(address string, err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		if pid, name, ok := Holder(address); ok {
			return fmt.Sprintf(" by %s (process %d): stop it, or choose another port", name, pid)
		}
		return ": stop the process that holds it, or choose another port"
	case errors.Is(err, syscall.EACCES):
		return ": a port below 1024 takes root or CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ": this machine has no such address"
	}
	return ""
}
