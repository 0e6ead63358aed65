package main

import (
	"os"
	"syscall"
	"unsafe"
)

// isTerminal reports whether somebody may type at f.
func isTerminal(f *os.File) bool {
	_, err := terminal(f)
	return err == nil
}

// hideTyping lets the terminal not show what is typed, until restore.
func hideTyping(f *os.File) (restore func(), err error) {
	before, err := terminal(f)
	if err != nil {
		return nil, err
	}
	hidden := before
	hidden.Lflag &^= syscall.ECHO
	if err := control(f, syscall.TCSETS, &hidden); err != nil {
		return nil, err
	}
	return func() { _ = control(f, syscall.TCSETS, &before) }, nil
}

func terminal(f *os.File) (t syscall.Termios, err error) {
	err = control(f, syscall.TCGETS, &t)
	return t, err
}

func control(f *os.File, request uintptr, t *syscall.Termios) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(t))); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
