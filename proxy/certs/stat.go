package certs

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxPEM bounds the file of a certificate with its chain, and that of a key, in octets.
const maxPEM = 1 << 20

// readPEM is os.ReadFile for a regular file of up to maxPEM octets. Of a pipe or a device it
// does not wait for the end.
func readPEM(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(b) > maxPEM {
		err = fmt.Errorf("%s has more than %d octets", path, maxPEM)
	}
	return b, err
}

// statFile returns the state of the file at path, following links, or nil if
// there is none.
func statFile(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return info
}

// sameFile reports whether a and b describe the same content, as far as this is
// known without reading it. No file equals no file.
func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
