// Package certs holds the certificates that are served, and makes the TLS
// configuration of each listener.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// A Store holds certificates. It is made by New or Static; all its methods may
// be called from many goroutines.
type Store struct {
	current atomic.Pointer[set]

	mu    sync.Mutex // of reloading
	files []*file
}

// Static returns a Store with one certificate, which never changes.
func Static(cert tls.Certificate) (*Store, error) {
	if err := parse(&cert); err != nil {
		return nil, err
	}
	s := new(Store)
	s.current.Store(newSet([]served{{&cert, SourceMemory}}))
	return s, nil
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

// The values of Validity.Source.
const (
	SourceFile   = "file"
	SourceMemory = "memory"
)

// A Validity is how long a name has a valid certificate.
type Validity struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
}

// Expiry returns one Validity for each name of each certificate; where a name
// has several of one source, that which ends first. A name may be a wildcard.
func (s *Store) Expiry() []Validity {
	var all []Validity
	seen := make(map[[2]string]int)
	for _, c := range s.current.Load().certs {
		for _, name := range names(c.Leaf) {
			v := Validity{name, c.source, c.Leaf.NotBefore, c.Leaf.NotAfter}
			i, ok := seen[[2]string{name, c.source}]
			if !ok {
				seen[[2]string{name, c.source}] = len(all)
				all = append(all, v)
			} else if v.NotAfter.Before(all[i].NotAfter) {
				all[i] = v
			}
		}
	}
	return all
}
