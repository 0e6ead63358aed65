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

// backends are what stands behind, by the names in the configuration.
type backends struct{ imap, submission map[string]*backend.Pool }

func (h *generation) newBackends() (backends, error) {
	b := backends{map[string]*backend.Pool{}, map[string]*backend.Pool{}}
	var mistakes configs.Errors
	for _, name := range slices.Sorted(maps.Keys(h.cfg.Backends)) {
		c := h.cfg.Backends[name]
		for _, part := range []struct {
			server   *configs.Server
			protocol string
			pools    map[string]*backend.Pool
		}{{c.IMAP, proxy.IMAP, b.imap}, {c.Submission, proxy.Submission, b.submission}} {
			if part.server == nil {
				continue
			}
			roots, err := ReadCA(part.server.CA)
			if err != nil {
				mistakes = append(mistakes, h.cfg.Errorf(fmt.Sprintf("backends.%s.%s.ca", name, part.protocol), "%v", err))
				continue
			}
			key := h.poolKey(name, part.protocol, roots)
			pool := h.pool(key)
			if pool == nil {
				pool = h.newPool(name, part.protocol, part.server, roots)
				if imap := b.imap[name]; imap != nil && part.protocol == proxy.Submission {
					for _, s := range pool.Members {
						s.Verify = backend.Verify(imap)
					}
				}
			}
			part.pools[name] = pool
			h.pools[key] = pool
			h.background = append(h.background, func(ctx context.Context) { pool.Watch(ctx, probeEvery) })
		}
	}
	if mistakes != nil {
		return b, mistakes
	}
	return b, nil
}

func (h *generation) poolKey(name, protocol string, roots []byte) poolKey {
	c := h.cfg.Backends[name]
	made := fmt.Sprintf("%x %+v %+v %v %v", sha256.Sum256(roots), c.IMAP, c.Submission, h.cfg.Hostname, h.cfg.Timeouts)
	return poolKey{name, protocol, made}
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

func (h *generation) newPool(name, protocol string, c *configs.Server, roots []byte) *backend.Pool {
	pool := &backend.Pool{
		Name: name, Protocol: protocol, Balance: balances[c.Balance], MaxConnections: c.MaxConnections,
		RetryTime: h.cfg.Timeouts.Backend, Observer: h.observer, CheckResources: listen.CheckDescriptors,
	}
	identified := func(ok bool) { h.observer.Observe(proxy.Identified{Backend: name, Protocol: protocol, OK: ok}) }
	kind, _ := backend.ParseKind(c.Kind) // configs knows the words
	for _, address := range c.All() {
		pool.Members = append(pool.Members, &backend.Server{
			Name: name, Protocol: protocol, Address: address, TLS: modes[c.TLS], Config: ClientTLS(address, c.ServerName, roots),
			DialTimeout: h.cfg.Timeouts.Dial, ReplyTimeout: h.cfg.Timeouts.Backend,
			Hostname: h.cfg.Hostname, Source: c.Source, Kind: kind, Identity: identities[c.Identity], Identified: identified, Observer: h.observer,
		})
	}
	return pool
}

func ClientTLS(address, serverName string, ca []byte) *tls.Config {
	var roots *x509.CertPool // nil: the system's
	if ca != nil {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
	}
	if serverName == "" {
		serverName, _, _ = net.SplitHostPort(address) // configs has checked it
	}
	return &tls.Config{
		ServerName: serverName, RootCAs: roots, MinVersion: tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
}

// ReadCA returns the file at path, which holds certificates, or nil, the
// system's, if path is "".
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

// pool returns the one of the present house that has the same configuration, or
// nil. What it knows of its servers goes on.
func (s *Service) pool(key poolKey) *backend.Pool {
	if h := s.current.Load(); h != nil {
		return h.pools[key]
	}
	return nil
}
