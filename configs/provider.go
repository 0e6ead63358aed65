package configs

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Provider is an application at an authorization server of OAuth, which gives Postern
// tokens for mail servers that take no passwords.
type Provider struct {
	Kind     string `yaml:"kind"`      // microsoft, google or oauth (client credentials of RFC 6749)
	Tenant   string `yaml:"tenant"`    // of microsoft: an id or a name
	TokenURL string `yaml:"token_url"` // of oauth; default of the others: theirs
	Scope    string `yaml:"scope"`     // likewise
	CA       string `yaml:"ca"`        // PEM file with the authority of TokenURL; "": the system's

	ClientID            string       `yaml:"client_id"` // of microsoft and oauth
	ClientSecretFile    string       `yaml:"client_secret_file"`
	ClientSecretExpires string       `yaml:"client_secret_expires"` // a day; a warning comes 30 days before
	Certificate         *Certificate `yaml:"certificate"`           // of microsoft and oauth, instead of a secret
	KeyFile             string       `yaml:"key_file"`              // of google: the key of a service account, in JSON

	Domains []string `yaml:"domains"` // of mailboxes; there is no token for any other
}

// The values of Provider.Kind.
const (
	ProviderMicrosoft = "microsoft"
	ProviderGoogle    = "google"
	ProviderOAuth     = "oauth"
)

// secretExpires returns the day of ClientSecretExpires, and false if there is none.
func (p *Provider) secretExpires() (time.Time, bool) {
	day, err := time.Parse(time.DateOnly, p.ClientSecretExpires)
	return day, err == nil
}

// CredentialEnd returns when what authenticates at the provider ends, and the key of the
// provider that says so: the certificate, whose file is read, or the secret. known is false
// if that is not known, as of keys of Google.
func (p *Provider) CredentialEnd() (end time.Time, key string, known bool) {
	if p.Certificate != nil {
		end, known = certificateEnd(p.Certificate.Cert)
		return end, "certificate.cert", known
	}
	end, known = p.secretExpires()
	return end, "client_secret_expires", known
}

// presets are the servers of a kind of provider, and how many connections of an account
// they allow.
var presets = map[string]struct {
	imap, submission Server
	connections      AccountConnections
}{
	ProviderMicrosoft: {
		Server{Address: "outlook.office365.com:993", Kind: "exchange", Identity: IdentityNone, SizesAreEstimates: true},
		Server{Address: "smtp.office365.com:587", TLS: "starttls", Kind: "exchange", Identity: IdentityNone},
		AccountConnections{Submission: 3},
	},
	ProviderGoogle: {
		Server{Address: "imap.gmail.com:993", Kind: "gmail", Identity: IdentityNone},
		Server{Address: "smtp.gmail.com:465", Kind: "gmail", Identity: IdentityNone},
		AccountConnections{IMAP: 15},
	},
}

func (c *Config) fillInProviders() {
	for name, p := range c.Providers {
		p.CA, p.ClientSecretFile, p.KeyFile = c.resolvePath(p.CA), c.resolvePath(p.ClientSecretFile), c.resolvePath(p.KeyFile)
		if p.Certificate != nil {
			p.Certificate.Cert, p.Certificate.Key = c.resolvePath(p.Certificate.Cert), c.resolvePath(p.Certificate.Key)
		}
		for i := range p.Domains {
			p.Domains[i] = strings.ToLower(p.Domains[i])
		}
		c.Providers[name] = p
	}
	for name, b := range c.Backends {
		if b.Token == "" {
			continue
		}
		b.NamesFile = c.resolvePath(b.NamesFile)
		preset, ok := presets[c.Providers[b.Token].Kind]
		key := joinKey("backends", name)
		if ok && !c.IsSet(key+".imap") && !c.IsSet(key+".submission") {
			b.IMAP, b.Submission = new(Server), new(Server)
		}
		if ok {
			c.preset(key+".imap", b.IMAP, preset.imap)
			c.preset(key+".submission", b.Submission, preset.submission)
			c.presetConnections(key+".account_connections", &b, preset.connections)
		}
		c.Backends[name] = b
	}
}

// preset sets what the file says nothing of.
func (c *Config) preset(key string, s *Server, preset Server) {
	if s == nil {
		return
	}
	s.Identity = cmp.Or(s.Identity, preset.Identity)
	s.Kind = cmp.Or(s.Kind, preset.Kind)
	if !c.IsSet(key + ".sizes_are_estimates") {
		s.SizesAreEstimates = preset.SizesAreEstimates
	}
	if s.Address == "" && s.Addresses == nil {
		s.Address = preset.Address
		s.TLS = cmp.Or(s.TLS, preset.TLS)
	}
}

// presetConnections sets the limits that the file says nothing of.
func (c *Config) presetConnections(key string, b *Backend, preset AccountConnections) {
	if b.IMAP != nil && !c.IsSet(key+".imap") {
		b.AccountConnections.IMAP = preset.IMAP
	}
	if b.Submission != nil && !c.IsSet(key+".submission") {
		b.AccountConnections.Submission = preset.Submission
	}
}

func (m *mistakes) checkProviders() {
	used := map[string]bool{}
	for _, b := range m.cfg.Backends {
		used[b.Token] = true
	}
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Providers)) {
		m.checkProvider(joinKey("providers", name), m.cfg.Providers[name])
		if !used[name] {
			m.report(joinKey("providers", name), "is used by no backend; write token: %s in one, or remove it", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Backends)) {
		m.checkToken(name, m.cfg.Backends[name])
	}
}

func (m *mistakes) checkProvider(key string, p Provider) {
	m.checkWord(key+".kind", p.Kind, "a kind of provider", ProviderMicrosoft, ProviderGoogle, ProviderOAuth)
	if len(p.Domains) == 0 {
		m.report(key+".domains", "missing; write the domains of the mailboxes that may be opened, such as [example.org]")
	}
	for i, domain := range p.Domains {
		if !isHostname(domain) {
			m.report(fmt.Sprintf("%s.domains[%d]", key, i), "%s is not a domain", quote(domain))
		}
	}
	m.checkTokenURL(key+".token_url", p)
	switch p.Kind {
	case ProviderMicrosoft:
		m.checkClient(key, p)
		switch {
		case p.Tenant == "":
			m.report(key+".tenant", "missing; write the tenant's id, or a domain of the tenant such as contoso.onmicrosoft.com")
		case !isHostname(p.Tenant) || p.Tenant == "common" || p.Tenant == "organizations" || p.Tenant == "consumers":
			m.report(key+".tenant", "%s is neither the id nor a domain of one tenant", quote(p.Tenant))
		}
	case ProviderOAuth:
		m.checkClient(key, p)
		if p.Scope == "" {
			m.report(key+".scope", "missing; write the scope that the mail servers want")
		}
	case ProviderGoogle:
		if p.KeyFile == "" {
			m.report(key+".key_file", "missing; write the JSON file with the key of the service account")
		}
		if p.ClientID != "" || p.ClientSecretFile != "" || p.ClientSecretExpires != "" || p.Certificate != nil {
			m.report(key, "client_id, client_secret_file, client_secret_expires and certificate have no meaning for google; remove them")
		}
	}
	if p.Kind != ProviderMicrosoft && p.Tenant != "" {
		m.report(key+".tenant", "belongs to kind: microsoft; remove it")
	}
	if p.Kind != ProviderGoogle && p.KeyFile != "" {
		m.report(key+".key_file", "belongs to kind: google; remove it")
	}
}

// checkClient checks how the application authenticates.
func (m *mistakes) checkClient(key string, p Provider) {
	if p.ClientID == "" {
		m.report(key+".client_id", "missing; write the id of the application")
	}
	switch {
	case p.Certificate == nil && p.ClientSecretFile == "":
		m.report(key, "has neither certificate: {cert: ..., key: ...} nor client_secret_file; one of them is needed")
	case p.Certificate != nil && p.ClientSecretFile != "":
		m.report(key+".client_secret_file", "stands beside certificate; remove one of them")
	case p.Certificate != nil && (p.Certificate.Cert == "" || p.Certificate.Key == "" || p.Certificate.Dir != ""):
		m.report(key+".certificate", "needs cert and key, two PEM files")
	}
	if p.ClientSecretExpires == "" {
		return
	}
	if _, ok := p.secretExpires(); !ok {
		m.report(key+".client_secret_expires", "%s is no day such as 2027-01-31", quote(p.ClientSecretExpires))
	} else if p.Certificate != nil {
		m.report(key+".client_secret_expires", "belongs to client_secret_file; remove it: the certificate has its own end")
	}
}

func (m *mistakes) checkTokenURL(key string, p Provider) {
	if p.TokenURL == "" {
		if p.Kind == ProviderOAuth {
			m.report(key, "missing; write the token endpoint, such as https://login.example.org/token")
		}
		return
	}
	u, err := url.Parse(p.TokenURL)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		m.report(key, "%s is not a URL such as https://login.example.org/token", quote(p.TokenURL))
	case u.User != nil || u.Fragment != "":
		m.report(key, "has a user, a password or a fragment (#) in it; remove them")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		m.report(key, "http would send the application's credentials in the clear to %s; use https", quote(u.Hostname()))
	}
}

// checkToken checks a backend that takes tokens.
func (m *mistakes) checkToken(name string, b Backend) {
	key := joinKey("backends", name)
	if b.Token == "" {
		if b.NamesFile != "" {
			m.report(key+".names_file", "belongs to a backend with token; remove it")
		}
		return
	}
	if _, known := m.cfg.Providers[b.Token]; !known {
		switch near := nearestWord(b.Token, maps.Keys(m.cfg.Providers)); {
		case near != "":
			m.report(key+".token", "%s is not a provider; is %s meant?", quote(b.Token), near)
		default:
			m.report(key+".token", "%s is not a provider; write it below providers", quote(b.Token))
		}
	}
	if !m.cfg.Passwords.Any() && !m.isUnreadable("passwords") {
		m.report(key+".token", "needs passwords that Postern checks, as this backend takes none; write passwords: {devices: true}")
	}
	if b.POP3 != nil {
		m.report(key+".pop3", "an old POP3 server takes passwords, and this backend tokens; write the old server in a backend of its own")
	}
	if m.cfg.POP3.LearnFrom != "" {
		m.report("pop3.learn_from", "the old server wants the client's own password, and %s.token lets Postern check another one; remove one of them", key)
	}
	if m.cfg.POP3.Mode == ModeShadow {
		m.report("pop3.mode", "shadow logs in to two servers with the client's own password, and %s.token lets Postern check another one; write pop3_mode in the routes", key)
	}
	if b.Submission != nil && b.Submission.Identity == IdentityXCLIENTLogin {
		m.report(key+".submission.identity", "xclient-login logs in without a token; use another identity, or none")
	}
	if m.cfg.Providers[b.Token].Kind != ProviderGoogle {
		return
	}
	for i, l := range m.cfg.Listeners {
		if mode := m.cfg.POP3For(l, name).Delete; l.Protocol == "pop3" && l.TLS != "refuse" && (mode == "expunge" || mode == "isolate") {
			m.report(fmt.Sprintf("listeners[%d]", i), "with pop3.delete: %s, Gmail keeps each message that a client deletes in All Mail; write trash, which is the default there, or hide or keep", mode)
			break
		}
	}
}

// checkProviderFiles checks the files that providers name.
func (m *mistakes) checkProviderFiles() {
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Providers)) {
		p, key := m.cfg.Providers[name], joinKey("providers", name)
		m.certificates(key+".ca", p.CA)
		for at, path := range map[string]string{key + ".client_secret_file": p.ClientSecretFile, key + ".key_file": p.KeyFile} {
			_ = m.read(at, path)
			m.checkPrivate(at, path)
		}
		if p.Certificate != nil {
			m.checkPair(key+".certificate", *p.Certificate)
			m.checkPrivate(key+".certificate.key", p.Certificate.Key)
		}
	}
}

// checkPrivate checks that not every user of this machine may read the file at path.
func (m *mistakes) checkPrivate(key, path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&fs.FileMode(0o007) != 0 {
		m.report(key, "every user of this machine may read or write %s (mode %04o): chmod o= %s", path, info.Mode().Perm(), path)
	}
}

// CredentialWarning is how long before its end what authenticates at a provider is a
// warning.
const CredentialWarning = 30 * 24 * time.Hour

// secretID is the form of the id that Entra shows beside a secret's value. No value has it.
var secretID = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// ProviderWarnings returns warnings about what authenticates at a provider: it ends within
// CredentialWarning of now, or cannot be what the provider wants.
func (c *Config) ProviderWarnings(now time.Time) (warnings Errors) {
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		p := c.Providers[name]
		end, key, known := p.CredentialEnd()
		key = joinKey("providers", name) + "." + key
		if secret, err := readFile(p.ClientSecretFile); err == nil && p.Kind == ProviderMicrosoft && secretID.Match(bytes.TrimSpace(secret)) {
			warnings = append(warnings, c.Errorf(joinKey("providers", name)+".client_secret_file", "has the form of a secret's id: Entra wants the secret's value, which is shown once, when the secret is made"))
		}
		switch left := end.Sub(now); {
		case !known || left > CredentialWarning:
		case left <= 0:
			warnings = append(warnings, c.Errorf(key, "has ended on %s: the provider gives no tokens any more", end.Format(time.DateOnly)))
		default:
			warnings = append(warnings, c.Errorf(key, "ends on %s, in %d days: make a new one, and write it here", end.Format(time.DateOnly), int(left/(24*time.Hour))))
		}
	}
	return warnings
}

// certificateEnd returns when the first certificate in a PEM file ends.
func certificateEnd(path string) (time.Time, bool) {
	data, err := readFile(path)
	if err != nil {
		return time.Time{}, false
	}
	block, rest := pem.Decode(data)
	for block != nil && block.Type != "CERTIFICATE" {
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return time.Time{}, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, false
	}
	return cert.NotAfter, true
}
