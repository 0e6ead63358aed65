package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// errNone is that of a Store whose ACME has not got anything yet.
var errNone = errors.New("no certificate yet")

// GetCertificate chooses for a client, which may have sent no name, or one that
// we do not have: half of the hosters' customers use one. It may wait, but less
// than 8 seconds, for a certificate on demand. Without a certificate and an
// error, crypto/tls says unrecognized_name. A CA that asks by TLS-ALPN-01 gets
// the certificate that answers it.
func (s *Store) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m := s.acme.Load()
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == proxy.ACMETLS {
		return m.answer(hello)
	}
	set := s.current.Load()
	c := newChoice(hello)
	cert, known := c.named(set, m)
	if cert == nil && !known && m.onDemand(contextOf(hello), c.name) {
		cert, known = c.among(m.matching(c.name)), true
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

// contextOf returns the handshake's context. There is none in a hello that no
// handshake has made.
func contextOf(hello *tls.ClientHelloInfo) context.Context {
	if ctx := hello.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

// A choice is the search for one client.
type choice struct {
	name    string // in lower case; "": none that the DNS could have
	hello   tls.ClientHelloInfo
	now     time.Time
	expired *tls.Certificate // the first that would do
}

func newChoice(hello *tls.ClientHelloInfo) *choice {
	c := &choice{name: strings.ToLower(hello.ServerName), hello: *hello, now: time.Now()}
	c.hello.ServerName = "" // the name is our concern: it is in the map, or nothing fits it
	if len(c.name) > mostName {
		c.name = "" // certmagic joins the labels again for each of them: seconds for 60,000 octets
	}
	return c
}

// among returns the first that the client supports and that has not expired.
func (c *choice) among(certs []*tls.Certificate) *tls.Certificate {
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

// named looks for the client's name, and reports whether there is anything of
// that name. A certificate that has expired is better than that of another
// name: the user sees what is wrong.
func (c *choice) named(s *set, m *manager) (cert *tls.Certificate, known bool) {
	if c.name == "" {
		return nil, false
	}
	exact := s.byName[c.name]
	if cert = c.among(exact); cert != nil {
		return cert, true
	}
	managed := m.matching(c.name)
	if cert = c.among(managed); cert != nil {
		return cert, true
	}
	_, parent, _ := strings.Cut(c.name, ".")
	wildcard := s.byName["*."+parent]
	if cert = c.among(wildcard); cert != nil {
		return cert, true
	}
	return c.expired, len(exact)+len(managed)+len(wildcard) > 0
}

// fallback returns the default certificate, as far as the client supports it;
// nil if there is none at all.
func (c *choice) fallback(s *set, m *manager) *tls.Certificate {
	all := s.byDefault
	if len(all) == 0 {
		all = m.defaults()
	}
	if cert := c.among(all); cert != nil {
		return cert
	}
	if c.expired != nil {
		return c.expired
	}
	if len(all) > 0 {
		return all[0] // crypto/tls finds the right alert
	}
	return nil
}

// A set is what is served at one time, but for ACME's. It does not change.
type set struct {
	certs     []served
	byName    map[string][]*tls.Certificate
	byDefault []*tls.Certificate // the first's, then those of the other pairs
	refuse    bool               // unknown names
}

type served struct {
	*tls.Certificate
	source string
}

// newSet makes the set of certs. The first is the default if it is from a pair;
// else one for the name that is preferred.
func newSet(certs []served, preferred string) *set {
	s := &set{certs: certs, byName: make(map[string][]*tls.Certificate, len(certs))}
	for _, c := range certs {
		for _, name := range names(c.Leaf) {
			s.byName[name] = append(s.byName[name], c.Certificate)
		}
	}
	for _, same := range s.byName {
		// All clients know RSA, so it would win wherever it comes first.
		slices.SortStableFunc(same, func(a, b *tls.Certificate) int { return cmp.Compare(rank(a), rank(b)) })
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
