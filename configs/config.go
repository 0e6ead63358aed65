// Package configs holds Postern's configuration: its types and defaults, the
// strict reading of a YAML file, and the rules for its values. Load returns a
// Config, or Errors: all mistakes at once, each with file, line and key.
//
// The directory also has the files that an operator needs: postern.yaml is the
// documented example.
package configs

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"postern/proxy"
)

// Config is a complete configuration as Load returns it: defaults filled in,
// values in range, names resolved. The field tags are the keys of the file.
type Config struct {
	// Hostname is said in greetings and EHLO. Default: the machine's name.
	Hostname        string              `yaml:"hostname"`
	Listeners       []Listener          `yaml:"listeners"`
	TLS             TLS                 `yaml:"tls"`
	Backends        map[string]Backend  `yaml:"backends"`
	Providers       map[string]Provider `yaml:"providers"`
	Routes          []Route             `yaml:"routes"` // first match wins
	Accounts        Accounts            `yaml:"accounts"`
	Protocols       Protocols           `yaml:"policy"`
	Texts           Texts               `yaml:"texts"`
	Domains         []Domain            `yaml:"domains"`
	TrustedNetworks []netip.Prefix      `yaml:"trusted_networks"` // masked, IPv4 never as ::ffff:
	Timeouts        Timeouts            `yaml:"timeouts"`
	Limits          Limits              `yaml:"limits"`
	Guard           Guard               `yaml:"guard"`
	POP3            POP3                `yaml:"pop3"`
	Submission      Submission          `yaml:"submission"`
	Sieve           Sieve               `yaml:"sieve"`
	State           State               `yaml:"state"`
	Cluster         Cluster             `yaml:"cluster"`
	Control         Control             `yaml:"control"`
	Metrics         Metrics             `yaml:"metrics"`
	Log             Log                 `yaml:"log"`
	Privacy         Privacy             `yaml:"privacy"`
	Retention       Retention           `yaml:"retention"`
	Passwords       Passwords           `yaml:"passwords"`

	file      string
	positions map[string]position
}

// A Listener is a port for one protocol.
type Listener struct {
	Name     string `yaml:"name"`     // unique; default: the protocol, then protocol-2, ...
	Protocol string `yaml:"protocol"` // imap, pop3, submission or sieve (ManageSieve)
	Address  string `yaml:"address"`  // "IP:port" or ":port" for all addresses; port 0: any free one

	TLS       string         `yaml:"tls"`        // implicit (default; of sieve starttls), starttls, or refuse: to say why nothing works here
	ProxyFrom []netip.Prefix `yaml:"proxy_from"` // load balancers, which begin with a PROXY header

	TLSProfile string         `yaml:"tls_profile"` // how old its clients' TLS may be; default: TLS.Profile
	Networks   []netip.Prefix `yaml:"networks"`    // the clients it is for, of several listeners at one address; none: the rest
	POP3       *ListenerPOP3  `yaml:"pop3"`        // of pop3: what is other here than for all; nil: nothing
	Guard      *ListenerGuard `yaml:"guard"`       // likewise
}

// A Backend is a mail server behind Postern. A part that is nil is not there.
type Backend struct {
	IMAP       *Server `yaml:"imap"`
	POP3       *Server `yaml:"pop3"` // an old POP3 server, which answers POP3 clients in the modes passthrough and shadow
	Submission *Server `yaml:"submission"`
	Sieve      *Server `yaml:"sieve"` // ManageSieve

	Token     string `yaml:"token"`      // the provider with whose tokens Postern logs in; "": with the client's password
	NamesFile string `yaml:"names_file"` // with Token: accounts whose mailbox there has another name; read again when it changes; "": none

	AccountConnections AccountConnections `yaml:"account_connections"`
	AccountWait        time.Duration      `yaml:"account_wait"` // how long a login waits for another connection of its account to end; 0s: it is refused at once
}

// AccountConnections are the connections that an account may have to a backend at a time:
// those to all servers of a protocol together. 0: no limit.
type AccountConnections struct {
	IMAP       int `yaml:"imap"`       // of an account at a time, with those of POP3 clients, for whom one is kept; 0: no limit
	POP3       int `yaml:"pop3"`       // likewise, to an old POP3 server; 0: no limit
	Submission int `yaml:"submission"` // likewise; 0: no limit
	Sieve      int `yaml:"sieve"`      // likewise; 0: no limit
}

// Of returns the limit for a protocol of package proxy.
func (a AccountConnections) Of(protocol string) int {
	switch protocol {
	case proxy.IMAP:
		return a.IMAP
	case proxy.POP3:
		return a.POP3
	case proxy.Submission:
		return a.Submission
	case proxy.Sieve:
		return a.Sieve
	}
	return 0
}

// defaultAccountWait leaves mail programs, which wait for 30 s and more, time for the login.
const defaultAccountWait = 10 * time.Second

// Server returns the part for a protocol of package proxy; nil: it is not there.
func (b Backend) Server(protocol string) *Server {
	switch protocol {
	case proxy.IMAP:
		return b.IMAP
	case proxy.POP3:
		return b.POP3
	case proxy.Submission:
		return b.Submission
	case proxy.Sieve:
		return b.Sieve
	}
	return nil
}

// A Server is one part of a backend: a server, or several alike.
type Server struct {
	Address    string `yaml:"address"`     // "host:port"
	TLS        string `yaml:"tls"`         // implicit (default; of sieve starttls), starttls or none
	CA         string `yaml:"ca"`          // PEM file, relative to the configuration file's folder; "": the system's
	ServerName string `yaml:"server_name"` // the certificate's name; "": the host of the address
	Insecure   bool   `yaml:"insecure"`    // TLS none is meant although Address is not loopback

	Addresses      []string     `yaml:"addresses"`       // instead of Address: several, alike
	Balance        string       `yaml:"balance"`         // least (default: fewest connections) or hash (of the account)
	Identity       string       `yaml:"identity"`        // how the server learns who the client is; see Identities
	Source         []netip.Addr `yaml:"source"`          // addresses to connect from; none: the system chooses
	MaxConnections int          `yaml:"max_connections"` // to each address; 0: as many as come
	Kind           string       `yaml:"kind"`            // its software; "": guessed; see Kinds

	StableBodies      bool `yaml:"stable_bodies"`       // of imap: the same octets of a message at each time, also by their offset
	SizesAreEstimates bool `yaml:"sizes_are_estimates"` // of imap: RFC822.SIZE is a guess
}

// The values of Server.Identity. For IMAP id (default), for submission xclient
// and xclient-login, for sieve xclient (default), for all proxy-v1, proxy-v2 and none
// (default of pop3 and submission).
const (
	IdentityNone         = "none"
	IdentityID           = "id"            // IMAP ID, RFC 2971
	IdentityXCLIENT      = "xclient"       // Postfix, and ManageSieve of Dovecot; the server verifies the password
	IdentityXCLIENTLogin = "xclient-login" // the same backend's IMAP server verifies it
	IdentityProxyV1      = "proxy-v1"      // PROXY protocol
	IdentityProxyV2      = "proxy-v2"
)

// Kinds returns the values of Server.Kind for a protocol: what answers to credentials mean
// differs between them.
func Kinds(protocol string) []string { return kinds[protocol] }

var kinds = map[string][]string{
	proxy.IMAP:       {"dovecot", "cyrus", "courier", "exchange", "gmail", "stalwart", "other"},
	proxy.POP3:       {"dovecot", "cyrus", "courier", "popa3d", "solid-pop3d", "mailutils", "qpopper", "other"},
	proxy.Submission: {"dovecot", "postfix", "exim", "exchange", "gmail", "stalwart", "other"},
	proxy.Sieve:      {"dovecot", "cyrus", "stalwart", "other"},
}

// All returns the addresses of the servers.
func (s *Server) All() []string {
	if s.Address != "" {
		return []string{s.Address}
	}
	return s.Addresses
}

// A Route says which backend logins go to: those of the accounts in File, those
// that Hook answers for, those of Domain, or, with none of these, all.
type Route struct {
	Backend string `yaml:"backend"` // with File: unless the line says another; with Hook: none
	File    string `yaml:"file"`    // accounts, domains, *; read again when it changes
	Domain  string `yaml:"domain"`

	POP3Mode string `yaml:"pop3_mode"` // bridge, passthrough or shadow, unless a line of File or Hook says it; "": as the listener

	Hook    string        `yaml:"hook"`    // an http or https URL that is asked
	Timeout time.Duration `yaml:"timeout"` // of Hook; 0: 2s
	Cache   time.Duration `yaml:"cache"`   // how long an answer of Hook holds; 0: 1m
}

// Accounts says which account the name means that a client typed. Spaces
// around it are dropped.
type Accounts struct {
	Lowercase     bool      `yaml:"lowercase"`      // ASCII
	DefaultDomain string    `yaml:"default_domain"` // of names without one
	Rewrite       []Rewrite `yaml:"rewrite"`        // first match wins
	Separators    string    `yaml:"separators"`     // characters no name may have: Dovecot's for master users
}

// A Rewrite replaces a name that Match, a regular expression of Go's, matches.
type Rewrite struct {
	Match string `yaml:"match"`
	To    string `yaml:"to"` // $1 is the first group
}

// Protocols says which protocols an account may use.
type Protocols struct {
	File string `yaml:"file"` // read again when it changes
}

// Texts are the operator's words for refusals, in ASCII; "": Postern's own.
type Texts struct {
	Wrong           string `yaml:"wrong"`
	Throttled       string `yaml:"throttled"`
	Unavailable     string `yaml:"unavailable"`
	InUse           string `yaml:"in_use"`
	ProtocolOff     string `yaml:"protocol_off"`
	POP3Ended       string `yaml:"pop3_ended"`
	Suspended       string `yaml:"suspended"`
	Unusable        string `yaml:"unusable"`
	Plaintext       string `yaml:"plaintext"`
	TooMany         string `yaml:"too_many"`
	TooManySessions string `yaml:"too_many_sessions"`
	MailboxFull     string `yaml:"mailbox_full"`
	Maintenance     string `yaml:"maintenance"`
}

// A Domain has texts of its own.
type Domain struct {
	Domain string `yaml:"domain"`
	Texts  Texts  `yaml:"texts"`
}

// Submission is how messages are passed on.
type Submission struct {
	BareNewlines string `yaml:"bare_newlines"` // CR or LF alone: normalize (to CRLF), reject or pass; a NUL is refused but with pass
}

// Sieve is how ManageSieve looks to clients.
type Sieve struct {
	AnnounceImplementation bool `yaml:"announce_implementation"` // the capability IMPLEMENTATION names Postern
}

// Timeouts says how long Postern waits, and for what.
type Timeouts struct {
	Handshake        time.Duration `yaml:"handshake"`         // a client's TLS handshake
	Login            time.Duration `yaml:"login"`             // a client's credentials, anew for each attempt to log in
	Dial             time.Duration `yaml:"dial"`              // connecting to a backend, TLS included
	Backend          time.Duration `yaml:"backend"`           // one answer of a backend
	IMAPIdle         time.Duration `yaml:"imap_idle"`         // silence of both sides; at least 30m (RFC 9051 section 5.4)
	POP3Idle         time.Duration `yaml:"pop3_idle"`         // at least 10m (RFC 1939 section 3)
	SubmissionIdle   time.Duration `yaml:"submission_idle"`   // RFC 5321 section 4.5.3.2.7 recommends 5m
	SieveIdle        time.Duration `yaml:"sieve_idle"`        // at least 30m (RFC 5804 section 1.2)
	Stall            time.Duration `yaml:"stall"`             // a peer that takes no bytes
	DisconnectSpread time.Duration `yaml:"disconnect_spread"` // clients of a backend that crashed are let go within it
	Shutdown         time.Duration `yaml:"shutdown"`          // what sessions get to end by themselves; 0: nothing
	Upgrade          time.Duration `yaml:"upgrade"`           // the same for those that stay with the process that was replaced
}

// POP3 is who answers POP3 clients, and how the bridge shows a mailbox.
type POP3 struct {
	Mode                   string `yaml:"mode"`                    // bridge: Postern, from the IMAP server; passthrough: the old POP3 server; shadow: the old one, and the bridge compares
	OldServer              string `yaml:"old_server"`              // the backend whose pop3 server is the old one of backends that have none; "": none
	LearnFrom              string `yaml:"learn_from"`              // the backend whose pop3 server is asked for an account's unique ids at its first session; "": none
	UIDL                   string `yaml:"uidl"`                    // the form of unique ids: a name, or Dovecot's pop3_uidl_format
	OnUnreadableRecord     string `yaml:"on_unreadable_record"`    // refuse (as temporary) or recompute (clients may fetch all again)
	Delete                 string `yaml:"delete"`                  // what DELE means: expunge, isolate, trash (default at Gmail), hide or keep
	Lock                   string `yaml:"lock"`                    // a second session: allow, wait, refuse or takeover
	FirstListings          int    `yaml:"first_listings"`          // listings of a backend with more than 1,000 messages that are not in the cache, at once
	MarkSeen               bool   `yaml:"mark_seen"`               // what was retrieved becomes \Seen
	AnnounceImplementation bool   `yaml:"announce_implementation"` // CAPA names Postern
	EnableLast             bool   `yaml:"enable_last"`             // the command LAST of RFC 1460
	Expire                 string `yaml:"expire"`                  // never: CAPA says that the servers behind delete nothing by themselves
	UTF8                   bool   `yaml:"utf8"`                    // RFC 6856: messages with headers in UTF-8 are for clients that say UTF8

	LearnWait  time.Duration `yaml:"learn_wait"`  // how long a client waits for that
	Shadow     Shadow        `yaml:"shadow"`      // what the mode shadow may do at a time
	LoginDelay time.Duration `yaml:"login_delay"` // between two logins of an account, RFC 2449 section 6.5; 0: none
}

// State is what outlives Postern.
type State struct {
	Path    string `yaml:"path"`     // a directory of its own; "" (in the file also off): nothing is remembered
	KeyFile string `yaml:"key_file"` // the secret of what is kept there as a keyed hash, such as device passwords; "": there is none

	Record *Record `yaml:"record"` // where the record is that several Posterns share; nil: in Path
}

// Record is where several Posterns have their one record. One of the fields is set.
type Record struct {
	Postgres *Postgres `yaml:"postgres"`
	Owner    string    `yaml:"owner"` // host:port of the Postern that keeps the record, its Cluster.ServeRecord
}

// Postgres is a database.
type Postgres struct {
	URL          string `yaml:"url"`           // postgres://USER@HOST[,HOST]/DATABASE, without a password
	PasswordFile string `yaml:"password_file"` // a file whose first line is the password; read for each connection
	CA           string `yaml:"ca"`            // a file of certificates; "": those of the system
}

// Cluster is what this Postern does for others.
type Cluster struct {
	ServeRecord string `yaml:"serve_record"` // the address at which it serves its record; "": nowhere
}

// Control is where subcommands ask the running Postern.
type Control struct {
	Socket string `yaml:"socket"` // a path; default: control.sock in State.Path, if there is one; "" (in the file also off): nowhere
	Group  string `yaml:"group"`  // whose members may ask, beside Postern's user and root; "": nobody
}

// Metrics is where Prometheus asks.
type Metrics struct {
	Address      string         `yaml:"address"`       // as a listener's; "" (in the file also off): no metrics server
	Networks     []netip.Prefix `yaml:"networks"`      // that may ask there, beside this machine; none: all
	ReadyAddress string         `yaml:"ready_address"` // of /healthz and /readyz alone, for all; "": none
}

// Log is how Postern writes its log.
type Log struct {
	Format   string     `yaml:"format"` // auto, text, json or journald
	Level    slog.Level `yaml:"level"`
	Fail2ban string     `yaml:"fail2ban"` // a file for wrong passwords, in the lines of Dovecot's log; "": none
}

// Default returns the defaults of all keys: a configuration without listeners and backends.
func Default() *Config {
	c := defaults()
	return &c
}

func defaults() Config {
	return Config{
		TLS: TLS{UnknownName: "default", Profile: "modern"},
		Timeouts: Timeouts{
			Handshake:        proxy.DefaultHandshake,
			Login:            proxy.DefaultLogin,
			Dial:             proxy.DefaultDial,
			Backend:          proxy.DefaultReply,
			IMAPIdle:         proxy.DefaultIMAPIdle,
			POP3Idle:         proxy.DefaultPOP3Idle,
			SubmissionIdle:   proxy.DefaultSubmissionIdle,
			SieveIdle:        proxy.DefaultSieveIdle,
			Stall:            proxy.DefaultStall,
			DisconnectSpread: 10 * time.Second,
			Shutdown:         30 * time.Second,
			Upgrade:          10 * time.Minute,
		},
		Limits: defaultLimits(), Guard: defaultGuard(),
		Accounts: Accounts{Lowercase: true, Separators: proxy.DefaultSeparators},
		POP3: POP3{
			Mode: ModeBridge, UIDL: "dovecot", OnUnreadableRecord: "refuse", Delete: "expunge", Lock: "allow", FirstListings: 8, MarkSeen: true, LearnWait: 40 * time.Second, Shadow: Shadow{Concurrency: 20, PerSecond: 5}, AnnounceImplementation: true,
		},
		Submission: Submission{BareNewlines: "normalize"},
		Sieve:      Sieve{AnnounceImplementation: true},
		Metrics:    Metrics{Address: "127.0.0.1:9930"},
		Log:        Log{Format: "auto", Level: slog.LevelInfo},
		Privacy:    defaultPrivacy(), Retention: Retention{Guard: 30, Ledger: 400, UIDLs: 400},
		Passwords: Passwords{Memory: 256 << 20},
	}
}

// fillIn sets what the file left out and what depends on the rest of the file.
func (c *Config) fillIn(machine string) {
	if c.Hostname == "" {
		c.Hostname = machine
	}
	c.nameListeners()
	for i := range c.Listeners {
		l := &c.Listeners[i]
		l.TLS, l.TLSProfile = cmp.Or(l.TLS, defaultTLS(l.Protocol)), cmp.Or(l.TLSProfile, c.TLS.Profile)
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		r.File = c.resolvePath(r.File)
		r.Domain = strings.ToLower(r.Domain)
		if r.Hook != "" {
			r.Timeout, r.Cache = cmp.Or(r.Timeout, proxy.DefaultHookTimeout), cmp.Or(r.Cache, proxy.DefaultHookCache)
		}
	}
	for i := range c.Domains {
		c.Domains[i].Domain = strings.ToLower(c.Domains[i].Domain)
	}
	c.Protocols.File = c.resolvePath(c.Protocols.File)
	c.Log.Fail2ban = c.resolvePath(c.Log.Fail2ban)
	c.fillInGuard()
	c.fillInProviders()
	for name, b := range c.Backends {
		for _, protocol := range proxy.Protocols() {
			if s := b.Server(protocol); s != nil {
				s.CA = c.resolvePath(s.CA)
				s.fillIn(protocol)
			}
		}
		if !c.IsSet(joinKey("backends", name) + ".account_wait") {
			b.AccountWait = defaultAccountWait
			c.Backends[name] = b
		}
		if len(c.Backends) == 1 && len(c.Routes) == 0 {
			c.Routes = []Route{{Backend: name}}
		}
	}
	if c.State.Path == "off" {
		c.State.Path = ""
	}
	c.State.Path, c.State.KeyFile = c.resolvePath(c.State.Path), c.resolvePath(c.State.KeyFile)
	if r := c.State.Record; r != nil && r.Postgres != nil {
		r.Postgres.PasswordFile, r.Postgres.CA = c.resolvePath(r.Postgres.PasswordFile), c.resolvePath(r.Postgres.CA)
	}
	c.Passwords.File = c.resolvePath(c.Passwords.File)
	c.fillInTLS()
	c.fillInControl()
	if c.Metrics.Address == "off" {
		c.Metrics.Address = ""
	}
}

func (c *Config) fillInControl() {
	switch {
	case c.Control.Socket == "off":
		c.Control.Socket = ""
	case c.Control.Socket != "":
		c.Control.Socket = c.resolvePath(c.Control.Socket)
	case c.State.Path != "":
		c.Control.Socket = filepath.Join(c.State.Path, "control.sock")
	}
}

func (c *Config) nameListeners() {
	taken := map[string]bool{}
	for _, l := range c.Listeners {
		taken[l.Name] = true
	}
	count := map[string]int{} // so that a thousand listeners do not cost a million looks
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Name != "" || l.Protocol == "" {
			continue
		}
		for l.Name = l.Protocol; taken[l.Name]; {
			count[l.Protocol]++
			l.Name = fmt.Sprintf("%s-%d", l.Protocol, count[l.Protocol]+1)
		}
		taken[l.Name] = true
	}
}

// resolvePath resolves a path relative to the folder of the configuration file.
func (c *Config) resolvePath(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(c.file), path)
}

func (s *Server) fillIn(protocol string) {
	s.TLS, s.Balance = cmp.Or(s.TLS, defaultTLS(protocol)), cmp.Or(s.Balance, "least")
	identity := map[string]string{proxy.IMAP: IdentityID, proxy.Sieve: IdentityXCLIENT}[protocol]
	s.Identity = cmp.Or(s.Identity, identity, IdentityNone)
}

// defaultTLS returns how listeners and servers of a protocol get TLS. There is no standard
// for ManageSieve with TLS from the first octet.
func defaultTLS(protocol string) string {
	if protocol == proxy.Sieve {
		return "starttls"
	}
	return "implicit"
}
