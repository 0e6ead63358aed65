package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
)

// GetCertificate chooses for a client, which may have sent no name, or one that
// we do not have: half of the hosters' customers use one.
func (s *Store) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	set := s.current.Load()
	name := strings.ToLower(hello.ServerName)
	_, parent, _ := strings.Cut(name, ".")
	nameless := *hello
	nameless.ServerName = "" // the name is our concern: it is in the map, or nothing fits it
	for _, certs := range [][]*tls.Certificate{set.byName[name], set.byName["*."+parent], set.byDefault} {
		for _, cert := range certs {
			if nameless.SupportsCertificate(cert) == nil {
				return cert, nil
			}
		}
	}
	return set.byDefault[0], nil // crypto/tls finds the right alert
}

// A set is what is served at one time. It does not change.
type set struct {
	certs     []served
	byName    map[string][]*tls.Certificate
	byDefault []*tls.Certificate // the first's, then all
}

type served struct {
	*tls.Certificate
	source string
}

func newSet(certs []served) *set {
	s := &set{certs: certs, byName: make(map[string][]*tls.Certificate)}
	for _, c := range certs {
		for _, name := range names(c.Leaf) {
			s.byName[name] = append(s.byName[name], c.Certificate)
		}
	}
	for _, same := range s.byName {
		// All clients know RSA, so it would win wherever it comes first.
		slices.SortStableFunc(same, func(a, b *tls.Certificate) int { return cmp.Compare(rank(a), rank(b)) })
	}
	s.byDefault = slices.Clone(s.byName[names(certs[0].Leaf)[0]])
	for _, c := range certs {
		s.byDefault = append(s.byDefault, c.Certificate)
	}
	return s
}

func rank(c *tls.Certificate) int {
	if c.Leaf.PublicKeyAlgorithm == x509.RSA {
		return 1
	}
	return 0
}

// names returns what a certificate is good for: DNS names, also wildcards, and
// addresses; or, in old ones, the common name.
func names(leaf *x509.Certificate) []string {
	var all []string
	for _, name := range leaf.DNSNames {
		all = append(all, strings.ToLower(name))
	}
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 && leaf.Subject.CommonName != "" {
		all = append(all, strings.ToLower(leaf.Subject.CommonName))
	}
	return all
}
