package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
)

// A Profile is the set of TLS versions and cipher suites that a listener accepts.
// Each Profile accepts everything that the one before it accepts.
type Profile uint8

// The profiles. None has RC4, nor CBC with SHA-256, which crypto/tls does not
// protect against Lucky Thirteen.
const (
	Modern     Profile = iota // TLS 1.2 and 1.3, AEAD, forward secrecy
	Compatible                // adds CBC in TLS 1.2: Windows 7 and 8.1 with an RSA certificate
	Legacy                    // adds TLS 1.0 and 1.1, 3DES, RSA key exchange: scanners, old Outlook
)

var profiles = [...]struct {
	name   string
	oldest uint16 // version of TLS
	suites []uint16
}{
	Modern: {"modern", tls.VersionTLS12, []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}},
	Compatible: {"compatible", tls.VersionTLS12, []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
		tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	}},
	Legacy: {"legacy", tls.VersionTLS10, []uint16{
		tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA,
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA,
		tls.TLS_RSA_WITH_AES_256_CBC_SHA,
		tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA,
	}},
}

// Profiles returns the profiles' names, the strictest first.
func Profiles() []string {
	var names []string
	for _, p := range profiles {
		names = append(names, p.name)
	}
	return names
}

// ParseProfile returns the Profile with a name, and whether there is one.
func ParseProfile(name string) (Profile, bool) {
	i := slices.Index(Profiles(), name)
	return Profile(max(i, 0)), i >= 0
}

// String returns the profile's name.
func (p Profile) String() string { return profiles[p].name }

// MinVersion returns the oldest version of TLS.
func (p Profile) MinVersion() uint16 { return profiles[p].oldest }

// CipherSuites returns the suites for TLS 1.2 and older. The suites of TLS 1.3 are
// not configurable, and all are secure.
func (p Profile) CipherSuites() (all []uint16) {
	for _, q := range profiles[:p+1] {
		all = append(all, q.suites...)
	}
	return all
}

// ProfileOf returns the strictest Profile that accepts the negotiated version and
// suite. crypto/tls negotiates the best that both sides have, so it is also the
// strictest Profile that accepts this client.
func ProfileOf(s *tls.ConnectionState) Profile {
	for p := range Legacy {
		if s.Version >= p.MinVersion() && (s.Version == tls.VersionTLS13 || slices.Contains(p.CipherSuites(), s.CipherSuite)) {
			return p
		}
	}
	return Legacy
}

// accepts reports whether a listener with p and a certificate with a key of that
// kind accepts the client. key 0: no certificate was chosen, and any kind is right.
func (p Profile) accepts(h *tls.ClientHelloInfo, key x509.PublicKeyAlgorithm) bool {
	version := newest(h)
	switch {
	case version < p.MinVersion():
		return false
	case version == tls.VersionTLS13: // crypto/tls does not fall back to an older version
		return slices.ContainsFunc(h.CipherSuites, isTLS13) && slices.ContainsFunc(h.SupportedCurves, supported)
	}
	return slices.ContainsFunc(p.CipherSuites(), func(id uint16) bool {
		return slices.Contains(h.CipherSuites, id) && usable(tls.CipherSuiteName(id), version, h.SupportedCurves, key)
	})
}

// usable reports whether a suite fits key, curves and version. The name of a suite
// says which key it is for, whether it needs a curve, and, by its hash, whether it
// exists before TLS 1.2.
func usable(suite string, version uint16, curves []tls.CurveID, key x509.PublicKeyAlgorithm) bool {
	ecdhe, ecdsa := strings.HasPrefix(suite, "TLS_ECDHE_"), strings.Contains(suite, "_ECDSA_")
	switch {
	case key == x509.RSA && ecdsa, key == x509.ECDSA && !ecdsa:
		return false
	case ecdhe && !slices.ContainsFunc(curves, classic):
		return false
	}
	return version == tls.VersionTLS12 || strings.HasSuffix(suite, "_SHA")
}

// isTLS13 reports whether suite is one of TLS 1.3.
func isTLS13(suite uint16) bool {
	return suite >= tls.TLS_AES_128_GCM_SHA256 && suite <= tls.TLS_CHACHA20_POLY1305_SHA256
}

// supported reports whether crypto/tls supports a key exchange.
func supported(c tls.CurveID) bool {
	return classic(c) || c == tls.X25519MLKEM768 || c == tls.SecP256r1MLKEM768 || c == tls.SecP384r1MLKEM1024
}

// classic reports whether crypto/tls supports a curve in TLS 1.2.
func classic(c tls.CurveID) bool {
	return c == tls.X25519 || c == tls.CurveP256 || c == tls.CurveP384 || c == tls.CurveP521
}

// newest returns the newest version that the client offers and crypto/tls
// supports, or 0.
func newest(h *tls.ClientHelloInfo) (version uint16) {
	for _, v := range h.SupportedVersions {
		if v <= tls.VersionTLS13 { // higher values are GREASE, RFC 8701
			version = max(version, v)
		}
	}
	return version
}
