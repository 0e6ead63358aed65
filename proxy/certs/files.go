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

// A Pair is the paths of two PEM files: a certificate with its chain, and its
// key.
type Pair struct{ Cert, Key string }

// load reads the files of c. A known file keeps its state.
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

// Watch looks for changed files in intervals of every and reloads them, until ctx
// ends. If a file cannot be used, the previous certificate stays. Open sessions
// go on.
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

// reload reads the changed files and returns the new certificates.
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
		certs, removed, err := f.reload()
		renewed, gone = append(renewed, certs...), gone || removed
		errs = append(errs, err)
	}
	if len(renewed) > 0 || gone {
		s.publish()
	}
	return renewed, errors.Join(errs...)
}

// publish makes the loaded certificates the current set.
func (s *Store) publish() {
	var certs []servedCert
	for _, f := range s.files {
		if f.cert != nil {
			certs = append(certs, servedCert{f.cert, SourceFile})
		}
	}
	for _, folder := range s.folders {
		for _, f := range folder.files {
			if f.cert != nil {
				certs = append(certs, servedCert{f.cert, SourceFolder})
			}
		}
	}
	next := newSet(certs, s.config.Default)
	next.refuse = s.config.RefuseUnknown
	s.current.Store(next)
}

// A file is a Pair and its certificate.
type file struct {
	pair              Pair
	cert              *tls.Certificate // nil: never loaded
	certInfo, keyInfo os.FileInfo      // when last read
	failed            bool             // the last read failed
}

// reload reads the pair if it has changed or force is set, and returns the
// certificate if it is a new one. A pair that could not be used is read each
// time, because a change of owner or mode is not seen; its error is returned
// once.
func (f *file) reload(force bool) (*tls.Certificate, error) {
	unchanged := !f.changed() && !force
	if unchanged && !f.failed {
		return nil, nil
	}
	cert, err := f.load()
	f.failed = err != nil
	if err != nil {
		if unchanged {
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

// changed reports whether the pair has changed since the last call. A change
// during a read is found by the next call.
func (f *file) changed() bool {
	cert, key := statFile(f.pair.Cert), statFile(f.pair.Key)
	changed := !sameFile(cert, f.certInfo) || !sameFile(key, f.keyInfo)
	f.certInfo, f.keyInfo = cert, key
	return changed
}

// load reads and checks the pair. X509KeyPair checks that the key belongs to the
// certificate. An expired certificate is better than none, but not better than
// the previous one.
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
		err = fillLeaf(&cert)
	}
	if err == nil && f.cert != nil && time.Now().After(cert.Leaf.NotAfter) && cert.Leaf.NotAfter.Before(f.cert.Leaf.NotAfter) {
		err = fmt.Errorf("expired on %s", cert.Leaf.NotAfter.Format(time.DateOnly))
	}
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.pair.Cert, f.pair.Key, err)
	}
	return &cert, nil
}
