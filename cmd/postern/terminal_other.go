//go:build !linux

package main

import (
	"errors"
	"os"
)

// isTerminal reports whether somebody may type at f.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func hideTyping(*os.File) (restore func(), err error) {
	return nil, errors.New("typing cannot be hidden here: use --password-file, or a pipe")
}
