package configs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// TLS is what all listeners show to clients.
type TLS struct {
	Certificates []Certificate `yaml:"certificates"` // the first is the default
	ACME         *ACME         `yaml:"acme"`         // certificates that Postern gets and renews; nil: none
	UnknownName  string        `yaml:"unknown_name"` // clients without a name that we know: default or refuse
	Profile      string        `yaml:"profile"`      // how old clients' TLS may be: a proxy.Profile's name
}

// A Certificate is a pair of PEM files, or a folder of pairs. Paths are relative
// to the folder of the configuration file.
type Certificate struct {
	Cert string `yaml:"cert"` // the chain, leaf first
	Key  string `yaml:"key"`
	Dir  string `yaml:"dir"` // in place of both: NAME/fullchain.pem and NAME/privkey.pem
}

// ACME is how Postern gets certificates (RFC 8555).
type ACME struct {
	Email     string   `yaml:"email"`     // of the account
	Directory string   `yaml:"directory"` // the CA's URL; "": Let's Encrypt
	CA        string   `yaml:"ca"`        // PEM file: who vouches for the directory; "": the system's CAs
	EAB       *EAB     `yaml:"eab"`       // nil: the CA wants none
	Profile   string   `yaml:"profile"`   // of certificates; "": the CA's default
	Names     []string `yaml:"names"`     // a certificate each
	Key       string   `yaml:"key"`       // of certificates: ecdsa (default) or rsa
	Storage   string   `yaml:"storage"`   // a directory; default: certs in State.Path

	Challenge   string `yaml:"challenge"`    // http-01 (default), tls-alpn-01 or dns-01
	HTTPAddress string `yaml:"http_address"` // where the questions of http-01 come in; default: :80
	ALPNAddress string `yaml:"alpn_address"` // where those of tls-alpn-01 come in; default: :443
	DNS         *DNS   `yaml:"dns"`          // the server of dns-01

	OnDemand *OnDemand `yaml:"on_demand"` // names that clients ask for; nil: none
}

// EAB is the account at the CA's that the ACME account belongs to.
type EAB struct {
	KeyID      string `yaml:"key_id"`
	MACKeyFile string `yaml:"mac_key_file"`
}

// DNS is a server that takes records by RFC 2136.
type DNS struct {
	Server    string        `yaml:"server"`    // "host:port"
	KeyFile   string        `yaml:"key_file"`  // as tsig-keygen writes it, or the secret in base64
	KeyName   string        `yaml:"key_name"`  // of a key_file without one
	Algorithm string        `yaml:"algorithm"` // of a key_file without one; default: hmac-sha256
	Delay     time.Duration `yaml:"delay"`     // until the zone's other servers know; default: 10s
}

// OnDemand is for which names a certificate is got at their first ClientHello.
type OnDemand struct {
	NamesFile string       `yaml:"names_file"` // a name or *.name a line; read again when it changes
	Prefixes  []string     `yaml:"prefixes"`   // labels that may stand before them
	Ask       string       `yaml:"ask"`        // a URL that is asked with ?domain=
	PerHour   int          `yaml:"per_hour"`   // certificates at most; default: 60
	Addresses []netip.Addr `yaml:"addresses"`  // ours: names whose DNS has others get nothing; none: nobody looks
}

func (c *Config) fillInTLS() {
	t := &c.TLS
	for i := range t.Certificates {
		pair := &t.Certificates[i]
		pair.Cert, pair.Key, pair.Dir = c.resolvePath(pair.Cert), c.resolvePath(pair.Key), c.resolvePath(pair.Dir)
	}
	a := t.ACME
	if a == nil {
		return
	}
	a.CA, a.Key, a.Challenge = c.resolvePath(a.CA), cmp.Or(a.Key, "ecdsa"), cmp.Or(a.Challenge, "http-01")
	a.Storage = c.resolvePath(a.Storage)
	if a.Storage == "" && c.State.Path != "" {
		a.Storage = filepath.Join(c.State.Path, "certs")
	}
	switch a.Challenge {
	case "http-01":
		a.HTTPAddress = cmp.Or(a.HTTPAddress, ":80")
	case "tls-alpn-01":
		a.ALPNAddress = cmp.Or(a.ALPNAddress, ":443")
	}
	for i, name := range a.Names {
		a.Names[i] = strings.ToLower(name)
	}
	if a.EAB != nil {
		a.EAB.MACKeyFile = c.resolvePath(a.EAB.MACKeyFile)
	}
	if d := a.DNS; d != nil {
		d.KeyFile, d.Algorithm = c.resolvePath(d.KeyFile), cmp.Or(d.Algorithm, "hmac-sha256")
		if !c.IsSet("tls.acme.dns.delay") {
			d.Delay = 10 * time.Second
		}
	}
	if d := a.OnDemand; d != nil {
		d.NamesFile = c.resolvePath(d.NamesFile)
		if !c.IsSet("tls.acme.on_demand.per_hour") {
			d.PerHour = 60
		}
	}
}

func (m *mistakes) checkTLS() {
	t := m.cfg.TLS
	m.checkWord("tls.profile", t.Profile, "a profile", proxy.Profiles()...)
	m.checkWord("tls.unknown_name", t.UnknownName, "a way with unknown names", "default", "refuse")
	for i, l := range m.cfg.Listeners {
		if key := fmt.Sprintf("listeners[%d].tls_profile", i); m.cfg.IsSet(key) {
			m.checkWord(key, l.TLSProfile, "a profile", proxy.Profiles()...)
			if l.TLS == "refuse" {
				m.report(key, "has no meaning with tls: refuse; remove it")
			}
		}
	}
	needed := func(l Listener) bool { return l.TLS != "refuse" }
	if len(t.Certificates) == 0 && t.ACME == nil && (len(m.cfg.Listeners) == 0 || slices.ContainsFunc(m.cfg.Listeners, needed)) {
		m.report("tls.certificates", "none; the listeners need one, such as - {cert: /etc/postern/tls/mail.pem, key: /etc/postern/tls/mail.key}")
	}
	for i, cert := range t.Certificates {
		m.checkCertificate(fmt.Sprintf("tls.certificates[%d]", i), cert)
	}
	if t.ACME != nil {
		m.checkACME("tls.acme", t.ACME)
	}
}

func (m *mistakes) checkCertificate(key string, c Certificate) {
	if c.Dir != "" {
		if c.Cert != "" || c.Key != "" {
			m.report(key+".dir", "stands beside cert or key; write an entry for each")
		}
		return
	}
	if c.Cert == "" {
		m.report(key+".cert", "missing; write the path of the certificate chain in PEM form")
	}
	if c.Key == "" {
		m.report(key+".key", "missing; write the path of the certificate's private key in PEM form")
	}
}

func (m *mistakes) checkACME(key string, a *ACME) {
	if name, domain, _ := strings.Cut(a.Email, "@"); name == "" || !isHostname(domain) {
		m.report(key+".email", "%s is not an e-mail address; the CA wants to know whom to tell", quote(a.Email))
	}
	if u, err := url.Parse(a.Directory); a.Directory != "" && (err != nil || u.Host == "" || u.Scheme != "https") {
		m.report(key+".directory", "%s is not an https URL; leave it out for Let's Encrypt", quote(a.Directory))
	}
	m.checkWord(key+".key", a.Key, "a kind of key", "ecdsa", "rsa")
	if a.Storage == "" {
		m.report(key+".storage", "missing; write a directory, here or as state.path, or all certificates are got anew at each start")
	}
	if len(a.Names) == 0 && a.OnDemand == nil && !m.isUnreadable(key+".names") && !m.isUnreadable(key+".on_demand") {
		m.report(key, "has neither names nor on_demand; give it at least one")
	}
	m.checkNames(key+".names", a)
	m.checkChallenge(key, a)
	if e := a.EAB; e != nil {
		if e.KeyID == "" {
			m.report(key+".eab.key_id", "missing; the CA gives it beside the key")
		}
		if e.MACKeyFile == "" {
			m.report(key+".eab.mac_key_file", "missing; write the path of a file with the CA's MAC key in base64url")
		}
	}
	if a.OnDemand != nil {
		m.checkOnDemand(key+".on_demand", a.OnDemand)
	}
}

func (m *mistakes) checkNames(key string, a *ACME) {
	for i, name := range a.Names {
		k := fmt.Sprintf("%s[%d]", key, i)
		parent, wildcard := strings.CutPrefix(name, "*.")
		switch {
		case !isDomain(parent):
			m.report(k, "%s is not a name that a CA could know, such as mail.example.org", quote(name))
		case wildcard && a.Challenge != "dns-01":
			m.report(k, "%s is a wildcard, which CAs give by challenge: dns-01 only", quote(name))
		case slices.Contains(a.Names[:i], name):
			m.report(k, "%s is in the list already", quote(name))
		}
	}
}

// isDomain reports whether s can be in a CA's certificate.
func isDomain(s string) bool {
	return isHostname(s) && strings.Contains(s, ".") && !strings.Contains(s, "_")
}

func (m *mistakes) checkChallenge(key string, a *ACME) {
	m.checkWord(key+".challenge", a.Challenge, "a challenge", "http-01", "tls-alpn-01", "dns-01")
	for challenge, k := range map[string]string{"http-01": ".http_address", "tls-alpn-01": ".alpn_address", "dns-01": ".dns"} {
		if a.Challenge != challenge && m.cfg.IsSet(key+k) {
			m.report(key+k, "belongs to challenge: %s; remove it, as the challenge is %s", challenge, a.Challenge)
		}
	}
	if a.ALPNAddress != "" {
		m.checkPort(key+".alpn_address", a.ALPNAddress, ports{}) // a listener may have it
	}
	if a.Challenge != "dns-01" {
		return
	}
	if a.DNS == nil {
		if !m.isUnreadable(key + ".dns") {
			m.report(key+".dns", `missing; dns-01 needs {server: "10.0.0.53:53", key_file: /etc/postern/tls/dns.key}`)
		}
		return
	}
	m.checkServerAddress(key+".dns.server", a.DNS.Server)
	if a.DNS.KeyFile == "" {
		m.report(key+".dns.key_file", "missing; write the path of the key (TSIG) that the server asks for")
	}
	m.checkDuration(key+".dns.delay", a.DNS.Delay, 0, "")
}

func (m *mistakes) checkOnDemand(key string, d *OnDemand) {
	if d.NamesFile == "" && d.Ask == "" && !m.isUnreadable(key+".names_file") && !m.isUnreadable(key+".ask") {
		m.report(key, "allows nothing; write names_file or ask, or anybody could have certificates in any name")
	}
	if u, err := url.Parse(d.Ask); d.Ask != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		m.report(key+".ask", "%s is not a URL such as http://127.0.0.1:8082/allowed", quote(d.Ask))
	}
	if len(d.Prefixes) > 0 && d.NamesFile == "" {
		m.report(key+".prefixes", "belong to names_file; remove them")
	}
	for i, prefix := range d.Prefixes {
		if !isHostname(prefix) || strings.Contains(prefix, ".") {
			m.report(fmt.Sprintf("%s.prefixes[%d]", key, i), "%s is not a label; write mail or imap, without a dot", quote(prefix))
		}
	}
	m.checkNumber(key+".per_hour", d.PerHour, 10_000)
}

// checkTLSFiles judges the files that certificates come from, or need.
func (m *mistakes) checkTLSFiles() {
	for i, c := range m.cfg.TLS.Certificates {
		key := fmt.Sprintf("tls.certificates[%d]", i)
		if c.Dir == "" {
			m.checkPair(key, c)
		} else if _, err := os.ReadDir(c.Dir); errors.Is(err, fs.ErrNotExist) {
			m.report(key+".dir", "the folder %s does not exist: make it, or write the path of yours", c.Dir)
		} else if err != nil {
			m.report(key+".dir", "%s", Unreadable(c.Dir, err))
		}
	}
	a := m.cfg.TLS.ACME
	if a == nil {
		return
	}
	m.certificates("tls.acme.ca", a.CA)
	if a.EAB != nil {
		m.read("tls.acme.eab.mac_key_file", a.EAB.MACKeyFile)
	}
	if a.DNS != nil {
		m.read("tls.acme.dns.key_file", a.DNS.KeyFile)
	}
	if d := a.OnDemand; d != nil && d.NamesFile != "" {
		if f, err := os.Open(d.NamesFile); err != nil { // it may be large
			m.report("tls.acme.on_demand.names_file", "%s", Unreadable(d.NamesFile, err))
		} else {
			_ = f.Close()
		}
	}
}
