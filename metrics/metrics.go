// Package metrics counts the events of package proxy for Prometheus, and serves
// metrics, health and readiness by HTTP.
//
// Metrics is a proxy.Observer. Gauges that no event changes are functions of Config
// that are called at each scrape.
package metrics

import (
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"postern/proxy"
)

const prefix = "postern"

// A Listener is the Name and Protocol of a proxy.Service.
type Listener struct{ Name, Protocol string }

// A Backend is the Backend and Protocol of the events of a server behind Postern.
type Backend struct{ Name, Protocol string }

// Labels are the values of labels that a configuration names. Events of other listeners,
// backends and providers are counted as "other".
type Labels struct {
	Listeners []Listener
	Backends  []Backend
	Providers []string // of tokens
}

// Config names the values of labels and the functions of gauges. Functions are called at
// each scrape.
type Config struct {
	Version string
	Labels

	Decisions    Decisions
	Stores       []string                                       // the values of StateUsed.Store
	Pools        func() []Pool                                  // nil: not shown
	State        func() State                                   // nil: nothing is stored
	Accounts     func() Accounts                                // nil: not shown
	Policy       func() Policy                                  // nil: not shown
	Tokens       func() []Provider                              // nil: not shown
	Passwords    func() Passwords                               // nil: not shown
	Stale        func() map[string]bool                         // by key of the configuration: whether a file has changed and was not loaded; nil: not shown
	Guard        func() Guard                                   // nil: not shown
	Listings     func() int64                                   // octets of the listings of POP3 sessions; nil: not shown
	Certificates func() []Certificate                           // nil: none
	Findings     func() map[string]int                          // about certificates, by class, also those of which there are 0; nil: none
	Parking      func() Parking                                 // nil: not shown
	Draining     func() bool                                    // nil: never
	Drained      func() bool                                    // by an operator: Ready returns an error, and clients are served; nil: never
	Ready        func() error                                   // why new clients should go to another Postern; nil: always ready
	ReadyFor     func(protocol string) (served bool, err error) // Ready for one protocol; nil: no protocol is served
	Degraded     func() error                                   // what an operator should look at although clients may come; nil: never degraded
	Page         http.Handler                                   // of /; nil: there is none
	Log          *slog.Logger                                   // of the HTTP server; nil: slog.DiscardHandler
}

// Metrics is a proxy.Observer that counts. It must be made by New. Its labels have
// few values, all known in advance: no user, no address, no text.
type Metrics struct {
	config   Config
	registry registry
	networks atomic.Pointer[[]netip.Prefix] // whose clients may read

	growing sync.Mutex
	labels  labels

	guardMetrics

	accepted, rejected   counter
	acceptErrors         counter
	open                 gauge
	connectionTime       histogram
	pop3Ended            counter
	handshakes           counter
	rejections           counter
	verdicts             *certificateVerdicts
	handshakeTime        histogram
	negotiated, needed   counter
	received, sent       counter
	attempts             counter
	attemptTime          histogram
	active               gauge
	sessions             counter
	up, identified       gauge
	dials                counter
	dialTime, loginTime  histogram
	commands             counter
	commandTime          histogram
	loadTime, maildrop   histogram
	retrieved, deleted   counter
	updateFailures       counter
	messageSize          histogram
	mismatches, panics   counter
	loaded, loadedAt     gauge
	issues, denials      counter
	completed, notices   counter
	renumbered           counter
	uidlsChanged         counter
	brake                gauge
	changed, braked      counter
	unlisted             counter
	reconnects, failures counter
	learnt               counter
	compared             counter
	differences          counter
	shadowLearnt         counter
	lookups              counter
	passwords            counter
	tokens               counter
	tokenTime            histogram
	queueTime            histogram
	queued               counter
	throttled            counter
	imapCommands         counter
	lookupTime           histogram
	passwordTime         histogram
	imapCommandTime      histogram
	stored, logged       counter
	storedTime           histogram
	issueTime            histogram
}

// The values of the label result of things that succeed or fail.
const (
	resultOK    = "ok"
	resultError = "error"
)

// mechanisms are the ways in which clients of a protocol log in.
var mechanisms = map[string][]string{
	proxy.IMAP:       {proxy.ViaPlain, proxy.ViaLogin, proxy.ViaXOAuth2, proxy.ViaOAuthBearer, proxy.ViaLoginCommand, other},
	proxy.POP3:       {proxy.ViaPlain, proxy.ViaLogin, proxy.ViaXOAuth2, proxy.ViaOAuthBearer, proxy.ViaUserPass, other},
	proxy.Submission: {proxy.ViaPlain, proxy.ViaLogin, proxy.ViaXOAuth2, proxy.ViaOAuthBearer, other},
	proxy.Sieve:      {proxy.ViaPlain, proxy.ViaLogin, proxy.ViaXOAuth2, proxy.ViaOAuthBearer, other},
}

// The buckets of histograms.
var (
	latency  = prometheus.ExponentialBuckets(0.001, 4, 8) // 1 ms to 16 s
	lifetime = []float64{1, 10, 60, 300, 1800, 2 * 3600, 8 * 3600, 24 * 3600}
	waits    = []float64{0.5, 1, 2, 5, 10, 30, 60, 300}
	octets   = prometheus.ExponentialBuckets(1<<10, 4, 10) // 1 KiB to 256 MiB
	messages = prometheus.ExponentialBuckets(1, 8, 7)      // to 262,144
)

// New returns Metrics with a registry of its own.
func New(c Config) *Metrics {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	m := &Metrics{config: c, registry: registry{Registry: prometheus.NewRegistry()}, labels: newLabels()}
	m.labels.add(c.Labels)
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.clients()
	m.guards()
	m.backends()
	m.pop3()
	m.process()
	return m
}

// labels are the dimensions whose values come from the configuration.
type labels struct {
	listener, served, protocol, via *dimension
	backend, server, provider       *dimension
}

// newLabels returns labels without values.
func newLabels() labels {
	return labels{
		listener: label("listener"), protocol: label("protocol"), backend: label("backend"), provider: label("provider"),
		served: &dimension{labels: []string{"listener", "protocol"}},
		via:    &dimension{labels: []string{"protocol", "mechanism"}},
		server: &dimension{labels: []string{"backend", "protocol"}},
	}
}

// add adds values.
func (l *labels) add(more Labels) {
	for _, s := range more.Listeners {
		l.listener.add(s.Name)
		l.served.add(s.Name, s.Protocol)
		l.protocol.add(s.Protocol)
		for _, mechanism := range mechanisms[s.Protocol] {
			l.via.add(s.Protocol, mechanism)
		}
	}
	for _, b := range more.Backends {
		l.backend.add(b.Name)
		l.server.add(b.Name, b.Protocol)
	}
	for _, name := range more.Providers {
		l.provider.add(name)
	}
}

// AddLabels adds the values of a new configuration. The series of those that are gone stay.
func (m *Metrics) AddLabels(more Labels) {
	m.growing.Lock()
	defer m.growing.Unlock()
	m.labels.add(more)
	for _, f := range m.registry.families {
		f.grow()
	}
}

// clients registers the metrics of connections, handshakes and logins.
func (m *Metrics) clients() {
	listener, served, protocol, via := m.labels.listener, m.labels.served, m.labels.protocol, m.labels.via
	r := &m.registry
	m.accepted = r.counter("connections_accepted_total", "TCP connections accepted.", served)
	m.rejected = r.counter("connections_rejected_total",
		"Connections closed before the TLS handshake. Those with unexpected_proxy_header are counted as accepted, too.",
		listener, label("reason", proxy.RejectTooMany, proxy.RejectNoHeader, proxy.RejectBadHeader, proxy.RejectUnexpectedHeader, proxy.RejectCheck, other))
	m.acceptErrors = r.counter("accept_errors_total",
		"Tries to take a connection that failed, for want of file descriptors for instance; it waits.", listener)
	m.open = r.gauge("connections_open", "Client connections currently open.", served)
	m.connectionTime = r.histogram("connection_duration_seconds", "Lifetime of client connections.", lifetime, protocol)
	m.handshakes = r.counter("tls_handshakes_total",
		"TLS handshakes by the version negotiated, or else the newest offered, by outcome, and by why Postern or the client ended them.",
		listener, label("version", "1.0", "1.1", "1.2", "1.3", none), handshakeResults())
	m.rejections = r.counter("tls_certificate_rejections_total",
		"Clients that rejected the certificate, in the handshake or right after it, by their alert (RFC 8446 section 6.2).",
		listener, label("alert", proxy.CertificateAlerts()...))
	m.verdicts = r.certificateVerdicts(listener)
	m.needed = r.counter("tls_profile_needed_total", "Completed TLS handshakes by the strictest profile that would have done.",
		listener, label("profile", proxy.Profiles()...))
	m.handshakeTime = r.histogram("tls_handshake_duration_seconds", "Duration of completed TLS handshakes.", latency, listener)
	m.negotiated = r.counter("tls_negotiated_total", "Completed TLS handshakes by protocol version.",
		label("version", "1.0", "1.1", "1.2", "1.3"), label("resumed", "true", "false"))
	m.received = r.counter("client_received_bytes_total", "Plaintext bytes received from clients, counted when they disconnect.", protocol)
	m.sent = r.counter("client_sent_bytes_total", "Plaintext bytes sent to clients, counted when they disconnect.", protocol)
	m.attempts = r.counter("auth_attempts_total", "Authentication attempts by outcome.", via, label("result", proxy.Results()...))
	m.pop3Ended = r.counter("pop3_ended_refusals_total", "Logins with a right password that were refused because the last day of POP3 for the account is over.")
	m.attemptTime = r.histogram("auth_duration_seconds", "Time from complete credentials to the answer.", latency,
		protocol, label("result", timedResults[:]...))
	m.active = r.gauge("sessions_active", "Authenticated sessions.", protocol)
	m.sessions = r.counter("sessions_total", "Authenticated sessions ended, by cause.", protocol, label("end",
		proxy.EndClientQuit, proxy.EndClientAbort, proxy.EndBackendClosed, proxy.EndIdleTimeout, proxy.EndToken, proxy.EndDrain, proxy.EndKicked,
		proxy.EndRefused, proxy.EndForbiddenCommand, proxy.EndError))
}

// handshakeResults returns the results of handshakes with their reasons. Handshakes
// that Postern refuses have one, and those that a client ends after it has got the
// certificate.
func handshakeResults() *dimension {
	d := &dimension{labels: []string{"result", "reason"}}
	for _, result := range []string{
		proxy.HandshakeOK, proxy.HandshakeTimeout, proxy.HandshakeSilent, proxy.HandshakeClientAbort,
		proxy.HandshakeBadProtocol, proxy.HandshakeEarly, proxy.HandshakeChallenge,
	} {
		d.values = append(d.values, []string{result, none})
	}
	for _, reason := range []string{proxy.RejectedCertificate, proxy.LeftAfterCertificate} {
		d.values = append(d.values, []string{proxy.HandshakeClientAbort, reason})
	}
	for _, reason := range []string{proxy.NoVersion, proxy.NoCipher, proxy.NoProtocol, proxy.NoCertificate, proxy.NoOther} {
		d.values = append(d.values, []string{proxy.HandshakeError, reason})
	}
	return d
}

// backends registers the metrics of backends and routes.
func (m *Metrics) backends() {
	name, server := m.labels.backend, m.labels.server
	r := &m.registry
	m.identified = r.gauge("backend_identity_accepted",
		"1 if the backend could be told who the client is, in the configured way, at the last login.", server)
	m.up = r.gauge("backend_up", "1 if the last health check of the backend succeeded.", server)
	m.dials = r.counter("backend_dials_total", "Connection attempts to a backend.", name, label("result",
		proxy.DialOK, proxy.DialRefused, proxy.DialTimeout, proxy.DialTLS, proxy.DialGreeting, proxy.DialOther))
	m.dialTime = r.histogram("backend_dial_duration_seconds", "Time to connect to a backend, up to its greeting.", latency, name)
	m.reconnects = r.counter("pop3_reconnects_total", "Connections to a backend lost within a POP3 session, by what came of it.",
		name, label("cause", proxy.LostClosed, proxy.LostBye, proxy.LostSilent),
		label("result", proxy.ReconnectOK, proxy.ReconnectFailed, proxy.ReconnectRenumbered))
	m.learnt = r.counter("pop3_uidls_learnt_total",
		"Accounts whose unique ids were to be taken over from an old POP3 server at their first session, by whether that was done.",
		name, label("result", resultOK, resultError))
	m.compared = r.counter("pop3_shadow_comparisons_total",
		"Sessions with an old POP3 server after which its messages were to be compared with INBOX, by what came of it.",
		name, label("result", proxy.ShadowResults()...))
	m.differences = r.counter("pop3_shadow_differences_total",
		"Messages that the bridge would show in another way than the old POP3 server, at each comparison.",
		name, label("kind", "missing", "extra", "uidl", "size", "order"))
	m.shadowLearnt = r.counter("pop3_shadow_uidls_learnt_total", "Unique ids of an old POP3 server that were recorded after a session with it.", name)
	m.failures = r.counter("backend_errors_total",
		"Failures of a backend after the connection was made: answers to credentials that say nothing of the password, and connections lost within a session, except those of IMAP, which end so at LOGOUT.",
		server, label("kind", failures()...))
	sources := []string{proxy.RouteFile, proxy.RouteHook, proxy.RouteCached, proxy.RouteDomain, proxy.RouteDefault, proxy.RouteOther}
	m.lookups = r.counter("route_lookups_total", "Rules asked which backend a login goes to.",
		label("source", sources...), label("result", proxy.RouteFound, proxy.RouteNone, proxy.RouteError))
	m.lookupTime = r.histogram("route_lookup_duration_seconds", "Time a rule takes to answer.", latency, label("source", sources...))
	stores := label("store", proxy.PasswordStores()...)
	m.passwords = r.counter("password_checks_total",
		"Requests to a store of passwords that Postern checks itself. A store that says invalid_credentials may be followed by the next one.",
		stores, label("result", proxy.ResultOK, proxy.ResultWrong, proxy.ResultTemporary, proxy.ResultForbidden, proxy.ResultClientAbort))
	m.passwordTime = r.histogram("password_check_duration_seconds", "Time that a store of passwords takes, with the wait for the hashes of other logins.", latency, stores)
	m.tokens = r.counter("token_requests_total",
		"Requests to authorization servers for tokens, by provider. With account there is no token for one mailbox, with configuration for none.",
		m.labels.provider, label("result", proxy.TokenResults()...))
	m.tokenTime = r.histogram("token_request_duration_seconds", "Time an authorization server takes to answer.", latency, m.labels.provider)
	m.queueTime = r.histogram("account_queue_seconds",
		"Time that logins waited for a connection of their account to the backend, or until they were refused: backends.X.account_connections. A login that need not wait is not counted.",
		waits, server)
	m.queued = r.counter("account_queue_logins_total",
		"Logins that waited for a connection of their account to the backend, by what came of it: full was refused, throttled too, because the server wanted no login of the account.",
		server, label("result", proxy.QueueResults()...))
	m.throttled = r.counter("account_throttles_total", "Answers of the backend that it wants no login of an account for some time.", server)
	m.loginTime = r.histogram("backend_login_duration_seconds", "Time a backend takes to answer credentials.", latency, server)
}

// failures are the kinds of a backend's: what refuses a login as temporary, and what
// ends a connection.
func failures() []string {
	kinds := []string{proxy.LostClosed, proxy.LostBye, proxy.LostSilent}
	for _, reason := range []proxy.Reason{
		proxy.Unavailable, proxy.Maintenance, proxy.TooMany, proxy.InUse, proxy.MailboxFull,
	} {
		kinds = append(kinds, reason.String())
	}
	return kinds
}

// pop3 registers the metrics of POP3 sessions.
func (m *Metrics) pop3() {
	command := label("command", append(proxy.POP3Commands[:], other)...)
	r := &m.registry
	m.commands = r.counter("pop3_commands_total", "POP3 commands by reply.", command, label("result", resultOK, resultError))
	m.commandTime = r.histogram("pop3_command_duration_seconds", "POP3 command service time.", latency, command)
	m.loadTime = r.histogram("pop3_maildrop_load_duration_seconds", "Time to build the maildrop listing at login.", latency,
		label("source", "full", "cache", "delta"))
	m.maildrop = r.histogram("pop3_maildrop_messages", "Messages in the maildrop at login.", messages)
	m.retrieved = r.counter("pop3_messages_retrieved_total", "Messages delivered to clients.", label("command", "RETR", "TOP"))
	m.deleted = r.counter("pop3_messages_deleted_total", "Messages removed at QUIT.")
	m.updateFailures = r.counter("pop3_update_failures_total", "Failures in the UPDATE state.",
		label("stage", "seen", "store", "expunge", other))
	m.messageSize = r.histogram("pop3_message_size_bytes", "Size of messages delivered by RETR.", octets)
	m.completed = r.counter("pop3_messages_without_final_crlf_total", "Messages sent that did not end in CRLF, and got one.")
	m.notices = r.counter("pop3_maildrop_notices_total", "What an operator should know about maildrops, by kind.", label("kind",
		proxy.NoticeCache, proxy.NoticeNotProven, proxy.NoticeUnreadable, proxy.NoticeRecord, proxy.NoticeRecomputed, proxy.NoticeChanged,
		proxy.NoticeRenumbered))
	m.renumbered = r.counter("pop3_uidvalidity_changes_total", "Changes of UIDVALIDITY, and UIDNEXTs that became lower: the UIDs mean other messages.")
	m.uidlsChanged = r.counter("pop3_uidls_changed_total", "Messages that were not found again after a change of UIDVALIDITY and have a new UIDL.")
	m.brake = r.gauge("pop3_brake", "1 while POP3 accounts of the backend whose mailbox looks different are refused.", m.labels.backend)
	m.changed = r.counter("pop3_mailbox_changes_total",
		"Mailboxes that looked different from the last poll and that no session of this Postern has changed, each at most once in 10 minutes.",
		m.labels.backend, label("kind", proxy.ChangeUIDValidity, proxy.ChangeUIDNext, proxy.ChangeEmptied, proxy.ChangeShrunk))
	m.braked = r.counter("pop3_brake_refusals_total", "POP3 logins refused because the mailbox looked different and the brake was on.", m.labels.backend)
	m.unlisted = r.counter("pop3_listing_refusals_total", "POP3 logins refused because there was no memory for the listing.",
		label("reason", proxy.ListingsFull, proxy.ListingTooLong))
	if m.config.Listings != nil {
		r.MustRegister(prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Namespace: prefix, Name: "pop3_listing_memory_bytes", Help: "Memory that the listings of POP3 sessions have of limits.listing_memory."},
			func() float64 { return float64(m.config.Listings()) }))
	}
	sent := []string{
		"ENABLE", "SELECT", "STATUS", "SEARCH", "LIST", "FETCH", proxy.CommandBody, "STORE", "EXPUNGE", "MOVE", "COPY", other,
	}
	m.imapCommands = r.counter("imap_client_commands_total",
		"Answers of the servers to POP3 sessions; FETCH BODY is each message that a session waited for.",
		label("command", sent...), label("result", proxy.CommandOK, proxy.CommandNo, proxy.CommandBad, proxy.CommandLost))
	m.imapCommandTime = r.histogram("imap_client_command_duration_seconds",
		"Time the servers of POP3 sessions take to answer; FETCH BODY up to the first octet of a message.",
		latency, label("command", sent...))
	m.mismatches = r.counter("pop3_size_mismatches_total", "Messages whose octet count differed from the announced size.")
}

// process registers the metrics of the process: configuration, certificates, state.
func (m *Metrics) process() {
	r := &m.registry
	m.panics = r.counter("panics_total", "Recovered panics.")
	m.loaded = r.gauge("config_last_reload_successful", "1 if the last reading of the configuration succeeded.")
	m.loadedAt = r.gauge("config_last_reload_success_timestamp_seconds", "Time of the last successful reading of the configuration.")
	m.Reloaded(true)
	m.issues = r.counter("acme_operations_total", "Certificates asked of a CA.",
		label("operation", "obtain", "renew"), label("result", resultOK, resultError))
	m.issueTime = r.histogram("acme_operation_duration_seconds", "Time it takes to get a certificate of a CA, or none.", waits,
		label("operation", "obtain", "renew"))
	store, operation := label("store", m.config.Stores...), label("operation", "get", "scan", "update")
	m.stored = r.counter("state_operations_total", "What is remembered, read and written.",
		store, operation, label("result", resultOK, resultError))
	m.storedTime = r.histogram("state_operation_duration_seconds", "Time to read or write what is remembered.", latency, store, operation)
	m.logged = r.counter("log_messages_total", "Log records written.", label("level", "debug", "info", "warn", "error"))
	m.denials = r.counter("acme_denied_total", "Names that clients asked for on demand, and that got no certificate.",
		label("reason", proxy.DeniedUnknown, proxy.DeniedLimit))
	r.gauge("build_info", "Build metadata; value is always 1.",
		label("version", m.config.Version), label("revision", revision()), label("goversion", runtime.Version()),
	).of(m.config.Version, revision(), runtime.Version()).Set(1)
	r.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: prefix, Name: "draining", Help: "1 while the process is stopping and waits for its sessions."},
		func() float64 { return number(m.config.Draining != nil && m.config.Draining()) }))
	r.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: prefix, Name: "drained", Help: "1 while postern drain --self keeps new clients away: /readyz says 503, and those who come are served."},
		func() float64 { return number(m.config.Drained != nil && m.config.Drained()) }))
	r.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: prefix, Name: "ready", Help: "1 if /readyz says that new clients should come."},
		func() float64 { return number(m.config.Ready == nil || m.config.Ready() == nil) }))
	if m.config.Parking != nil {
		r.MustRegister(parking(m.config.Parking))
	}
	if m.config.State != nil {
		r.MustRegister(files(m.config.State))
	}
	if m.config.Accounts != nil {
		r.MustRegister(accounts(m.config.Accounts))
	}
	if m.config.Policy != nil {
		r.MustRegister(policyLines(m.config.Policy))
	}
	if m.config.Tokens != nil {
		r.MustRegister(providers(m.config.Tokens))
	}
	if m.config.Passwords != nil {
		r.MustRegister(passwords(m.config.Passwords))
	}
	if m.config.Stale != nil {
		r.MustRegister(staleFiles(m.config.Stale))
	}
	if m.config.Pools != nil {
		r.MustRegister(pools(m.config.Pools))
	}
	if m.config.Certificates != nil {
		r.MustRegister(certificates(m.config.Certificates))
	}
	if m.config.Findings != nil {
		r.MustRegister(certificateFindings(m.config.Findings))
	}
}

// revision returns the revision of the source, or "unknown".
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// number returns b as the value of a gauge.
func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Reloaded counts that the configuration was read again, and whether it was valid.
func (m *Metrics) Reloaded(ok bool) {
	m.loaded.of().Set(number(ok))
	if ok {
		m.loadedAt.of().SetToCurrentTime()
	}
}

// Logged counts that a log record was written.
func (m *Metrics) Logged(level slog.Level) {
	name := "debug"
	switch {
	case level >= slog.LevelError:
		name = "error"
	case level >= slog.LevelWarn:
		name = "warn"
	case level >= slog.LevelInfo:
		name = "info"
	}
	m.logged.of(name).Inc()
}
