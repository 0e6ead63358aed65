// Package certs holds the certificates that are served, and makes the TLS
// configuration of each listener. They come from files, from folders and, by
// ACME (RFC 8555), from a certificate authority.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// Config says where certificates come from.
type Config struct {
	Pairs   []Pair   // the first one's certificate is the default
	Folders []string // with NAME/fullchain.pem and NAME/privkey.pem, as certbot and others have them
	ACME    *ACME    // nil: there is none

	// Default is the name whose certificate is the default where there are no
	// Pairs. Without one, any is.
	Default string
	// RefuseUnknown refuses clients that send no name, or an unknown one, in
	// place of showing them the default certificate.
	RefuseUnknown bool
}

// A Store holds certificates. It is made by New or Static; all its methods may
// be called from many goroutines.
type Store struct {
	current atomic.Pointer[set]
	acme    atomic.Pointer[manager] // nil: not opened, or no ACME

	mu       sync.Mutex // of what follows
	config   Config
	files    []*file
	folders  []*folder
	log      *slog.Logger // nil: not opened
	observer proxy.Observer
	replaced chan struct{} // tells Run of another manager
}

// Static returns a Store with one certificate, which never changes.
func Static(cert tls.Certificate) (*Store, error) {
	if err := parse(&cert); err != nil {
		return nil, err
	}
	s := &Store{replaced: make(chan struct{}, 1)}
	s.current.Store(newSet([]served{{&cert, SourceMemory}}, ""))
	return s, nil
}

// New loads the pairs and folders of c. All that is wrong with any pair is in
// the error; in a folder, what is wrong is left out, and told by Watch. A
// certificate that has expired is served. ACME waits for Open.
func New(c Config) (*Store, error) {
	s := &Store{replaced: make(chan struct{}, 1)}
	if err := s.Configure(c); err != nil {
		return nil, err
	}
	return s, nil
}

// Configure replaces the configuration. After an error the one before is in
// force. Sessions that are open go on.
func (s *Store) Configure(c Config) error {
	if len(c.Pairs) == 0 && len(c.Folders) == 0 && c.ACME == nil {
		return errors.New("no certificates")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	files, folders, err := s.load(c)
	if err != nil {
		return err
	}
	if s.log != nil && !reflect.DeepEqual(c.ACME, s.config.ACME) {
		if err := s.manage(c); err != nil {
			return err
		}
	}
	s.config, s.files, s.folders = c, files, folders
	s.publish()
	return nil
}

// Open opens the storage of what ACME has got, and loads it. What ACME does is
// told to log and to o. Without ACME there is nothing to open.
func (s *Store) Open(log *slog.Logger, o proxy.Observer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log, s.observer = log, o
	return s.manage(s.config)
}

// manage makes the manager that c asks for the one in charge.
func (s *Store) manage(c Config) error {
	var next *manager
	if c.ACME != nil {
		var err error
		if next, err = newManager(*c.ACME, s.log, s.observer); err != nil {
			return err
		}
		if err := next.loadNamed(); err != nil {
			next.cache.Stop()
			return err
		}
	}
	if before := s.acme.Swap(next); before != nil && before.claimed.CompareAndSwap(false, true) {
		before.cache.Stop() // Run has not come to it, and never will
	}
	select {
	case s.replaced <- struct{}{}:
	default:
	}
	return nil
}

// Run gets and renews the certificates of ACME until ctx ends. It comes after
// Open.
func (s *Store) Run(ctx context.Context) {
	for ctx.Err() == nil {
		m := s.acme.Load()
		inner, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		if m != nil && m.claimed.CompareAndSwap(false, true) {
			running.Go(func() { m.run(inner) })
		}
		for s.acme.Load() == m && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-s.replaced:
			}
		}
		cancel()
		running.Wait()
	}
}

// parse fills in Leaf. A certificate without a name fits nobody's question.
func parse(cert *tls.Certificate) (err error) {
	if len(cert.Certificate) == 0 {
		return errors.New("no certificate")
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return err
		}
	}
	if len(names(cert.Leaf)) == 0 {
		return errors.New("it has no name")
	}
	return nil
}

// The values of Validity.Source and Listed.Source.
const (
	SourceFile     = "file"
	SourceFolder   = "dir"
	SourceACME     = "acme"
	SourceOnDemand = "on_demand"
	SourceMemory   = "memory"
)

// A Validity is how long a name has a valid certificate.
type Validity struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
}

// Left is the part of the lifetime that is left at a time: 1 to 0, and less
// when it is over.
func (v Validity) Left(now time.Time) float64 {
	life := v.NotAfter.Sub(v.NotBefore)
	if life <= 0 {
		return -1
	}
	return float64(v.NotAfter.Sub(now)) / float64(life)
}

// AllNames is the Name of a Validity that stands for all of its source.
const AllNames = "*"

// Expiry returns one Validity for each name that the configuration names, by
// itself or in a pair's certificate; where a name has several of one source,
// that which ends first. A name may be a wildcard. The names in folders and
// those on demand may be thousands: each such source has one Validity, of the
// certificate that has the least of its lifetime left.
func (s *Store) Expiry() []Validity {
	var all []Validity
	now := time.Now()
	seen := make(map[[2]string]int)
	add := func(v Validity) {
		i, ok := seen[[2]string{v.Name, v.Source}]
		switch {
		case !ok:
			seen[[2]string{v.Name, v.Source}] = len(all)
			all = append(all, v)
		case v.Left(now) < all[i].Left(now):
			all[i] = v
		}
	}
	for _, c := range s.current.Load().certs {
		if c.source == SourceFolder {
			add(Validity{AllNames, c.source, c.Leaf.NotBefore, c.Leaf.NotAfter})
			continue
		}
		for _, name := range names(c.Leaf) {
			add(Validity{name, c.source, c.Leaf.NotBefore, c.Leaf.NotAfter})
		}
	}
	s.acme.Load().expiry(add)
	return all
}
