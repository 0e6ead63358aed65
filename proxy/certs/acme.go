package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"postern/proxy"
)

// The values of ACME.Challenge: how the CA verifies that a name is ours.
const (
	HTTP01    = "http-01"     // by HTTP, at port 80
	TLSALPN01 = "tls-alpn-01" // by TLS, at port 443 (RFC 8737)
	DNS01     = "dns-01"      // by a record in the DNS
)

// ACME says how certificates are got from a CA.
type ACME struct {
	Directory string   // the CA's URL; "": Let's Encrypt
	CA        string   // PEM file of the CAs that may vouch for the directory; "": the system's
	Email     string   // of the account
	EAB       *EAB     // nil: the CA wants none
	Profile   string   // of certificates, one that the CA offers; "": its default
	Names     []string // in lower case; got at once, one certificate each. Wildcards want DNS01
	RSA       bool     // keys are RSA, which all clients know, in place of ECDSA
	Storage   string   // a folder of its own

	Challenge string
	// Address is where the questions of HTTP01 and TLSALPN01 come in, after all
	// forwarding. What listens there already has to answer them; else, while
	// there is a question, Postern listens. "": the challenge's port.
	Address string
	DNS     DNS // of DNS01

	OnDemand *OnDemand // nil: names that clients ask for are not got

	Resolver *net.Resolver // of names that should point here; nil: net.DefaultResolver

	Every time.Duration // between two looks for what has to be renewed; 0: 10 minutes
}

// EAB is an External Account Binding (RFC 8555 section 7.3.4).
type EAB struct {
	KeyID  string
	MACKey string // a file with the key in base64url
}

// A manager gets certificates by ACME, and renews them. A nil one has none.
type manager struct {
	config   ACME
	log      *slog.Logger
	observer proxy.Observer
	cache    *certmagic.Cache
	magic    *certmagic.Config
	answerer *certmagic.Config // the same, without a log line for each stranger
	issuer   *certmagic.ACMEIssuer
	demand   *demand
	claimed  atomic.Bool // by who stops the cache
	begun    sync.Map    // time.Time, by the name that a certificate is being got for

	least struct {
		sync.Mutex
		at time.Time
		Validity
	}
}

// newManager opens the storage of c. The manager must be run, or its cache
// stopped.
func newManager(c ACME, log *slog.Logger, o proxy.Observer) (m *manager, err error) {
	if err := OpenStorage(c.Storage); err != nil {
		return nil, err
	}
	m = &manager{config: c, log: log, observer: o}
	logger := newZap(log)
	template, err := m.template(logger)
	if err != nil {
		return nil, err
	}
	if m.demand, err = newDemand(m.config.OnDemand); err != nil {
		return nil, err
	}
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.magic, nil },
		RenewCheckInterval: m.config.Every,
		Logger:             logger,
	})
	config := certmagic.Config{
		Storage: &certmagic.FileStorage{Path: m.config.Storage}, Logger: logger, OnEvent: m.event,
		KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
	}
	if m.config.RSA {
		config.KeySource = certmagic.StandardKeyGenerator{KeyType: certmagic.RSA2048}
	}
	m.magic = certmagic.New(m.cache, config)
	m.issuer = certmagic.NewACMEIssuer(m.magic, template)
	m.magic.Issuers = []certmagic.Issuer{m.issuer}
	config.Logger, config.OnEvent, config.Issuers = newZap(slog.New(slog.DiscardHandler)), nil, m.magic.Issuers
	m.answerer = certmagic.New(m.cache, config)
	return m, nil
}

// template is what the issuer is made of.
func (m *manager) template(logger *zap.Logger) (t certmagic.ACMEIssuer, err error) {
	c := m.config
	t = certmagic.ACMEIssuer{
		CA: cmp.Or(c.Directory, certmagic.LetsEncryptProductionCA), Email: c.Email, Agreed: true, Profile: c.Profile,
		Logger: logger, DisableHTTPChallenge: c.Challenge != HTTP01, DisableTLSALPNChallenge: c.Challenge != TLSALPN01,
	}
	if c.CA != "" {
		if t.TrustedRoots, err = readRoots(c.CA); err != nil {
			return t, err
		}
	}
	if c.EAB != nil {
		key, err := readSecret(c.EAB.MACKey)
		if err != nil {
			return t, fmt.Errorf("read MAC key of the external account: %w", err)
		}
		t.ExternalAccount = &acme.EAB{KeyID: c.EAB.KeyID, MACKey: key}
	}
	if c.Address != "" {
		host, service, err := net.SplitHostPort(c.Address)
		if err != nil {
			return t, fmt.Errorf("address of challenges: %w", err)
		}
		port, err := strconv.Atoi(service)
		if err != nil {
			return t, fmt.Errorf("address of challenges: %w", err)
		}
		t.ListenHost, t.AltHTTPPort, t.AltTLSALPNPort = host, port, port
	}
	if c.Challenge == DNS01 {
		t.DNS01Solver, err = c.DNS.solver(logger)
	}
	return t, err
}

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read CA of the directory: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA of the directory: %s holds no certificate", path)
	}
	return roots, nil
}

func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// loadNamed loads what the storage has of the names in the configuration.
func (m *manager) loadNamed() error {
	for _, name := range m.config.Names {
		_, err := m.magic.CacheManagedCertificate(context.Background(), name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("load certificate of %s: %w", name, err)
		}
	}
	return nil
}

// run gets what is missing, and renews, until ctx ends. Then the manager is of
// no more use, but for what it has loaded.
func (m *manager) run(ctx context.Context) {
	defer m.cache.Stop()
	if err := m.magic.ManageAsync(ctx, m.config.Names); err != nil {
		m.log.Warn("certificates are not managed", "err", err)
	}
	m.serveDemand(ctx)
}

// event is told what certmagic does. An error stops it from doing so.
func (m *manager) event(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	switch event {
	case "cert_obtaining":
		if renewal && !slices.Contains(m.config.Names, name) {
			if err := m.stillAllowed(ctx, name); err != nil {
				return err
			}
		}
		m.begun.Store(name, time.Now())
	case "cert_obtained":
		m.log.Info("certificate obtained", "name", name, "renewal", renewal)
		m.observer.Observe(proxy.CertificateObtained{Name: name, Renewal: renewal, Duration: m.took(name)})
	case "cert_failed":
		err, _ := data["error"].(error)
		m.log.Warn("certificate not obtained", "name", name, "renewal", renewal, "err", err)
		m.observer.Observe(proxy.CertificateFailed{Name: name, Renewal: renewal, Duration: m.took(name), Err: err})
	}
	return nil
}

// took returns for how long a certificate was being got.
func (m *manager) took(name string) time.Duration {
	if begun, ok := m.begun.LoadAndDelete(name); ok {
		return time.Since(begun.(time.Time))
	}
	return 0
}

// matching returns the certificates for a name, also wildcards.
func (m *manager) matching(name string) []*tls.Certificate {
	if m == nil {
		return nil
	}
	found := m.cache.AllMatchingCertificates(name)
	all := make([]*tls.Certificate, len(found))
	for i := range found {
		all[i] = &found[i].Certificate
	}
	return all
}

// defaults returns those for the first name that has any.
func (m *manager) defaults() []*tls.Certificate {
	if m == nil {
		return nil
	}
	for _, name := range m.config.Names {
		if all := m.matching(name); len(all) > 0 {
			return all
		}
	}
	return nil
}

// answer returns the certificate that answers a question by TLS-ALPN-01.
func (m *manager) answer(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if m == nil || !isHostname(hello.ServerName) {
		return nil, errors.New("no question of a CA is open")
	}
	return m.answerer.GetCertificateWithContext(contextOf(hello), hello)
}

// ChallengeHandler answers questions by HTTP-01, and nothing else. A web server
// that passes them on has to leave their Host as it is.
func (s *Store) ChallengeHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m := s.acme.Load(); m == nil || !m.issuer.HandleHTTPChallenge(w, r) {
			http.NotFound(w, r)
		}
	})
}

// Renew gets a new certificate for a name that ACME manages, whether or not the
// one it has is near its end.
func (s *Store) Renew(ctx context.Context, name string) error {
	m := s.acme.Load()
	if m == nil {
		return errors.New("no certificate here comes by ACME")
	}
	name = strings.ToLower(name)
	var old []string
	for _, cert := range m.cache.AllMatchingCertificates(name) {
		if slices.Contains(cert.Names, name) {
			old = append(old, cert.Hash())
		}
	}
	if len(old) == 0 && !slices.Contains(m.config.Names, name) {
		return fmt.Errorf("%s has no certificate by ACME", name)
	}
	if err := m.magic.RenewCertSync(ctx, name, true); err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	// The new one first, so that there is always one.
	if _, err := m.magic.CacheManagedCertificate(ctx, name); err != nil {
		return fmt.Errorf("load renewed certificate: %w", err)
	}
	m.cache.Remove(old)
	return nil
}

// expiry adds the names in the configuration, and what is on demand as one.
func (m *manager) expiry(add func(Validity)) {
	if m == nil {
		return
	}
	for _, name := range m.config.Names {
		for _, cert := range m.matching(name) {
			if slices.Contains(names(cert.Leaf), name) {
				add(Validity{name, SourceACME, cert.Leaf.NotBefore, cert.Leaf.NotAfter})
			}
		}
	}
	if v := m.leastOnDemand(); v.Name != "" {
		add(v)
	}
}

// leastOnDemand returns the Validity of what was got on demand, the zero one if
// nothing was. It is remembered for a while: there may be many names, and who
// asks comes every few seconds.
func (m *manager) leastOnDemand() (least Validity) {
	const while = 30 * time.Second
	now := time.Now()
	m.least.Lock()
	defer m.least.Unlock()
	if now.Sub(m.least.at) < while {
		return m.least.Validity
	}
	for _, name := range m.demand.names() {
		for _, cert := range m.matching(name) {
			v := Validity{AllNames, SourceOnDemand, cert.Leaf.NotBefore, cert.Leaf.NotAfter}
			if least.Name == "" || v.Left(now) < least.Left(now) {
				least = v
			}
		}
	}
	m.least.at, m.least.Validity = now, least
	return least
}
