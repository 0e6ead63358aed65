package certs

import (
	"crypto/tls"

	"postern/proxy"
)

// TLS returns the configuration of one listener that speaks protocol. Each
// listener needs its own: the keys of session tickets, which crypto/tls
// replaces every day, belong to one configuration, and so a session that began
// under one profile is resumed under no other.
func (s *Store) TLS(protocol string, profile proxy.Profile) *tls.Config {
	return proxy.InstrumentTLS(&tls.Config{
		GetCertificate: s.GetCertificate,
		MinVersion:     profile.MinVersion(),
		CipherSuites:   profile.CipherSuites(),
		// A client that offers none of them, but others, is a browser that
		// was led here by an attacker (ALPACA): crypto/tls refuses it. Most
		// mail clients offer none at all.
		NextProtos:                  append(alpn(protocol), proxy.ACMETLS),
		DynamicRecordSizingDisabled: true, // saves 4 to 10 % of the work when streaming
	})
}

// alpn returns the protocol's names, as registered for IMAP and POP3; there
// are none for submission, and these harm nobody.
func alpn(protocol string) []string {
	if protocol == proxy.Submission {
		return []string{"smtp", "submission"}
	}
	return []string{protocol}
}
