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

// New loads pairs. The first one's certificate is the default: for clients
// that send no name, or an unknown one. All that is wrong with any of them is
// in the error. A certificate that has expired is served.
func New(pairs []Pair) (*Store, error) {
	if len(pairs) == 0 {
		return nil, errors.New("no certificates")
	}
	s := new(Store)
	for _, p := range pairs {
		s.files = append(s.files, &file{pair: p})
	}
	if _, err := s.reload(true); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads all files again. One that cannot be used leaves what was loaded
// before, and its error is returned. Sessions that are open go on.
func (s *Store) Reload() error {
	_, err := s.reload(true)
	return err
}

// Watch looks for changed files, each time that every has passed, and reloads
// those. It returns when ctx ends.
func (s *Store) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		renewed, err := s.reload(false)
		for _, cert := range renewed {
			log.Info("certificate reloaded", "names", names(cert.Leaf), "not_after", cert.Leaf.NotAfter)
		}
		if err != nil {
			log.Warn("certificate not reloaded: the old one is served", "err", err)
		}
	}
}

// A file is a Pair and what was read of it.
type file struct {
	pair              Pair
	cert              *tls.Certificate // nil: never read successfully
	certInfo, keyInfo os.FileInfo      // when last read
}

// reload reads the files again, all or those that changed, and returns the
// certificates that are new.
func (s *Store) reload(all bool) (renewed []*tls.Certificate, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, f := range s.files {
		if !f.changed() && !all {
			continue
		}
		cert, err := f.load()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if f.cert == nil || !slices.EqualFunc(cert.Certificate, f.cert.Certificate, slices.Equal[[]byte]) {
			renewed = append(renewed, cert)
		}
		f.cert = cert
	}
	if len(renewed) > 0 {
		s.publish()
	}
	return renewed, errors.Join(errs...)
}

func (s *Store) publish() {
	var certs []served
	for _, f := range s.files {
		if f.cert != nil {
			certs = append(certs, served{f.cert, SourceFile})
		}
	}
	s.current.Store(newSet(certs))
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
