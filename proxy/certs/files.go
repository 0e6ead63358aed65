package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"
)

// A Pair names two PEM files: a certificate with its chain, and its key.
type Pair struct{ Cert, Key string }

// load reads what c names. What is known keeps what was read of it before.
func (s *Store) load(c Config) (files []*file, folders []*folder, err error) {
	var errs []error
	for _, p := range c.Pairs {
		f := &file{pair: p}
		if i := slices.IndexFunc(s.files, func(f *file) bool { return f.pair == p }); i >= 0 {
			f = s.files[i]
		}
		if _, err := f.reload(true); err != nil {
			errs = append(errs, err)
		}
		files = append(files, f)
	}
	for _, path := range c.Folders {
		f := &folder{path: path}
		if i := slices.IndexFunc(s.folders, func(f *folder) bool { return f.path == path }); i >= 0 {
			f = s.folders[i]
		}
		if err := f.open(); err != nil {
			errs = append(errs, err)
		}
		folders = append(folders, f)
	}
	return files, folders, errors.Join(errs...)
}

// Watch looks for changed files, each time that every has passed, and reloads
// those. One that cannot be used leaves what was loaded before. Sessions that
// are open go on. It returns when ctx ends.
func (s *Store) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		renewed, err := s.reload()
		for _, cert := range renewed {
			log.Info("certificate reloaded", "names", names(cert.Leaf), "not_after", cert.Leaf.NotAfter)
		}
		if err != nil {
			log.Warn("certificate not reloaded: the old one is served", "err", err)
		}
	}
}

// reload reads the files that changed, and returns the certificates that are
// new.
func (s *Store) reload() (renewed []*tls.Certificate, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	gone := false
	for _, f := range s.files {
		cert, err := f.reload(false)
		if cert != nil {
			renewed = append(renewed, cert)
		}
		errs = append(errs, err)
	}
	for _, f := range s.folders {
		certs, less, err := f.reload()
		renewed, gone = append(renewed, certs...), gone || less
		errs = append(errs, err)
	}
	if len(renewed) > 0 || gone {
		s.publish()
	}
	return renewed, errors.Join(errs...)
}

// publish makes what was read what is served.
func (s *Store) publish() {
	var certs []served
	for _, f := range s.files {
		if f.cert != nil {
			certs = append(certs, served{f.cert, SourceFile})
		}
	}
	for _, folder := range s.folders {
		for _, f := range folder.files {
			if f.cert != nil {
				certs = append(certs, served{f.cert, SourceFolder})
			}
		}
	}
	next := newSet(certs, s.config.Default)
	next.refuse = s.config.RefuseUnknown
	s.current.Store(next)
}

// A file is a Pair and what was read of it.
type file struct {
	pair              Pair
	cert              *tls.Certificate // nil: never read successfully
	certInfo, keyInfo os.FileInfo      // when last read
	bad               bool             // what was last read could not be used
}

// reload reads the pair again, if it has changed or has to be, and returns the
// certificate if it is a new one. One that could not be used is read each time,
// for a new owner or mode is no change that can be seen; what is wrong is said
// once.
func (f *file) reload(must bool) (*tls.Certificate, error) {
	told := !f.changed() && !must
	if told && !f.bad {
		return nil, nil
	}
	cert, err := f.load()
	f.bad = err != nil
	if err != nil {
		if told {
			err = nil
		}
		return nil, err
	}
	if f.cert != nil && slices.EqualFunc(cert.Certificate, f.cert.Certificate, slices.Equal[[]byte]) {
		f.cert = cert
		return nil, nil
	}
	f.cert = cert
	return cert, nil
}

// changed reports whether there is something to read. What changes while it is
// read is read again the next time.
func (f *file) changed() bool {
	cert, key := stat(f.pair.Cert), stat(f.pair.Key)
	changed := !same(cert, f.certInfo) || !same(key, f.keyInfo)
	f.certInfo, f.keyInfo = cert, key
	return changed
}

// load reads and checks the pair. That the key belongs to the certificate is
// checked by X509KeyPair. An expired certificate is better than none, but not
// better than the one before it.
func (f *file) load() (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(f.pair.Cert)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(f.pair.Key)
	if err != nil {
		return nil, fmt.Errorf("read key of certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		err = parse(&cert)
	}
	if err == nil && f.cert != nil && time.Now().After(cert.Leaf.NotAfter) && cert.Leaf.NotAfter.Before(f.cert.Leaf.NotAfter) {
		err = fmt.Errorf("expired on %s", cert.Leaf.NotAfter.Format(time.DateOnly))
	}
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.pair.Cert, f.pair.Key, err)
	}
	return &cert, nil
}

// stat returns what tells one content of a file from another without reading
// it, nil if there is no file. It is of the file that a link points to.
func stat(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return info
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
