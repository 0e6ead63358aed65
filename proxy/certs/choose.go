package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// errNone is the error of a Store whose ACME has no certificate yet.
var errNone = errors.New("no certificate yet")

// GetCertificate chooses the certificate for a client. The client may send no
// name, or an unknown one: customers of hosters often use a name of their own. It
// may wait, up to 8 seconds, for a certificate on demand. If it returns neither
// certificate nor error, crypto/tls sends unrecognized_name. A CA that validates
// by TLS-ALPN-01 gets the challenge's certificate.
func (s *Store) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m := s.acme.Load()
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == proxy.ACMETLS {
		return m.challengeCertificate(hello)
	}
	set := s.current.Load()
	c := newSelection(hello)
	cert, known := c.byName(set, m)
	if cert == nil && !known && m.obtainOnDemand(contextOf(hello), c.name) {
		cert, known = c.firstValid(m.matching(c.name)), true
	}
	if cert == nil && !known && set.refuse {
		return nil, nil
	}
	if cert == nil {
		cert = c.fallback(set, m)
	}
	if cert == nil {
		return nil, errNone
	}
	return cert, nil
}

// contextOf returns the context of the handshake. A hello without a handshake has
// none.
func contextOf(hello *tls.ClientHelloInfo) context.Context {
	if ctx := hello.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

// A selection is the search for one client.
type selection struct {
	name    string // in lower case; "": none, or longer than the DNS allows
	hello   tls.ClientHelloInfo
	now     time.Time
	expired *tls.Certificate // the first that would match
}

func newSelection(hello *tls.ClientHelloInfo) *selection {
	c := &selection{name: strings.ToLower(hello.ServerName), hello: *hello, now: time.Now()}
	c.hello.ServerName = "" // the name is matched here, not by SupportsCertificate
	if len(c.name) > maxName {
		c.name = "" // certmagic needs quadratic time: seconds for 60,000 octets
	}
	return c
}

// firstValid returns the first certificate that the client supports and that has
// not expired.
func (c *selection) firstValid(certs []*tls.Certificate) *tls.Certificate {
	for _, cert := range certs {
		if c.hello.SupportsCertificate(cert) != nil {
			continue
		}
		if c.now.Before(cert.Leaf.NotAfter) {
			return cert
		}
		if c.expired == nil {
			c.expired = cert
		}
	}
	return nil
}

// byName searches for the client's name, and reports whether there is a
// certificate with the name. An expired certificate is better than one with
// another name: the user sees what is wrong.
func (c *selection) byName(s *set, m *manager) (cert *tls.Certificate, known bool) {
	if c.name == "" {
		return nil, false
	}
	exact := s.byName[c.name]
	if cert = c.firstValid(exact); cert != nil {
		return cert, true
	}
	managed := m.matching(c.name)
	if cert = c.firstValid(managed); cert != nil {
		return cert, true
	}
	_, parent, _ := strings.Cut(c.name, ".")
	wildcard := s.byName["*."+parent]
	if cert = c.firstValid(wildcard); cert != nil {
		return cert, true
	}
	return c.expired, len(exact)+len(managed)+len(wildcard) > 0
}

// fallback returns the default certificate that the client supports, or nil if
// there is none at all.
func (c *selection) fallback(s *set, m *manager) *tls.Certificate {
	all := s.byDefault
	if len(all) == 0 {
		all = m.defaults()
	}
	if cert := c.firstValid(all); cert != nil {
		return cert
	}
	if c.expired != nil {
		return c.expired
	}
	if len(all) > 0 {
		return all[0] // crypto/tls sends the right alert
	}
	return nil
}

// A set is the certificates from files and folders at one time. It does not
// change.
type set struct {
	certs     []servedCert
	byName    map[string][]*tls.Certificate
	byDefault []*tls.Certificate // the first pair's, then those of the other pairs
	refuse    bool               // refuse unknown names
	findings  []Finding          // of files that were not loaded, and of folders
	config    Config
}

// A servedCert is a certificate with its place.
type servedCert struct {
	*tls.Certificate
	source, origin, path string
	faults               []fault // but for those of the time of validity
}

// newSet makes the set of certs. If the first is from a pair it is the default,
// else one with the preferred name.
func newSet(certs []servedCert, preferred string) *set {
	s := &set{certs: certs, byName: make(map[string][]*tls.Certificate, len(certs))}
	for _, c := range certs {
		for _, name := range names(c.Leaf) {
			s.byName[name] = append(s.byName[name], c.Certificate)
		}
	}
	for _, same := range s.byName {
		// All clients support RSA, so it would always be chosen if it came first.
		slices.SortStableFunc(same, func(a, b *tls.Certificate) int { return cmp.Compare(keyRank(a), keyRank(b)) })
	}
	if len(certs) == 0 {
		return s
	}
	if certs[0].source == SourceFolder {
		s.byDefault = slices.Clone(s.byName[preferred])
	}
	if len(s.byDefault) == 0 {
		s.byDefault = slices.Clone(s.byName[names(certs[0].Leaf)[0]])
	}
	for _, c := range certs {
		if c.source != SourceFolder {
			s.byDefault = append(s.byDefault, c.Certificate)
		}
	}
	return s
}
