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

// The values of ACME.Challenge: how the CA validates a name.
const (
	HTTP01    = "http-01"     // by HTTP, at port 80
	TLSALPN01 = "tls-alpn-01" // by TLS, at port 443 (RFC 8737)
	DNS01     = "dns-01"      // by a record in the DNS
)

// ACME says how certificates are obtained from a CA.
type ACME struct {
	Directory string   // the CA's URL; "": Let's Encrypt
	CA        string   // PEM file with the roots for the directory's certificate; "": the system's
	Email     string   // of the account
	EAB       *EAB     // nil: the CA needs none
	Profile   string   // of certificates, as the CA defines it; "": the CA's default
	Names     []string // in lower case; obtained at once, one certificate each. Wildcards need DNS01
	RSA       bool     // keys are RSA, which every client supports, and not ECDSA
	Storage   string   // a folder used by nothing else

	Challenge string
	// Address is where HTTP01 and TLSALPN01 requests arrive, after all forwarding.
	// If a server listens there it must answer them; else Postern listens while a
	// challenge is open. "": the challenge's port.
	Address string
	DNS     DNS // of DNS01

	OnDemand *OnDemand // nil: no certificates on demand

	Resolver *net.Resolver // for the addresses of names on demand; nil: net.DefaultResolver

	Every time.Duration // interval of the search for certificates to renew; 0: 10 minutes
}

// EAB is an External Account Binding: RFC 8555 section 7.3.4.
type EAB struct {
	KeyID  string
	MACKey string // a file with the key in base64url
}

// A manager obtains and renews certificates by ACME. A nil one has none.
type manager struct {
	config          ACME
	log             *slog.Logger
	observer        proxy.Observer
	cache           *certmagic.Cache
	magic           *certmagic.Config
	challengeConfig *certmagic.Config // as magic, without a log line for each unknown client
	issuer          *certmagic.ACMEIssuer
	onDemand        *onDemand
	stopClaimed     atomic.Bool // one caller stops the cache
	started         sync.Map    // time.Time by name of the certificate that is being obtained

	judged struct {
		sync.Mutex
		at time.Time
		onDemandJudgement
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
	if m.onDemand, err = newOnDemand(m.config.OnDemand); err != nil {
		return nil, err
	}
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.magic, nil },
		RenewCheckInterval: m.config.Every,
		Logger:             logger,
	})
	config := certmagic.Config{
		Storage: &certmagic.FileStorage{Path: m.config.Storage}, Logger: logger, OnEvent: m.onEvent,
		KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
	}
	if m.config.RSA {
		config.KeySource = certmagic.StandardKeyGenerator{KeyType: certmagic.RSA2048}
	}
	m.magic = certmagic.New(m.cache, config)
	m.issuer = certmagic.NewACMEIssuer(m.magic, template)
	m.magic.Issuers = []certmagic.Issuer{m.issuer}
	config.Logger, config.OnEvent, config.Issuers = newZap(slog.New(slog.DiscardHandler)), nil, m.magic.Issuers
	m.challengeConfig = certmagic.New(m.cache, config)
	return m, nil
}

// template returns the configuration of the issuer.
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

// loadNamed loads stored certificates for the names in the configuration.
func (m *manager) loadNamed() error {
	for _, name := range m.config.Names {
		_, err := m.magic.CacheManagedCertificate(context.Background(), name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("load certificate of %s: %w", name, err)
		}
	}
	return nil
}

// run obtains and renews certificates until ctx ends. Afterwards the manager only
// returns what it has loaded.
func (m *manager) run(ctx context.Context) {
	defer m.cache.Stop()
	if err := m.recovered(func() error { return m.magic.ManageAsync(ctx, m.config.Names) }); err != nil {
		m.log.Warn("certificates are not managed", "err", err)
	}
	m.runOnDemand(ctx)
}

// onEvent handles certmagic's events. An error prevents what certmagic is about
// to do.
func (m *manager) onEvent(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	switch event {
	case "cert_obtaining":
		if renewal && !slices.Contains(m.config.Names, name) {
			if err := m.stillAllowed(ctx, name); err != nil {
				return err
			}
		}
		m.started.Store(name, time.Now())
	case "cert_obtained":
		m.log.Info("certificate obtained", "name", name, "renewal", renewal)
		m.observer.Observe(proxy.CertificateObtained{Name: name, Renewal: renewal, Duration: m.duration(name)})
	case "cert_failed":
		err, _ := data["error"].(error)
		m.log.Warn("certificate not obtained", "name", name, "renewal", renewal, "err", err)
		m.observer.Observe(proxy.CertificateFailed{Name: name, Renewal: renewal, Duration: m.duration(name), Err: err})
	}
	return nil
}

// duration returns for how long the certificate for name was being obtained.
func (m *manager) duration(name string) time.Duration {
	if begun, ok := m.started.LoadAndDelete(name); ok {
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

// defaults returns the certificates for the first configured name that has one.
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

// challengeCertificate returns the certificate of an open TLS-ALPN-01 challenge.
func (m *manager) challengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if m == nil || !isHostname(hello.ServerName) {
		return nil, errors.New("no question of a CA is open")
	}
	return m.challengeConfig.GetCertificateWithContext(contextOf(hello), hello)
}

// ChallengeHandler serves HTTP-01 challenges, and nothing else. A web server that
// forwards to it must keep the Host header.
func (s *Store) ChallengeHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m := s.acme.Load(); m == nil || !m.issuer.HandleHTTPChallenge(w, r) {
			http.NotFound(w, r)
		}
	})
}

// Renew obtains a new certificate for a name that ACME manages, whether or not
// the present one is near its end.
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
	// Load the new one first, so that there is always one.
	if _, err := m.magic.CacheManagedCertificate(ctx, name); err != nil {
		return fmt.Errorf("load renewed certificate: %w", err)
	}
	m.cache.Remove(old)
	return nil
}

// expiry adds the names in the configuration, and one Validity for the names on
// demand.
func (m *manager) expiry(now time.Time, add func(Validity)) {
	if m == nil {
		return
	}
	for _, name := range m.config.Names {
		for _, cert := range m.matching(name) {
			if slices.Contains(names(cert.Leaf), name) {
				add(validity(name, SourceACME, cert.Leaf, nil, now))
			}
		}
	}
	if v := m.judgeOnDemand().least; v.Name != "" {
		add(v)
	}
}

// An onDemandJudgement is about all certificates on demand.
type onDemandJudgement struct {
	least    Validity // of the certificate with the least of its lifetime left; zero: there is none
	findings []Finding
}

// judgeOnDemand judges the certificates on demand. The judgement is cached, because there
// may be many names and metrics are scraped every few seconds.
func (m *manager) judgeOnDemand() onDemandJudgement {
	const while = 30 * time.Second
	now := time.Now()
	m.judged.Lock()
	defer m.judged.Unlock()
	if now.Sub(m.judged.at) < while {
		return m.judged.onDemandJudgement
	}
	var j onDemandJudgement
	for _, name := range m.onDemand.names() {
		for _, cert := range m.matching(name) {
			if v := validity(AllNames, SourceOnDemand, cert.Leaf, nil, now); j.least.Name == "" || v.Left(now) < j.least.Left(now) {
				j.least = v
			}
		}
		j.findings = append(j.findings, m.judgeName(name, SourceOnDemand, now)...)
	}
	m.judged.at, m.judged.onDemandJudgement = now, j
	return j
}
