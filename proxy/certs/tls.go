package certs

import (
	"crypto/tls"

	"postern/proxy"
)

// TLS returns the configuration of one listener for protocol. Each listener needs
// its own: the session ticket keys, which crypto/tls rotates every day, belong to
// one configuration, so a session is not resumed under another profile.
func (s *Store) TLS(protocol string, profile proxy.Profile) *tls.Config {
	return proxy.InstrumentTLS(&tls.Config{
		GetCertificate: s.GetCertificate,
		MinVersion:     profile.MinVersion(),
		CipherSuites:   profile.CipherSuites(),
		// A client that offers only other protocols is a browser that was redirected
		// here by an attacker (ALPACA): crypto/tls refuses it. Most mail clients offer
		// no protocol.
		NextProtos:                  append(alpn(protocol), proxy.ACMETLS),
		DynamicRecordSizingDisabled: true, // saves 4 to 10 % of the work when streaming
	})
}

// alpn returns the protocol's ALPN names, as registered for IMAP, POP3 and ManageSieve.
// Submission has none; these do no harm.
func alpn(protocol string) []string {
	switch protocol {
	case proxy.Submission:
		return []string{"smtp", "submission"}
	case proxy.Sieve:
		return []string{"managesieve"}
	}
	return []string{protocol}
}
