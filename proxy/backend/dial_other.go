//go:build !linux

package backend

import "syscall"

// bindLate lets the system choose the port at connect time: a source address then
// has one port for each connection to each server, and not one for all servers.
func bindLate(_, _ string, _ syscall.RawConn) error { return nil }
