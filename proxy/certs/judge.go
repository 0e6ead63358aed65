package certs

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// A Class is a kind of Finding. Its text is a label of a metric and a word in the log.
type Class string

// The classes.
const (
	Expired         Class = "expired"
	NotYetValid     Class = "not_yet_valid"
	ExpiresSoon     Class = "expires_soon" // less than a quarter of the lifetime and than 14 days are left
	NotBetter       Class = "not_better"   // new files have a certificate that is not valid: the valid one before is served
	Unreadable      Class = "unreadable"   // a file or folder cannot be read, or holds no certificate or key
	KeyMismatch     Class = "key_mismatch" // the key is not that of the certificate
	FolderLayout    Class = "folder_layout"
	NoCertificate   Class = "no_certificate" // there is none at all
	NameNotCovered  Class = "name_not_covered"
	NoSAN           Class = "no_san"
	NotForServers   Class = "not_for_servers" // its extended key usage excludes TLS servers
	ChainIncomplete Class = "chain_incomplete"
	ChainOrder      Class = "chain_order"
	SelfSignedLeaf  Class = "self_signed"
	WeakKey         Class = "weak_key"
	WeakSignature   Class = "weak_signature"
	KeyPermissions  Class = "key_permissions"
)

// words has the words of each class in the state of a certificate.
var words = map[Class]string{
	Expired: "expired", NotYetValid: "not valid yet", ExpiresSoon: "expires soon",
	NotBetter: "not valid", Unreadable: "files not readable", KeyMismatch: "key of another certificate", FolderLayout: "wrong file names",
	NoCertificate: "no certificate", NameNotCovered: "no certificate", NoSAN: "no SAN", NotForServers: "not for servers",
	ChainIncomplete: "issuer not in the file", ChainOrder: "wrong order", SelfSignedLeaf: "self-signed", WeakKey: "weak key",
	WeakSignature: "weak signature", KeyPermissions: "key readable or writable by others",
}

// Words returns the class in words, for people.
func (c Class) Words() string { return words[c] }

// Classes returns all classes, in order.
func Classes() (all []Class) {
	for c := range words {
		all = append(all, c)
	}
	slices.Sort(all)
	return all
}

// A Finding is a fault of a certificate or of its files, or a name without a certificate.
type Finding struct {
	Class  Class      `json:"class"`
	Level  slog.Level `json:"level"`           // Error: the certificate works for no client; Info: it may be intended
	Source string     `json:"source"`          // SourceFile, ...; "": of NameNotCovered and NoCertificate
	Origin string     `json:"-"`               // Pair.Cert of the configured pair, or the configured folder; "": ACME
	Path   string     `json:"path,omitempty"`  // the certificate's file, or the folder
	Names  []string   `json:"names,omitempty"` // of the certificate, or the name without one
	Text   string     `json:"text"`            // what is wrong and what to do; does not change with time

	NotAfter time.Time `json:"not_after,omitzero"` // of the certificate that is served

	notLoaded bool // the pair was not loaded; Names are of the certificate that is served
}

// A fault is a Finding without its place.
type fault struct {
	class Class
	level slog.Level
	text  string
}

const (
	// soon and soonPart say when a certificate expires soon: when less than both is left.
	// ACME, and certbot, renew with a third of the lifetime left.
	soon     = 14 * 24 * time.Hour
	soonPart = 4

	minRSA      = 2048 // bits: shorter keys are refused by most clients
	possibleRSA = 1024 // bits: with shorter keys crypto/tls does not sign
)

// expiresSoon returns the time from which a certificate counts as one that expires soon.
func expiresSoon(leaf *x509.Certificate) time.Time {
	return leaf.NotAfter.Add(-min(soon, leaf.NotAfter.Sub(leaf.NotBefore)/soonPart))
}

// utc writes a time with its zone.
func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// judgeTime judges the time of validity at now. A fault of class "" is none.
func judgeTime(leaf *x509.Certificate, source string, now time.Time) fault {
	managed := source == SourceACME || source == SourceOnDemand
	expired, level := "mail programs refuse it: put the renewed one in its place, Postern reads it by itself", slog.LevelError
	early := "renew it, and look why that did not happen by itself"
	if managed {
		expired = "mail programs refuse it, and the CA has not renewed it: the log has the reason (certificate not obtained)"
		early = "its renewal is overdue: the log has the reason (certificate not obtained)"
	}
	if source == SourceFolder || source == SourceOnDemand {
		level = slog.LevelWarn // one of many
	}
	switch {
	case now.After(leaf.NotAfter):
		return fault{Expired, level, fmt.Sprintf("it expired on %s, and %s", utc(leaf.NotAfter), expired)}
	case now.Before(leaf.NotBefore):
		return fault{NotYetValid, level, fmt.Sprintf("it is not valid before %s, and mail programs refuse it until then: is the clock of this machine right?", utc(leaf.NotBefore))}
	case !now.Before(expiresSoon(leaf)):
		return fault{ExpiresSoon, slog.LevelWarn, fmt.Sprintf("it expires on %s: %s", utc(leaf.NotAfter), early)}
	}
	return fault{}
}

// judge judges all of a certificate that does not depend on the time.
func judge(cert *tls.Certificate) (all []fault) {
	add := func(class Class, level slog.Level, format string, args ...any) {
		all = append(all, fault{class, level, fmt.Sprintf(format, args...)})
	}
	leaf := cert.Leaf
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		add(NoSAN, slog.LevelWarn, "it has its name only as common name (CN): most mail programs want it as subjectAltName (SAN), so get one with that")
	}
	if usage := leaf.ExtKeyUsage; len(usage)+len(leaf.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(usage, x509.ExtKeyUsageServerAuth) && !slices.Contains(usage, x509.ExtKeyUsageAny) {
		add(NotForServers, slog.LevelWarn, "its extended key usage does not include TLS servers (serverAuth): mail programs refuse it, so get one with that")
	}
	judgeKey(leaf, add)
	chain := []*x509.Certificate{leaf}
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			add(ChainOrder, slog.LevelWarn, "certificate %d of the file cannot be read (%v): clients with TLS 1.2 may refuse the chain, so remove it", len(chain)+1, err)
			return all
		}
		chain = append(chain, c)
	}
	for _, c := range chain {
		if !issuedBy(c, c) || c == leaf {
			judgeSignature(c, add)
		}
	}
	judgeChain(chain, add)
	return all
}

type addFault = func(class Class, level slog.Level, format string, args ...any)

func judgeKey(leaf *x509.Certificate, add addFault) {
	switch key := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < possibleRSA {
			add(WeakKey, slog.LevelError, "its RSA key has %d bits, with which no TLS is possible: get one with %d, or ECDSA P-256", bits, minRSA)
		} else if bits < minRSA {
			add(WeakKey, slog.LevelWarn, "its RSA key has %d bits, and many mail programs want %d: get one with that, or ECDSA P-256", bits, minRSA)
		}
	case *ecdsa.PublicKey:
		if bits := key.Params().BitSize; bits < 256 {
			add(WeakKey, slog.LevelError, "its ECDSA key is on %s, with which no TLS is possible: get one on P-256", key.Params().Name)
		}
	}
}

func judgeSignature(c *x509.Certificate, add addFault) {
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		add(WeakSignature, slog.LevelWarn, "the signature of %s is %v, which most mail programs refuse: get one with SHA-256", subject(c), c.SignatureAlgorithm)
	default:
	}
}

// judgeChain judges the order of chain, and whether the leaf's issuer is in it. A root that
// clients have need not be in it: whether an issuer is such a root is not known here.
func judgeChain(chain []*x509.Certificate, add addFault) {
	leaf := chain[0]
	if issuedBy(leaf, leaf) {
		add(SelfSignedLeaf, slog.LevelInfo, "it is self-signed: only mail programs in which it was installed accept it")
		return
	}
	if !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return issuedBy(leaf, c) }) {
		if len(leaf.IssuingCertificateURL) > 0 { // so does a public CA, whose issuers are intermediates
			add(ChainIncomplete, slog.LevelWarn, "the file has no certificate of its issuer, %s: append it (%s), or mail programs refuse the chain",
				issuer(leaf), shorten(leaf.IssuingCertificateURL[0]))
		} else {
			add(ChainIncomplete, slog.LevelInfo, "the file has no certificate of its issuer, %s: append it, unless %[1]s is a root that all clients have", issuer(leaf))
		}
		return
	}
	for i, c := range chain[:len(chain)-1] {
		if !issuedBy(c, chain[i+1]) {
			add(ChainOrder, slog.LevelWarn, "the file has %s after %s, which %s has issued: clients with TLS 1.2 may refuse the chain; "+
				"the order is the certificate, its issuer, the issuer of that", subject(chain[i+1]), subject(c), issuer(c))
			return
		}
	}
}

// issuedBy reports whether by is the issuer of c, by their names and key identifiers.
func issuedBy(c, by *x509.Certificate) bool {
	if string(c.RawIssuer) != string(by.RawSubject) {
		return false
	}
	if len(c.AuthorityKeyId) == 0 || len(by.SubjectKeyId) == 0 {
		return c != by || c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
	}
	return string(c.AuthorityKeyId) == string(by.SubjectKeyId)
}

// subject names a certificate.
func subject(c *x509.Certificate) string {
	return shorten(cmp.Or(c.Subject.CommonName, strings.Join(names(c), " "), c.Subject.String()))
}

// shorten bounds a text that is from a certificate.
func shorten(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// state returns the state of a certificate in words. more are the Findings that do not
// depend on the time.
func state(leaf *x509.Certificate, more []Finding, now time.Time) string {
	var b strings.Builder
	switch {
	case now.After(leaf.NotAfter):
		b.WriteString("EXPIRED")
	case now.Before(leaf.NotBefore):
		b.WriteString("NOT VALID YET")
	case !now.Before(expiresSoon(leaf)):
		b.WriteString("expires in " + span(leaf.NotAfter.Sub(now)))
	default:
		b.WriteString("valid")
	}
	for _, f := range more {
		if f.notLoaded {
			b.WriteString(", new files not loaded: " + words[f.Class])
		} else {
			b.WriteString(", " + words[f.Class])
		}
	}
	return b.String()
}

// span returns a duration in days, hours or minutes.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d < 2*time.Minute:
		return "a minute"
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}

// explainPair returns the class of an error of tls.X509KeyPair, and says whether the key
// belongs to another certificate of the file.
func explainPair(certPEM, keyPEM []byte, err error) (Class, error) {
	chain := certificates(certPEM)
	if block, _ := pem.Decode(keyPEM); len(chain) == 0 || block == nil {
		return Unreadable, err
	}
	for i, der := range chain {
		if i == 0 {
			continue
		}
		one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if _, other := tls.X509KeyPair(one, keyPEM); other == nil {
			return ChainOrder, fmt.Errorf("the key belongs to certificate %d of the file, which must be the first, with its issuer after it", i+1)
		}
	}
	return KeyMismatch, fmt.Errorf("%w: put the certificate and its own key there", err)
}

// certificates returns the first certificates of a PEM file.
func certificates(data []byte) (all [][]byte) {
	const most = 20
	for len(all) < most {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			all = append(all, block.Bytes)
		}
	}
	return all
}

// shortenError returns the text of err, bounded.
func shortenError(err error) string {
	const most = 1000
	s := err.Error()
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
