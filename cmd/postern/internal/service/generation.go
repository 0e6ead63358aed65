package service

import (
	"cmp"
	"context"
	"crypto/sha256"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/bridge"
	"postern/bridge/shadow"
	"postern/bridge/uidl"
	"postern/configs"
	"postern/metrics"
	"postern/proxy"
	"postern/proxy/authpolicy"
	"postern/proxy/backend"
	"postern/proxy/listen"
	"postern/proxy/password"
	"postern/proxy/route"
	"postern/proxy/token"
)

// A poolKey has the configuration of a pool and of the sessions that use it. A new
// generation keeps the pool with the same key, and so the health of its servers.
type poolKey struct {
	name, protocol string
	roots          [sha256.Size]byte // hash of the CA file; the hash of no octets: the system's CAs
	server, imap   serverKey         // of the protocol, and of IMAP: pools of submission and ManageSieve may verify by the IMAP servers
	hostname       string
	timeouts       configs.Timeouts
	source         *token.Source // nil: the client's own passwords
	accounts       backend.AccountLimit
}

// An accountsKey names a backend and a protocol, whose connections are counted by account.
type accountsKey struct{ backend, protocol string }

// A serverKey is a configs.Server as a comparable value. The zero value stands for nil.
type serverKey struct {
	set                             bool
	address, addresses              string
	tls, ca, serverName             string
	insecure                        bool
	balance, identity               string
	source                          string
	maxConnections                  int
	kind                            string
	stableBodies, sizesAreEstimates bool
}

func newServerKey(c *configs.Server) serverKey {
	if c == nil {
		return serverKey{}
	}
	return serverKey{
		set: true, address: c.Address, addresses: strings.Join(c.Addresses, " "), tls: c.TLS, ca: c.CA, serverName: c.ServerName,
		insecure: c.Insecure, balance: c.Balance, identity: c.Identity, source: joined(c.Source), maxConnections: c.MaxConnections,
		kind: c.Kind, stableBodies: c.StableBodies, sizesAreEstimates: c.SizesAreEstimates,
	}
}

// joined returns addresses as one comparable value.
func joined(addresses []netip.Addr) string {
	var all []string
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}

// compare orders by backend and protocol.
func (k poolKey) compare(other poolKey) int {
	return cmp.Or(cmp.Compare(k.name, other.name), cmp.Compare(k.protocol, other.protocol))
}

// watch runs watch in the background. watch reads a file again when the file has changed.
func (g *generation) watch(watch func(context.Context, time.Duration, *slog.Logger)) {
	g.background = append(g.background, func(ctx context.Context) { watch(ctx, watchEvery, g.log) })
}

const (
	probeEvery = 10 * time.Second // of the backends: their offer and health
	watchEvery = 2 * time.Second  // files: certificates, routes, policy
)

// A generation is made of one configs.Config. Making a generation opens nothing:
// Service.apply opens. Parts with memory belong to the Service.
type generation struct {
	*Service
	cfg        *configs.Config
	listeners  []listenerSpec
	pools      map[poolKey]*backend.Pool
	accounts   map[accountsKey]*backend.Accounts // also of backends that earlier generations had: their sessions may be open
	sources    map[string]*token.Source          // of tokens, by backend
	providers  map[string]provider
	routing    *routing
	bridges    []*bridge.Backend
	noted      []*noted
	pop3       pop3Options
	policy     *authpolicy.Server // nil: none
	passwords  passwordStores
	devices    atomic.Pointer[password.Counts]      // of device passwords, as counted last; nil: not known
	ends       atomic.Pointer[map[string]time.Time] // of what authenticates at the providers; nil: not read yet
	deviceKeys [][]byte                             // of device passwords, from state.key_file; nil: there is none
	record     *http.Server                         // at cluster.serve_record; nil: there is none
	gid        int                                  // the group that may use the control socket; -1: only Postern's user and root
	background []func(context.Context)
	bindings   atomic.Pointer[[]proxy.Binding] // that are served; nil: not served yet
}

// A listenerSpec is a listener that is not open yet.
type listenerSpec struct {
	key       string // in the configuration
	address   string
	proxyFrom []netip.Prefix
	services  []*proxy.Service // they differ by their Networks; the first has none
}

func (l listenerSpec) name() string { return l.services[0].Name }

func newGeneration(cfg *configs.Config, s *Service) *generation {
	return &generation{Service: s, cfg: cfg, pools: make(map[poolKey]*backend.Pool)}
}

// has reports whether the generation has a service with a name.
func (g *generation) has(name string) bool {
	return slices.ContainsFunc(g.cfg.Listeners, func(l configs.Listener) bool { return l.Name == name })
}

// parkAfter returns for how long nothing has moved when a session is parked; 0: none is.
func (g *generation) parkAfter() time.Duration {
	if !g.cfg.Limits.Park {
		return 0
	}
	return proxy.DefaultParkAfter
}

// descriptors returns the file descriptors that limits.max_connections needs, and the
// limit of the process.
func (g *generation) descriptors() (needed, allowed int) {
	allowed, _ = listen.Descriptors()
	return listen.DescriptorsFor(g.cfg.Limits.MaxConnections), allowed
}

// An httpEndpoint answers HTTP at an address of the configuration.
type httpEndpoint struct {
	what         string
	key, address string // address "": the endpoint is off
	handler      func() http.Handler
	allow        func(netip.Addr) bool // reports whether an address may connect; nil: all may
	server       *http.Server          // serves TLS; nil: a server of handler, without TLS
}

// endpoints returns the HTTP endpoints of g, also those that are off.
func (g *generation) endpoints() []httpEndpoint {
	all := []httpEndpoint{
		{"metrics", "metrics.address", g.cfg.Metrics.Address, g.metrics.Handler, g.metrics.Allows, nil},
		{"health", "metrics.ready_address", g.cfg.Metrics.ReadyAddress, g.metrics.HealthHandler, nil, nil},
	}
	challenge := httpEndpoint{what: "challenges", key: "tls.acme.http_address", handler: g.store.ChallengeHandler}
	if acme := g.cfg.TLS.ACME; acme != nil {
		challenge.address = acme.HTTPAddress
	}
	record := httpEndpoint{what: "record", key: "cluster.serve_record", address: g.cfg.Cluster.ServeRecord, server: g.record}
	return append(all, challenge, record)
}

// labels returns the labels in metrics.
func (g *generation) labels() (all metrics.Labels) {
	for _, l := range g.cfg.Listeners {
		all.Listeners = append(all.Listeners, metrics.Listener{Name: l.Name, Protocol: l.Protocol})
	}
	for name, b := range g.cfg.Backends {
		for _, protocol := range proxy.Protocols() {
			if b.Server(protocol) != nil {
				all.Backends = append(all.Backends, metrics.Backend{Name: name, Protocol: protocol})
			}
		}
	}
	all.Providers = slices.Sorted(maps.Keys(g.cfg.Providers))
	return all
}

// pop3Options are the parts of configs.POP3 that all listeners share.
type pop3Options struct {
	uidl    uidl.Format
	delay   *bridge.LoginDelay
	learner learnerOf
	shared  map[string]sharedPOP3 // by backend
}

// sharedPOP3 has the parts that the POP3 listeners of one backend share, also across
// generations.
type sharedPOP3 struct {
	locks *bridge.Locks
	queue *bridge.Queue
	brake *bridge.Brake

	shadow *shadow.Limits
}

// A routing finds the account of a user name, and its backend.
type routing struct {
	accounts *route.Accounts
	rules    route.Rules
	policy   *route.Protocols // nil: everything is allowed
}

// known reports whether a file lists the account, which proves that the account exists.
func (r *routing) known(account string) bool {
	return r.rules.Known(account) || r.policy != nil && r.policy.Known(account)
}

// knownDomain reports whether a route, a file or accounts.default_domain names a domain.
func (r *routing) knownDomain(domain string) bool {
	return strings.EqualFold(domain, r.accounts.Domain) || r.rules.KnownDomain(domain) || r.policy != nil && r.policy.KnownDomain(domain)
}
