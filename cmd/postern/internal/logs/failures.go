package logs

import (
	"os"
	"sync"
	"time"
)

// A FailureFile is a file for lines of wrong passwords. What rotates logs may
// move it away: then there is a new one within a second.
type FailureFile struct {
	path string

	mu      sync.Mutex
	file    *os.File
	checked time.Time // whether the file is still at its path
}

// OpenFailures opens the file at path, and makes it where there is none.
func OpenFailures(path string) (*FailureFile, error) {
	l := &FailureFile{path: path}
	return l, l.open()
}

func (l *FailureFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.checked = file, time.Now()
	return nil
}

// Write implements io.Writer.
func (l *FailureFile) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.checked) >= time.Second {
		if err := l.reopenIfMoved(); err != nil {
			return 0, err
		}
	}
	return l.file.Write(line)
}

func (l *FailureFile) reopenIfMoved() error {
	own, err := l.file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(l.path); err == nil && os.SameFile(own, now) {
		l.checked = time.Now()
		return nil
	}
	return l.open()
}
