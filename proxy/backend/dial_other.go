//go:build !linux

package backend

import "syscall"

// bindLate is Linux's.
func bindLate(_, _ string, _ syscall.RawConn) error { return nil }
