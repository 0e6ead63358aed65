package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
)

// names returns the names that a certificate is valid for: DNS names, also
// wildcards, and IP addresses; or, in old certificates, the common name.
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

// fillLeaf sets Leaf. A certificate without a name is an error: no ClientHello
// would match it.
func fillLeaf(cert *tls.Certificate) (err error) {
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

func keyRank(c *tls.Certificate) int {
	if c.Leaf.PublicKeyAlgorithm == x509.RSA {
		return 1
	}
	return 0
}
