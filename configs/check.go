package configs

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// check checks the values that could be read.
func (m *mistakes) check() {
	c := m.cfg
	if !isHostname(c.Hostname) {
		m.report("hostname", "%s is not a host name; write one such as mail.example.org", quote(c.Hostname))
	}
	m.checkListeners()
	m.checkTLS()
	m.checkBackends()
	m.checkProviders()
	m.checkRoutes()
	m.checkAccounts()
	m.checkTexts()
	m.checkTimeouts()
	m.checkGuard()
	m.checkWord("pop3.on_unreadable_record", c.POP3.OnUnreadableRecord, "a way out", "refuse", "recompute")
	if c.POP3.Expire != "" {
		m.checkWord("pop3.expire", c.POP3.Expire, "a promise", "never")
	}
	if c.POP3.LoginDelay != 0 {
		m.checkDuration("pop3.login_delay", c.POP3.LoginDelay, time.Second, ", or 0 for none")
	}
	m.checkPOP3()
	m.checkNumber("pop3.first_listings", c.POP3.FirstListings, 1000)
	m.checkWord("submission.bare_newlines", c.Submission.BareNewlines, "a way with them", "normalize", "reject", "pass")
	m.checkControl()
	if c.State.KeyFile != "" && c.State.Path == "" {
		m.report("state.key_file", "has no meaning without state.path, where what the key is for would be kept; set state.path, or remove the key")
	}
	m.checkWord("log.format", c.Log.Format, "a log format", "auto", "text", "json", "journald")
	m.checkPrivacy()
	m.checkPasswords()
}

func (m *mistakes) checkListeners() {
	c := m.cfg
	if len(c.Listeners) == 0 {
		m.report("listeners", `none; at least one is needed, such as - {protocol: imap, address: ":993"}`)
	}
	names, ports := map[string]string{}, ports{}
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listeners[%d]", i)
		m.checkWord(key+".protocol", l.Protocol, "a protocol", proxy.Protocols()...)
		if l.Networks == nil {
			m.checkPort(key+".address", l.Address, ports)
		} else {
			m.checkNetworks(i)
		}
		m.checkWord(key+".tls", l.TLS, "a way to TLS", "implicit", "starttls", "refuse")
		m.checkListenerGuard(key+".guard", l.Guard)
		if l.Name == "" {
			continue // a mistake in the protocol, reported above
		}
		if !isName(l.Name) {
			m.report(key+".name", "%s is not a name; use letters, digits, - and _", quote(l.Name))
		}
		if first, taken := names[l.Name]; taken {
			m.report(key+".name", "%s is the name of %s already", quote(l.Name), first)
		} else {
			names[l.Name] = key
		}
	}
	if a := c.TLS.ACME; a != nil && a.HTTPAddress != "" {
		m.checkPort("tls.acme.http_address", a.HTTPAddress, ports)
	}
	if c.Metrics.Address != "" {
		m.checkPort("metrics.address", c.Metrics.Address, ports)
	}
	if c.Metrics.ReadyAddress != "" {
		m.checkPort("metrics.ready_address", c.Metrics.ReadyAddress, ports)
	}
	if c.Metrics.Address == "" && c.Metrics.Networks != nil {
		m.report("metrics.networks", "has no meaning with metrics.address: off; remove one of them")
	}
	m.checkCluster(ports)
}

// ports are the addresses that are listened on, by port.
type ports map[uint16][]usedPort

type usedPort struct {
	addr netip.Addr // the zero Addr: all
	key  string
}

// checkPort checks an address to listen on, which must not overlap with another
// one.
func (m *mistakes) checkPort(key, address string, all ports) {
	if address == "" {
		m.report(key, `missing; write a port such as ":993" or an IP address and a port such as "192.0.2.1:993"`)
		return
	}
	host, port, err := splitAddress(address)
	if err != nil {
		m.report(key, "%v", err)
		return
	}
	var addr netip.Addr
	if host != "" {
		if addr, err = netip.ParseAddr(host); err != nil {
			m.report(key, `%s is not an IP address; write one, or only the port (":%d") to listen on all addresses`, quote(host), port)
			return
		}
	}
	// Go listens at IPv4 and IPv6 when asked for either's unspecified address.
	addr = addr.Unmap()
	if addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	if port == 0 {
		return // any free port
	}
	for _, other := range all[port] {
		if !addr.IsValid() || !other.addr.IsValid() || addr == other.addr {
			m.report(key, "%s overlaps %s in line %d", quote(address), other.key, m.cfg.position(other.key).line)
			return
		}
	}
	all[port] = append(all[port], usedPort{addr, key})
}

func (m *mistakes) checkBackends() {
	backends := m.cfg.Backends
	if len(backends) == 0 {
		m.report("backends", `none; at least one is needed, such as main: {imap: {address: "10.0.0.5:993"}}`)
	}
	for name, b := range backends {
		key := joinKey("backends", name)
		unreadable := func(protocol string) bool { return m.isUnreadable(key + "." + protocol) }
		if !slices.ContainsFunc(proxy.Protocols(), func(protocol string) bool { return b.Server(protocol) != nil }) && !slices.ContainsFunc(proxy.Protocols(), unreadable) {
			m.report(key, "has neither imap, pop3, submission nor sieve; give it at least one")
		}
		m.checkServer(key+".imap", b.IMAP, IdentityID, IdentityProxyV1, IdentityProxyV2, IdentityNone)
		m.checkServer(key+".pop3", b.POP3, IdentityProxyV1, IdentityProxyV2, IdentityNone)
		m.checkServer(key+".submission", b.Submission,
			IdentityXCLIENT, IdentityXCLIENTLogin, IdentityProxyV1, IdentityProxyV2, IdentityNone)
		m.checkServer(key+".sieve", b.Sieve, IdentityXCLIENT, IdentityProxyV1, IdentityProxyV2, IdentityNone)
		for _, protocol := range proxy.Protocols() {
			m.checkKind(key+"."+protocol+".kind", b.Server(protocol), Kinds(protocol))
		}
		m.checkAccountConnections(key, b)
		if b.Submission != nil && b.Submission.Identity == IdentityXCLIENTLogin && b.IMAP == nil {
			m.report(key+".submission.identity", "xclient-login needs an imap server in the same backend, which verifies the password")
		}
	}
}

// checkAccountConnections checks the limits of connections of an account.
func (m *mistakes) checkAccountConnections(key string, b Backend) {
	const million = 1_000_000
	for _, protocol := range proxy.Protocols() {
		switch at, n := key+".account_connections."+protocol, b.AccountConnections.Of(protocol); {
		case n < 0 || n > million:
			m.report(at, "%d is out of range; use 1 to %d, or 0 for no limit", n, million)
		case n > 0 && b.Server(protocol) == nil && !m.isUnreadable(key+"."+protocol):
			m.report(at, "the backend has no %s; remove it", protocol)
		}
	}
	m.checkSpan(key+".account_wait", b.AccountWait, 0, time.Minute)
}

func (m *mistakes) checkServer(key string, s *Server, identities ...string) {
	if s == nil {
		return
	}
	m.checkWord(key+".tls", s.TLS, "a kind of TLS", "implicit", "starttls", "none")
	m.checkWord(key+".balance", s.Balance, "a way to choose an address", "least", "hash")
	m.checkWord(key+".identity", s.Identity, "a way to tell this server who the client is", identities...)
	if s.MaxConnections < 0 {
		m.report(key+".max_connections", "%d is out of range; 0 is no limit", s.MaxConnections)
	}
	if s.Addresses == nil {
		m.checkServerAt(key, key+".address", s, s.Address)
	} else if s.Address != "" {
		m.report(key+".addresses", "stands beside address; write all of them here")
	} else {
		for i, address := range s.Addresses {
			m.checkServerAt(key, fmt.Sprintf("%s.addresses[%d]", key, i), s, address)
		}
	}
	if !strings.HasSuffix(key, ".imap") && (s.StableBodies || s.SizesAreEstimates) {
		m.report(key, "stable_bodies and sizes_are_estimates belong to imap; remove them")
	}
	m.checkServerTLS(key, s)
}

func (m *mistakes) checkKind(key string, s *Server, kinds []string) {
	if s != nil && s.Kind != "" {
		m.checkWord(key, s.Kind, "a kind of server", kinds...)
	}
}

// checkServerAt judges one address of s.
func (m *mistakes) checkServerAt(key, at string, s *Server, address string) {
	host := m.checkServerAddress(at, address)
	if s.TLS == "none" && host != "" && !isLoopback(host) && !s.Insecure {
		m.report(key+".tls", "none would send passwords in the clear to %s; use implicit or starttls, or say insecure: true", quote(address))
	}
}

func (m *mistakes) checkServerTLS(key string, s *Server) {
	if s.TLS != "none" {
		if s.Insecure {
			m.report(key+".insecure", "allows tls: none and nothing else; remove it, as tls is %s", s.TLS)
		}
		if s.ServerName != "" && !isHost(s.ServerName) {
			m.report(key+".server_name", "%s is not a host name", quote(s.ServerName))
		}
		return
	}
	if s.CA != "" {
		m.report(key+".ca", "has no meaning with tls: none; remove one of them")
	}
	if s.ServerName != "" {
		m.report(key+".server_name", "has no meaning with tls: none; remove one of them")
	}
}

// checkServerAddress returns the host, "" after a mistake.
func (m *mistakes) checkServerAddress(key, address string) string {
	host, port, err := splitAddress(address)
	switch {
	case address == "":
		m.report(key, `missing; write a host and a port such as "10.0.0.5:993"`)
	case err != nil:
		m.report(key, "%v", err)
	case !isHost(host):
		m.report(key, "%s begins with no host name or IP address", quote(address))
	case port == 0:
		m.report(key, "%s has no port to connect to", quote(address))
	default:
		return host
	}
	return ""
}

func (m *mistakes) checkRoutes() {
	c := m.cfg
	if len(c.Routes) == 0 && len(c.Backends) > 1 {
		m.report("routes", "missing; with several backends one has to be chosen, such as - {backend: %s}", slices.Min(slices.Collect(maps.Keys(c.Backends))))
	}
	all := -1                  // the route that takes every login
	routed := map[Route]bool{} // with Backend and POP3Mode alone
	for i, r := range c.Routes {
		key := fmt.Sprintf("routes[%d]", i)
		if all >= 0 {
			m.report(key, "never reached, as routes[%d] takes every login; remove one of them", all)
			continue
		}
		if r.POP3Mode != "" {
			m.checkMode(key+".pop3_mode", r.POP3Mode)
		}
		if m.checkRoute(key, r); !routed[Route{Backend: r.Backend, POP3Mode: r.POP3Mode}] {
			routed[Route{Backend: r.Backend, POP3Mode: r.POP3Mode}] = true
			m.checkRouted(r)
		}
		if r.File == "" && r.Hook == "" && r.Domain == "" {
			all = i
		}
	}
	if len(c.Routes) > 0 && all < 0 {
		m.report("routes", "leave some logins without a backend; end with one that takes the rest, - {backend: ...}")
	}
}

func (m *mistakes) checkRoute(key string, r Route) {
	_, known := m.cfg.Backends[r.Backend]
	ways := 0
	for _, way := range []string{r.File, r.Hook, r.Domain} {
		if way != "" {
			ways++
		}
	}
	if ways > 1 {
		m.report(key, "has more than one of file, hook and domain; write a route for each")
	}
	switch {
	case r.Hook != "" && r.Backend != "":
		m.report(key+".backend", "has no meaning beside hook, which answers with one; remove it")
	case r.Hook != "":
		m.checkHook(key, r)
		return
	case r.Timeout != 0 || r.Cache != 0:
		m.report(key, "timeout and cache belong to a hook; remove them")
	}
	if r.Domain != "" && !isHostname(r.Domain) {
		m.report(key+".domain", "%s is not a domain", quote(r.Domain))
	}
	switch {
	case r.Backend == "":
		m.report(key+".backend", "missing; write the name of a backend")
	case !known:
		m.unknownBackend(key+".backend", r.Backend)
	}
}

func (m *mistakes) checkHook(key string, r Route) {
	if u, err := url.Parse(r.Hook); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		m.report(key+".hook", "%s is not a URL such as http://127.0.0.1:8082/route", quote(r.Hook))
	}
	m.checkDuration(key+".timeout", r.Timeout, 10*time.Millisecond, "")
	m.checkDuration(key+".cache", r.Cache, 0, "")
}

func (m *mistakes) checkAccounts() {
	a := m.cfg.Accounts
	if a.DefaultDomain != "" && !isHostname(a.DefaultDomain) {
		m.report("accounts.default_domain", "%s is not a domain", quote(a.DefaultDomain))
	}
	for i, r := range a.Rewrite {
		key := fmt.Sprintf("accounts.rewrite[%d]", i)
		if r.Match == "" {
			m.report(key+".match", "missing; write a regular expression such as ^(web[0-9]+p[0-9]+)@.*$")
		} else if _, err := regexp.Compile(r.Match); err != nil {
			m.report(key+".match", "%v", err)
		}
		if r.To == "" {
			m.report(key+".to", "missing; write what the name becomes, such as $1")
		}
	}
}

// checkTexts wants what every protocol can say.
func (m *mistakes) checkTexts() {
	m.checkWords("texts", m.cfg.Texts)
	for i, d := range m.cfg.Domains {
		key := fmt.Sprintf("domains[%d]", i)
		if !isHostname(d.Domain) {
			m.report(key+".domain", "%s is not a domain", quote(d.Domain))
		}
		m.checkWords(key+".texts", d.Texts)
	}
}

func (m *mistakes) checkWords(key string, t Texts) {
	const most = 300 // with codes and session id, a reply has to fit into 512 octets
	v := reflect.ValueOf(t)
	for i := range v.NumField() {
		text, k := v.Field(i).String(), key+"."+v.Type().Field(i).Tag.Get("yaml")
		if len(text) > most {
			m.report(k, "has %d octets; the protocols leave room for %d", len(text), most)
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			m.report(k, "holds more than ASCII, which POP3 and SMTP cannot say")
		}
	}
}

func (m *mistakes) unknownBackend(key, name string) {
	if near := nearestWord(name, maps.Keys(m.cfg.Backends)); near != "" {
		m.report(key, "%s is not a backend; is %s meant?", quote(name), near)
		return
	}
	if len(m.cfg.Backends) > 0 {
		m.report(key, "%s is not a backend; use %s", quote(name), joinWords(slices.Sorted(maps.Keys(m.cfg.Backends))))
	}
}

// checkRouted wants a backend that logins go to to have a server for every
// listener.
func (m *mistakes) checkRouted(r Route) {
	b, known := m.cfg.Backends[r.Backend]
	if !known {
		return
	}
	for i, l := range m.cfg.Listeners {
		part, there, advice := "imap", b.IMAP != nil, ""
		if l.TLS == "refuse" {
			continue
		}
		switch l.Protocol {
		case "imap":
		case "pop3":
			mode := cmp.Or(r.POP3Mode, m.cfg.POP3.At(l).Mode)
			old := m.cfg.OldServer(r.Backend) != ""
			if mode == ModePassthrough || mode == ModeShadow && !old {
				part, there = "pop3", old
				advice = "; write it, or the name of a backend that has one in pop3.old_server"
			} else if b.POP3 != nil {
				advice = "; if the old POP3 server is to answer, write pop3_mode: passthrough in the route, or pop3.mode: passthrough"
			}
		case "submission":
			part, there = "submission", b.Submission != nil
		case "sieve":
			part, there = "sieve", b.Sieve != nil
		default:
			continue
		}
		if !there && !m.isUnreadable(joinKey("backends", r.Backend)+"."+part) {
			m.report(fmt.Sprintf("listeners[%d].protocol", i), "%s needs backends.%s.%s, which is missing%s", l.Protocol, r.Backend, part, advice)
		}
	}
}

func (m *mistakes) checkControl() {
	// A path of 107 octets is what the kernel takes; while it is made, the socket
	// has a name that is longer by 4.
	const most = 103
	c, key := m.cfg.Control, "control.socket"
	stands := m.cfg.IsSet(key)
	if !stands {
		key = "state.path" // it is in there
	}
	if n := len(c.Socket); n > most {
		m.report(key, "the control socket %s has a path of %d octets, and a socket's may have %d: set control.socket to a shorter one, or off", quote(c.Socket), n, most)
	}
	if c.Group != "" && !stands {
		m.report("control.group", "needs control.socket, in a directory that the group can enter: state.path is for Postern's user alone")
	}
}

func (m *mistakes) checkTimeouts() {
	t := m.cfg.Timeouts
	m.checkDuration("timeouts.handshake", t.Handshake, time.Second, "")
	m.checkDuration("timeouts.login", t.Login, time.Second, "")
	m.checkDuration("timeouts.dial", t.Dial, time.Second, "")
	m.checkDuration("timeouts.backend", t.Backend, time.Second, "")
	m.checkDuration("timeouts.imap_idle", t.IMAPIdle, 30*time.Minute, " (RFC 9051 section 5.4)")
	m.checkDuration("timeouts.pop3_idle", t.POP3Idle, 10*time.Minute, " (RFC 1939 section 3)")
	m.checkDuration("timeouts.submission_idle", t.SubmissionIdle, time.Second, "")
	m.checkDuration("timeouts.sieve_idle", t.SieveIdle, 30*time.Minute, " (RFC 5804 section 1.2)")
	m.checkDuration("timeouts.stall", t.Stall, time.Second, "")
	m.checkDuration("timeouts.disconnect_spread", t.DisconnectSpread, 0, "")
	m.checkDuration("timeouts.shutdown", t.Shutdown, 0, "")
	m.checkDuration("timeouts.upgrade", t.Upgrade, 0, "")
}
