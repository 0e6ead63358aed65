package service

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/listen"
)

// backends are the pools, by the names of the configuration.
type backends struct{ imap, pop3, submission, sieve map[string]*backend.Pool }

// newBackends makes the pools of all backends. The error has a mistake for each
// file of a CA that cannot be read.
func (g *generation) newBackends() (backends, error) {
	g.accounts = map[accountsKey]*backend.Accounts{}
	if before := g.current.Load(); before != nil {
		maps.Copy(g.accounts, before.accounts)
	}
	b := backends{map[string]*backend.Pool{}, map[string]*backend.Pool{}, map[string]*backend.Pool{}, map[string]*backend.Pool{}}
	var mistakes configs.Errors
	add := func(name, protocol string, server *configs.Server, pools map[string]*backend.Pool) {
		if server == nil {
			return
		}
		roots, err := ReadCA(server.CA)
		if err != nil {
			mistakes = append(mistakes, g.cfg.Errorf(fmt.Sprintf("backends.%s.%s.ca", name, protocol), "%v", err))
			return
		}
		pools[name] = g.addPool(name, protocol, server, roots, b.imap[name])
	}
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Backends)) {
		c := g.cfg.Backends[name]
		add(name, proxy.IMAP, c.IMAP, b.imap)
		add(name, proxy.POP3, c.POP3, b.pop3)
		add(name, proxy.Submission, c.Submission, b.submission)
		add(name, proxy.Sieve, c.Sieve, b.sieve)
	}
	if mistakes != nil {
		return b, mistakes
	}
	return b, nil
}

// addPool returns the pool of a backend's servers of a protocol: the pool of the current
// generation, if its configuration is the same. imap is the backend's IMAP pool, which may
// verify passwords for a pool of submission or ManageSieve; nil: there is none.
func (g *generation) addPool(name, protocol string, server *configs.Server, roots []byte, imap *backend.Pool) *backend.Pool {
	key := g.poolKey(name, protocol, roots)
	pool := g.pool(key)
	if pool == nil {
		pool = g.newPool(name, protocol, server, roots)
		if imap != nil && (protocol == proxy.Submission || protocol == proxy.Sieve) {
			for _, s := range pool.Members {
				s.Verify = backend.Verify(imap)
			}
		}
	}
	g.pools[key] = pool
	g.background = append(g.background, func(ctx context.Context) { pool.Watch(ctx, probeEvery) })
	return pool
}

func (g *generation) poolKey(name, protocol string, roots []byte) poolKey {
	c := g.cfg.Backends[name]
	return poolKey{
		source: g.source(name),
		name:   name, protocol: protocol, roots: sha256.Sum256(roots), server: newServerKey(c.Server(protocol)), imap: newServerKey(c.IMAP),
		hostname: g.cfg.Hostname, timeouts: g.cfg.Timeouts, accounts: g.accountLimit(name, protocol),
	}
}

// accountLimit returns the limit of an account's connections to a backend. One connection
// to an IMAP server is kept for POP3 clients, which the bridge serves from there, and for
// the IMAP logins that check the passwords of submission.
func (g *generation) accountLimit(name, protocol string) backend.AccountLimit {
	c := g.cfg.Backends[name]
	limit := backend.AccountLimit{Connections: c.AccountConnections.Of(protocol), Wait: c.AccountWait}
	pop3 := slices.ContainsFunc(g.cfg.Listeners, func(l configs.Listener) bool { return l.Protocol == proxy.POP3 && l.TLS != "refuse" })
	verifies := c.Submission != nil && c.Submission.Identity == configs.IdentityXCLIENTLogin
	if protocol == proxy.IMAP && limit.Connections > 1 && (pop3 || verifies) {
		limit.Kept = 1
	}
	return limit
}

// accountsOf returns the count of connections that all generations share.
func (g *generation) accountsOf(name, protocol string) *backend.Accounts {
	key := accountsKey{name, protocol}
	if g.accounts[key] == nil {
		g.accounts[key] = new(backend.Accounts)
	}
	return g.accounts[key]
}

var (
	modes    = map[string]backend.Mode{"implicit": backend.Implicit, "starttls": backend.STARTTLS, "none": backend.None}
	balances = map[string]backend.Balance{"least": backend.Least, "hash": backend.Hash}

	identities = map[string]backend.Identity{
		configs.IdentityNone: backend.Anonymous, configs.IdentityID: backend.ID,
		configs.IdentityXCLIENT: backend.XCLIENT, configs.IdentityXCLIENTLogin: backend.XCLIENTLogin,
		configs.IdentityProxyV1: backend.ProxyV1, configs.IdentityProxyV2: backend.ProxyV2,
	}
)

func (g *generation) newPool(name, protocol string, c *configs.Server, roots []byte) *backend.Pool {
	pool := &backend.Pool{
		Name: name, Protocol: protocol, Balance: balances[c.Balance], MaxConnections: c.MaxConnections,
		RetryTime: g.cfg.Timeouts.Backend, Observer: g.observer, CheckResources: listen.CheckDescriptors,
		Accounts: g.accountsOf(name, protocol), AccountLimit: g.accountLimit(name, protocol),
	}
	identified := func(ok bool) { g.observer.Observe(proxy.Identified{Backend: name, Protocol: protocol, OK: ok}) }
	kind, _ := backend.ParseKind(c.Kind) // configs has checked c.Kind
	for _, address := range c.All() {
		pool.Members = append(pool.Members, &backend.Server{
			Name: name, Protocol: protocol, Address: address, TLS: modes[c.TLS], Config: ClientTLS(address, c.ServerName, roots),
			DialTimeout: g.cfg.Timeouts.Dial, ReplyTimeout: g.cfg.Timeouts.Backend,
			Hostname: g.cfg.Hostname, Source: c.Source, Kind: kind, Identity: identities[c.Identity], Identified: identified, Observer: g.observer,
			Advise: g.adviser(name, protocol, address),
		})
	}
	if source := g.source(name); source != nil {
		for _, s := range pool.Members {
			s.Credentials = source
		}
		pool.Mailbox = func(account string) string { return source.Mailbox(account, protocol) }
	}
	return pool
}

// ClientTLS returns the configuration for a TLS connection to address. serverName
// "" is the host of address; ca is PEM, nil: the system's CAs.
func ClientTLS(address, serverName string, ca []byte) *tls.Config {
	var roots *x509.CertPool // nil: the system's
	if ca != nil {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
	}
	if serverName == "" {
		serverName, _, _ = net.SplitHostPort(address) // configs has checked the address
	}
	return &tls.Config{
		ServerName: serverName, RootCAs: roots, MinVersion: tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
}

// ReadCA returns the content of the file at path, which must have certificates. If path is
// "", ReadCA returns nil, which stands for the system's CAs.
func ReadCA(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pem, nil
}

// pool returns the pool of the current generation with the same key, or nil. So a pool
// keeps the health of its servers across generations.
func (s *Service) pool(key poolKey) *backend.Pool {
	if g := s.current.Load(); g != nil {
		return g.pools[key]
	}
	return nil
}
