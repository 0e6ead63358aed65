package backend

import (
	"fmt"
	"syscall"
)

// bindLate lets the system choose the port at connect time: a source address then
// has one port for each connection to each server, and not one for all servers.
func bindLate(_, _ string, c syscall.RawConn) error {
	const bindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT of ip(7), for IPv6 as well
	var err error
	if control := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, bindAddressNoPort, 1)
	}); control != nil {
		return control
	}
	if err != nil {
		return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
	}
	return nil
}
