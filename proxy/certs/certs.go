// Package certs holds the certificates that listeners present, and makes the TLS
// configuration of each listener. Certificates come from files, from folders and,
// by ACME (RFC 8555), from a certificate authority. A Store holds them all and
// chooses one for each ClientHello.
package certs

import (
	"context"
	"crypto/tls"
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
	Pairs   []Pair   // the certificate of the first is the default
	Folders []string // with NAME/fullchain.pem and NAME/privkey.pem, as certbot writes them
	ACME    *ACME    // nil: no ACME

	// Default is the name whose certificate is the default if there are no Pairs.
	// Without Default, any is.
	Default string
	// Unneeded says that no listener has TLS: that there is no certificate is no fault.
	Unneeded bool
	// Expected are names that clients use, in lower case. One that no certificate has is a
	// Finding.
	Expected []string
	// RefuseUnknown refuses clients that send no name, or an unknown one, instead of
	// presenting the default certificate.
	RefuseUnknown bool
}

// A Store holds certificates. New or Static makes it. All methods may be called
// from several goroutines.
type Store struct {
	current    atomic.Pointer[set]
	acme       atomic.Pointer[manager] // nil: not opened, or no ACME
	configured atomic.Int64            // calls of Configure

	mu       sync.Mutex // guards the fields below
	config   Config
	files    []*file
	folders  []*folder
	log      *slog.Logger // nil: not opened
	observer proxy.Observer
	replaced chan struct{} // wakes Run when the manager was replaced
}

// Static returns a Store with one certificate, which never changes.
func Static(cert tls.Certificate) (*Store, error) {
	if err := fillLeaf(&cert); err != nil {
		return nil, err
	}
	s := &Store{replaced: make(chan struct{}, 1)}
	s.current.Store(newSet([]servedCert{{Certificate: &cert, source: SourceMemory}}, ""))
	return s, nil
}

// New loads the pairs and folders of c. The error names every pair that cannot be
// loaded; a pair of a folder that cannot be loaded is left out. An expired
// certificate is used. Findings has all that is wrong. ACME begins with Open.
func New(c Config) (*Store, error) {
	s := &Store{replaced: make(chan struct{}, 1)}
	if err := s.Configure(c); err != nil {
		return nil, err
	}
	return s, nil
}

// Inspect returns a Store with all that can be loaded of c. Findings has the rest.
func Inspect(c Config) *Store {
	s := &Store{config: c, replaced: make(chan struct{}, 1)}
	s.files, s.folders, _ = s.load(c)
	s.publish()
	return s
}

// Configure replaces the configuration. After an error the previous one stays in
// force. Open sessions go on.
func (s *Store) Configure(c Config) error {
	if !c.Unneeded && len(c.Pairs) == 0 && len(c.Folders) == 0 && c.ACME == nil {
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
	s.configured.Add(1)
	return nil
}

// Open opens the storage of ACME and loads the certificates in it. ACME logs to
// log and emits events to o. Without ACME, Open does nothing.
func (s *Store) Open(log *slog.Logger, o proxy.Observer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log, s.observer = log, o
	return s.manage(s.config)
}

// manage replaces the manager by one for c.
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
	if before := s.acme.Swap(next); before != nil && before.stopClaimed.CompareAndSwap(false, true) {
		before.cache.Stop() // Run has not started it and never will
	}
	select {
	case s.replaced <- struct{}{}:
	default:
	}
	return nil
}

// Run gets and renews certificates by ACME until ctx ends. Open must come first.
func (s *Store) Run(ctx context.Context) {
	for ctx.Err() == nil {
		m := s.acme.Load()
		inner, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		if m != nil && m.stopClaimed.CompareAndSwap(false, true) {
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

// The values of Validity.Source and Entry.Source.
const (
	SourceFile     = "file"
	SourceFolder   = "dir"
	SourceACME     = "acme"
	SourceOnDemand = "on_demand"
	SourceMemory   = "memory"
)

// Expiry returns one Validity for each name in the configuration and in a pair's
// certificate; if a name has several certificates of one source, the one that
// expires first. A name may be a wildcard. Names in folders and on demand may be
// thousands: each such source has one Validity, of the certificate with the least
// of its lifetime left.
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
	set := s.current.Load()
	notLoaded := set.notLoaded()
	for _, c := range set.certs {
		more := c.atAnyTime(notLoaded)
		if c.source == SourceFolder {
			add(validity(AllNames, c.source, c.Leaf, more, now))
			continue
		}
		for _, name := range names(c.Leaf) {
			add(validity(name, c.source, c.Leaf, more, now))
		}
	}
	s.acme.Load().expiry(now, add)
	return all
}
