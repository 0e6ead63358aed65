// Package listen opens the sockets on which clients connect. Sockets keeps the
// listening sockets of the process, also those of systemd or of an upgrade. A
// ProxyListener reads PROXY headers, and Header makes one. A LimitedListener
// limits its connections.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// keepAlive detects clients that vanished after 7 minutes. It is more patient
// than usual, because each probe wakes the radio of a phone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: 30 * time.Second, Count: 4}

func listenTCP(ctx context.Context, address string) (*net.TCPListener, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	config.SetMultipathTCP(false) // the guard counts by the client's address
	ln, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w%s", address, systemError(err), adviceFor(address, err))
	}
	return ln.(*net.TCPListener), nil
}

// Try opens address and closes it at once. The error is that of Sockets.Listen.
func Try(ctx context.Context, address string) error {
	ln, err := listenTCP(ctx, address)
	if err != nil {
		return err
	}
	return ln.Close()
}

// Held returns the error of Sockets.Listen for an address that another process has, or nil. It
// opens nothing. A process of which own is true does not count.
func Held(address string, own func(pid int, name string) bool) error {
	if pid, name, ok := Holder(address); !ok || own(pid, name) {
		return nil
	}
	return fmt.Errorf("listen on %s: %w%s", address, syscall.EADDRINUSE, adviceFor(address, syscall.EADDRINUSE))
}

// systemError returns the system's error within an error of package net, which
// repeats the address.
func systemError(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

func adviceFor(address string, err error) string {
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
