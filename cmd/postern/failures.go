package main

import (
	"os"
	"sync"
	"time"

	"postern/configs"
)

// A failureLog is a file for lines of wrong passwords. What rotates logs may
// move it away: then there is a new one within a second.
type failureLog struct {
	path string

	mu     sync.Mutex
	file   *os.File
	looked time.Time // whether the file is still at its path
}

func openFailures(path string) (*failureLog, error) {
	l := &failureLog{path: path}
	return l, l.open()
}

func (l *failureLog) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.looked = file, time.Now()
	return nil
}

// Write implements io.Writer.
func (l *failureLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.looked) >= time.Second {
		if err := l.follow(); err != nil {
			return 0, err
		}
	}
	return l.file.Write(line)
}

func (l *failureLog) follow() error {
	own, err := l.file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(l.path); err == nil && os.SameFile(own, now) {
		l.looked = time.Now()
		return nil
	}
	return l.open()
}

// setFailures makes the audit log write wrong passwords to a file, too.
func (s *site) setFailures(cfg *configs.Config) error {
	if cfg.Log.Fail2ban == "" {
		return nil
	}
	l, err := openFailures(cfg.Log.Fail2ban)
	if err != nil {
		return configs.Errors{cfg.Errorf("log.fail2ban", "%v", err)}
	}
	s.audit.Failures = l
	return nil
}
