package configs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// good is a configuration without mistakes; tests break one thing in it.
const good = `hostname: mail.example.org
listeners:
  - {protocol: imap, address: ":993"}
  - {protocol: pop3, address: ":995"}
  - {protocol: submission, address: ":465"}
tls:
  certificates:
    - {cert: mail.pem, key: mail.key}
backends:
  main:
    imap: {address: "10.0.0.5:993"}
    submission: {address: "10.0.0.5:587", tls: starttls}
`

func TestDefaultsFillWhatTheFileLeavesOut(t *testing.T) {
	got, err := Parse("/etc/postern/postern.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.file, want.positions = got.file, got.positions
	want.Hostname = "mail.example.org"
	want.Listeners = []Listener{
		{Name: "imap", Protocol: "imap", Address: ":993", TLS: "implicit", TLSProfile: "modern"},
		{Name: "pop3", Protocol: "pop3", Address: ":995", TLS: "implicit", TLSProfile: "modern"},
		{Name: "submission", Protocol: "submission", Address: ":465", TLS: "implicit", TLSProfile: "modern"},
	}
	want.TLS = TLS{
		Certificates: []Certificate{{Cert: "/etc/postern/mail.pem", Key: "/etc/postern/mail.key"}},
		UnknownName:  "default",
		Profile:      "modern",
	}
	want.Backends = map[string]Backend{"main": {
		IMAP:       &Server{Address: "10.0.0.5:993", TLS: "implicit", Balance: "least", Identity: "id"},
		Submission: &Server{Address: "10.0.0.5:587", TLS: "starttls", Balance: "least", Identity: "none"},

		AccountWait: 10 * time.Second,
	}}
	want.Routes = []Route{{Backend: "main"}}
	if !reflect.DeepEqual(got, &want) {
		t.Errorf("Parse(good) =\n%+v, want\n%+v", got, &want)
	}
}

func TestEveryKeyIsRead(t *testing.T) {
	got, err := Parse("p.yaml", []byte(`
hostname: mx_1.example.org
listeners:
  - {protocol: imap, address: "[2001:db8::1]:993"}
  - {protocol: imap, address: "192.0.2.1:993", guard: {network: {burst: 2}, dry_run: true, account_sessions: 3}}
  - {protocol: imap, address: ":1993", name: imap-2, tls: starttls, proxy_from: [10.9.0.0/24]}
  - {protocol: pop3, address: ":0", pop3: {mode: bridge, delete: isolate, lock: takeover}}
  - {protocol: pop3, address: ":0", tls: refuse}
  - {protocol: imap, address: "192.0.2.1:993", tls_profile: legacy, networks: [192.0.2.0/28, 192.0.2.99]}
tls:
  certificates: [{cert: /a.pem, key: /a.key}, {cert: b.pem, key: b.key}, {dir: live}]
  unknown_name: refuse
  acme:
    email: ops@example.org
    directory: https://ca.internal/dir
    ca: ca.pem
    eab: {key_id: k, mac_key_file: eab}
    profile: shortlived
    names: [Mail.example.org, "*.example.net"]
    key: rsa
    storage: store
    challenge: dns-01
    dns: {server: "10.0.0.53:53", key_file: dns.key, key_name: k, algorithm: hmac-sha512, delay: 0s}
    on_demand: {names_file: names, prefixes: [mail], ask: "http://127.0.0.1:1/", per_hour: 5, addresses: [192.0.2.1]}
  profile: compatible
backends:
  old: {imap: {address: "localhost:143", tls: none}, pop3: {address: "localhost:110", tls: none, kind: popa3d}, account_connections: {imap: 10, pop3: 3}, account_wait: 5s}
  new:
    imap: {address: "mx.internal:143", tls: starttls, ca: ca.pem, server_name: mx.example.org, kind: cyrus, stable_bodies: true, sizes_are_estimates: true}
    submission: {addresses: ["10.0.0.6:25", "10.0.0.7:25"], tls: none, insecure: true, balance: hash,
      identity: xclient-login, source: [10.0.0.1, "::1"], max_connections: 9, kind: other}
routes: [{file: moved, backend: new}, {hook: "http://127.0.0.1:8082/route", cache: 5m}, {domain: Example.ORG, backend: new, pop3_mode: passthrough}, {backend: new}]
accounts:
  lowercase: false
  default_domain: example.org
  rewrite: [{match: "^(web[0-9]+p[0-9]+)@.*$", to: $1}]
  separators: "+"
policy: {file: protocols}
texts: {wrong: a, throttled: b, unavailable: c, in_use: d, protocol_off: e, pop3_ended: m, suspended: f, unusable: k, plaintext: g, too_many: h, too_many_sessions: l, mailbox_full: i, maintenance: j}
domains: [{domain: Example.net, texts: {wrong: k}}]
submission: {bare_newlines: reject}
sieve: {announce_implementation: false}
trusted_networks: [10.0.0.40, "::ffff:10.0.0.41", 10.1.0.0/16, 2001:db8::/48, 2001:db8::1]
timeouts: {handshake: 1s, login: 2s, dial: 3s, backend: 4s, imap_idle: 31m, pop3_idle: 11m,
  submission_idle: 7s, sieve_idle: 32m, stall: 8s, disconnect_spread: 9s, shutdown: 0s, upgrade: 10s}
limits: {max_connections: 5, network_connections: 6, reserve: 0, network_logins: 7, account_sessions: 8, attempts: 9, attempt_wait: 10s,
  guard_entries: 11, known_networks: 12, listing_memory: 13MiB, park: false}
guard: {network: {burst: 1, every: 2s}, account: {burst: 3, every: 4s}, known_network: {burst: 5, every: 6s}, account_network: {burst: 7, every: 8s},
  network_24: {burst: 9, every: 10s}, network_56: {burst: 11, every: 12s}, network_48: {burst: 13, every: 14s}, oauth: {burst: 15, every: 16s},
  delay: 17s, dry_run: true, strict_nist: true, learning: 0s,
  policy: {url: "https://policy.example/", api_key_file: key, nonce_file: /nonce, timeout: 18s, reject_on_fail: true, log_only: true}}
pop3: {mode: passthrough, old_server: old, learn_from: old, learn_wait: 41s, shadow: {concurrency: 3, per_second: 2}, uidl: cyrus, on_unreadable_record: recompute, delete: hide, lock: wait, first_listings: 2, mark_seen: false, announce_implementation: false, enable_last: true, expire: never, login_delay: 1m, utf8: true}
state: {path: /var/lib/postern}
control: {socket: run/control.sock, group: mail}
metrics: {address: "127.0.0.1:1", networks: [10.0.0.0/8], ready_address: ":2"}
privacy: {addresses: full, users: full}
retention: {guard: 7d, ledger: 401d, uidls: 31d}
passwords: {memory: 257MiB}
log: {format: json, level: debug, fail2ban: failed}
`))
	if err != nil {
		t.Fatal(err)
	}
	checkPrinted(t, got)
	got.positions = nil
	var networks []netip.Prefix
	for _, s := range []string{"10.0.0.40/32", "10.0.0.41/32", "10.1.0.0/16", "2001:db8::/48", "2001:db8::1/128"} {
		networks = append(networks, netip.MustParsePrefix(s))
	}
	want := &Config{
		Hostname: "mx_1.example.org",
		Listeners: []Listener{
			{Name: "imap", Protocol: "imap", Address: "[2001:db8::1]:993", TLS: "implicit", TLSProfile: "compatible"},
			{Name: "imap-3", Protocol: "imap", Address: "192.0.2.1:993", TLS: "implicit", TLSProfile: "compatible", Guard: &ListenerGuard{
				Budgets: Budgets{Network: Budget{Burst: 2}, DryRun: true}, AccountSessions: 3,
			}},
			{Name: "imap-2", Protocol: "imap", Address: ":1993", TLS: "starttls", ProxyFrom: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, TLSProfile: "compatible"},
			{Name: "pop3", Protocol: "pop3", Address: ":0", TLS: "implicit", TLSProfile: "compatible", POP3: &ListenerPOP3{Mode: "bridge", Delete: "isolate", Lock: "takeover"}},
			{Name: "pop3-2", Protocol: "pop3", Address: ":0", TLS: "refuse", TLSProfile: "compatible"},
			{
				Name: "imap-4", Protocol: "imap", Address: "192.0.2.1:993", TLS: "implicit", TLSProfile: "legacy",
				Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("192.0.2.99/32")},
			},
		},
		TLS: TLS{
			Certificates: []Certificate{{Cert: "/a.pem", Key: "/a.key"}, {Cert: "b.pem", Key: "b.key"}, {Dir: "live"}},
			UnknownName:  "refuse", Profile: "compatible",
			ACME: &ACME{
				Email: "ops@example.org", Directory: "https://ca.internal/dir", CA: "ca.pem", EAB: &EAB{KeyID: "k", MACKeyFile: "eab"},
				Profile: "shortlived", Names: []string{"mail.example.org", "*.example.net"}, Key: "rsa", Storage: "store", Challenge: "dns-01",
				DNS: &DNS{Server: "10.0.0.53:53", KeyFile: "dns.key", KeyName: "k", Algorithm: "hmac-sha512"},
				OnDemand: &OnDemand{
					NamesFile: "names", Prefixes: []string{"mail"}, Ask: "http://127.0.0.1:1/", PerHour: 5,
					Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
				},
			},
		},
		Backends: map[string]Backend{
			"old": {
				IMAP:               &Server{Address: "localhost:143", TLS: "none", Balance: "least", Identity: "id"},
				POP3:               &Server{Address: "localhost:110", TLS: "none", Balance: "least", Identity: "none", Kind: "popa3d"},
				AccountConnections: AccountConnections{IMAP: 10, POP3: 3}, AccountWait: 5 * time.Second,
			},
			"new": {
				IMAP: &Server{
					Address: "mx.internal:143", TLS: "starttls", CA: "ca.pem", ServerName: "mx.example.org", Balance: "least", Identity: "id",
					Kind: "cyrus", StableBodies: true, SizesAreEstimates: true,
				},
				Submission: &Server{
					Addresses: []string{"10.0.0.6:25", "10.0.0.7:25"}, TLS: "none", Insecure: true, Balance: "hash",
					Identity: "xclient-login", Source: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.IPv6Loopback()}, MaxConnections: 9, Kind: "other",
				},
				AccountWait: 10 * time.Second,
			},
		},
		Routes: []Route{
			{File: "moved", Backend: "new"},
			{Hook: "http://127.0.0.1:8082/route", Timeout: 2 * time.Second, Cache: 5 * time.Minute},
			{Domain: "example.org", Backend: "new", POP3Mode: "passthrough"},
			{Backend: "new"},
		},
		Accounts: Accounts{
			DefaultDomain: "example.org", Rewrite: []Rewrite{{Match: "^(web[0-9]+p[0-9]+)@.*$", To: "$1"}}, Separators: "+",
		},
		Protocols: Protocols{File: "protocols"},
		Texts: Texts{
			Wrong: "a", Throttled: "b", Unavailable: "c", InUse: "d", ProtocolOff: "e", POP3Ended: "m", Suspended: "f", Unusable: "k", Plaintext: "g",
			TooMany: "h", TooManySessions: "l", MailboxFull: "i", Maintenance: "j",
		},
		Domains:         []Domain{{Domain: "example.net", Texts: Texts{Wrong: "k"}}},
		Submission:      Submission{BareNewlines: "reject"},
		TrustedNetworks: networks,
		Timeouts: Timeouts{
			Handshake: 1 * time.Second, Login: 2 * time.Second, Dial: 3 * time.Second, Backend: 4 * time.Second,
			IMAPIdle: 31 * time.Minute, POP3Idle: 11 * time.Minute, SubmissionIdle: 7 * time.Second, SieveIdle: 32 * time.Minute,
			Stall: 8 * time.Second, DisconnectSpread: 9 * time.Second, Upgrade: 10 * time.Second,
		},
		Limits: Limits{
			MaxConnections: 5, NetworkConnections: 6, NetworkLogins: 7, AccountSessions: 8, Attempts: 9, AttemptWait: 10 * time.Second,
			GuardEntries: 11, KnownNetworks: 12, ListingMemory: 13 << 20,
		},
		Guard: Guard{
			Budgets: Budgets{
				Network: Budget{1, 2 * time.Second}, Account: Budget{3, 4 * time.Second}, KnownNetwork: Budget{5, 6 * time.Second},
				AccountNetwork: Budget{7, 8 * time.Second}, Network24: Budget{9, 10 * time.Second}, Network56: Budget{11, 12 * time.Second},
				Network48: Budget{13, 14 * time.Second}, OAuth: Budget{15, 16 * time.Second},
				Delay: 17 * time.Second, DryRun: true, StrictNIST: true,
			},
			AuthPolicy: AuthPolicy{
				URL: "https://policy.example/", APIKeyFile: "key", NonceFile: "/nonce", Timeout: 18 * time.Second, RejectOnFail: true, LogOnly: true,
			},
		},
		POP3:  POP3{Mode: "passthrough", OldServer: "old", LearnFrom: "old", LearnWait: 41 * time.Second, Shadow: Shadow{Concurrency: 3, PerSecond: 2}, UIDL: "cyrus", OnUnreadableRecord: "recompute", Delete: "hide", Lock: "wait", FirstListings: 2, EnableLast: true, Expire: "never", LoginDelay: time.Minute, UTF8: true},
		State: State{Path: "/var/lib/postern"},
		Log:   Log{Format: "json", Level: slog.LevelDebug, Fail2ban: "failed"},
		file:  "p.yaml",

		Metrics: Metrics{Address: "127.0.0.1:1", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, ReadyAddress: ":2"},
		Privacy: Privacy{Addresses: "full", Users: "full"}, Retention: Retention{Guard: 7, Ledger: 401, UIDLs: 31},
		Passwords: Passwords{Memory: 257 << 20},

		Control: Control{Socket: "run/control.sock", Group: "mail"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Parse =\n%+v, want\n%+v", got, want)
	}
}

func TestAMappingWithAllKeysCommentedOutKeepsTheDefaults(t *testing.T) {
	if _, err := Parse("p.yaml", []byte(good+"timeouts:\nguard:\n  network:\npop3:\ntrusted_networks:\n")); err != nil {
		t.Error(err)
	}
}

// Each case replaces old in good by new, or appends new where old is empty.
func TestEachMistakeIsNamedWithItsLineAndKey(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		// What stands where.
		{"unknown key", "", "acme: {}", `p.yaml:13: acme: unknown key; known here: accounts, backends, cluster, control, domains, guard, hostname, limits, listeners, log, metrics, passwords, policy, pop3, privacy, providers, retention, routes, sieve, state, submission, texts, timeouts, tls, trusted_networks`},
		{"unknown key, near a known one", "", "trusted-networks: []", `p.yaml:13: trusted-networks: unknown key; is trusted_networks meant?`},
		{"unknown key in place of a required one", `{protocol: pop3`, `{protcol: pop3`, `p.yaml:4: listeners[1].protcol: unknown key; is protocol meant?`},
		{"unknown key in a backend", "    imap:", "    iamp:", `p.yaml:11: backends.main.iamp: unknown key; is imap meant?`},
		{"unknown key that injects", "", `"a\nb.yaml:1: c": d`, `p.yaml:13: "a\nb.yaml:1: c": unknown key; known here: accounts, backends, cluster, control, domains, guard, hostname, limits, listeners, log, metrics, passwords, policy, pop3, privacy, providers, retention, routes, sieve, state, submission, texts, timeouts, tls, trusted_networks`},
		{"merge key", "", "<<: {log: {}}", `p.yaml:13: "<<": unknown key; known here: accounts, backends, cluster, control, domains, guard, hostname, limits, listeners, log, metrics, passwords, policy, pop3, privacy, providers, retention, routes, sieve, state, submission, texts, timeouts, tls, trusted_networks`},
		{"duplicate key", "", "hostname: mail.example.net", `p.yaml:13: hostname: written twice; the first is in line 1`},
		{"duplicate backend", "", "  main: {}", `p.yaml:13: backends.main: written twice; the first is in line 10`},
		{"key that is no word", "", "? [a, b]\n: c", `p.yaml:13: a key is a plain word`},
		{"list for a mapping", "", "log: [text]", `p.yaml:13: log: keys with values ("key: value" or {key: value}) is expected here, not a list ("- ..." or [...])`},
		{"mapping for a list", "", "routes: {backend: main}", `p.yaml:13: routes: a list ("- ..." or [...]) is expected here, not keys with values ("key: value" or {key: value})`},
		{"value for a mapping", "", "metrics: off", `p.yaml:13: metrics: keys with values ("key: value" or {key: value}) is expected here, not a single value`},
		{"list for a value", "mail.example.org", "[mail.example.org]", `p.yaml:1: hostname: a single value is expected here, not a list ("- ..." or [...]); put a value that begins with { or [ in quotes`},
		{"value for all", good, "hello", `p.yaml:1: keys with values ("key: value" or {key: value}) is expected here, not a single value`},
		{"no value", "hostname: mail.example.org", "hostname:", `p.yaml:1: hostname: has no value; give it one or remove the key`},
		{"anchor", "hostname: mail", "hostname: &name mail", `p.yaml:1: hostname: anchors (&) and aliases (*) are not supported; write the value out, and quote one that begins with such a sign`},
		{"alias", "", "x: &x {}\nlog: *x", "p.yaml:13: x: unknown key; known here: accounts, backends, cluster, control, domains, guard, hostname, limits, listeners, log, metrics, passwords, policy, pop3, privacy, providers, retention, routes, sieve, state, submission, texts, timeouts, tls, trusted_networks\np.yaml:14: log: anchors (&) and aliases (*) are not supported; write the value out, and quote one that begins with such a sign"},
		{"tag", "hostname: mail", "hostname: !!str mail", `p.yaml:1: hostname: tags (!) are not supported; quote a value that begins with !`},
		{"too many entries", "", "trusted_networks: [" + strings.Repeat("10.0.0.1,", maxNodes+1) + "]", `p.yaml:13: trusted_networks: too long; Postern reads 10000 entries at most`},
		{"second document", "", "---\nhostname: x", `p.yaml:13: a second document begins here; one file holds one configuration`},

		// Text that is not YAML.
		{"tab", "    imap:", "\timap:", `p.yaml:11: a tab in the indentation; indent with spaces`},
		{"unclosed brace", `":995"}`, `":995"`, `p.yaml:4: not YAML, here or in what begins here: did not find expected ',' or '}'`},
		{"unclosed quote", `":995"}`, `":995}`, `p.yaml:4: not YAML, here or in what begins here: did not find expected ',' or '}'`},
		{"colon in a value", "mail.example.org", "mail: example.org", `p.yaml:1: not YAML, here or in what begins here: mapping values are not allowed in this context; put a value that has ": " in it in quotes, and write the keys of one level in one column`},
		{"wrong indent", "  main:\n", " main:\n  x: y\n", `p.yaml:12: not YAML, here or in what begins here: mapping values are not allowed in this context; put a value that has ": " in it in quotes, and write the keys of one level in one column`},
		{"unknown alias", "", "log: *x", `p.yaml:13: log: put the value in quotes: log: "*x"`},
		{"tab after spaces", "    imap:", "  \timap:", `p.yaml:11: a tab in the indentation; indent with spaces`},
		{"tab for a key of a level", "", "pop3:\n  uidl: dovecot\n\tdelete: keep", `p.yaml:15: a tab in the indentation; indent with spaces`},
		{"port without quotes", `":995"`, `:995`, `p.yaml:4: address: put the value in quotes: address: ":995"`},
		{"IPv6 without quotes", `":995"`, `[::]:995`, `p.yaml:4: address: put the value in quotes: address: "[::]:995"`},
		{"IPv6 on a line of its own", "", "metrics:\n  address: [::1]:9090   # here", `p.yaml:14: address: put the value in quotes: address: "[::1]:9090"`},
		{"IPv6 in a list", "", "control: {}\nx:\n  - [::1]:9090", `p.yaml:15: put the value in quotes: "[::1]:9090"`},
		{"percent", "", "pop3:\n  uidl: %v.%u", `p.yaml:14: uidl: put the value in quotes: uidl: "%v.%u"`},
		{"percent in braces", "", "pop3: {uidl: %v.%u, delete: keep}", `p.yaml:13: uidl: put the value in quotes: uidl: "%v.%u"`},
		{"percent and spaces", "", "texts:\n  wrong: %s, no", `p.yaml:14: wrong: put the value in quotes: wrong: "%s, no"`},
		{"at", "mail.example.org", "@mail", `p.yaml:1: hostname: put the value in quotes: hostname: "@mail"`},
		{"star", "mail.example.org", "*:993", `p.yaml:1: hostname: put the value in quotes: hostname: "*:993"`},
		{"back quotes", "mail.example.org", "`mail`", "p.yaml:1: hostname: put the value in quotes: hostname: \"`mail`\""},
		{"brace", "mail.example.org", "{mail}", `p.yaml:1: hostname: a single value is expected here, not keys with values ("key: value" or {key: value}); put a value that begins with { or [ in quotes`},
		{"brace and more", "mail.example.org", "{mail}.example.org", `p.yaml:1: not YAML, here or in what begins here: did not find expected key; put a value that begins with { or [ in quotes`},
		{"Latin-1", "", "# f\xfcr", `p.yaml:13: not text in UTF-8: a control character, or a letter in another encoding`},
		{"control character", "", "# \x07", `p.yaml:13: not text in UTF-8: a control character, or a letter in another encoding`},

		// Values.
		{"host name", "mail.example.org", "mail example", `p.yaml:1: hostname: "mail example" is not a host name; write one such as mail.example.org`},
		{"host name that injects", "mail.example.org", `"mail\r\nQUIT"`, `p.yaml:1: hostname: "mail\r\nQUIT" is not a host name; write one such as mail.example.org`},
		{"duration without unit", "", "timeouts: {login: 60}", `p.yaml:13: timeouts.login: "60" is not a duration; 35 minutes is written 35m, an hour and a half 1h30m, ten seconds 10s`},
		{"duration in words", "", "timeouts: {login: 35 minutes}", `p.yaml:13: timeouts.login: "35 minutes" is not a duration; 35 minutes is written 35m, an hour and a half 1h30m, ten seconds 10s`},
		{"duration too short", "", "timeouts: {login: -5s}", `p.yaml:13: timeouts.login: -5s is too short; the least is 1s`},
		{"duration too long", "", "timeouts: {stall: 48h}", `p.yaml:13: timeouts.stall: 48h is too long; the most is 24h`},
		{"negative shutdown", "", "timeouts: {shutdown: -1s}", `p.yaml:13: timeouts.shutdown: -1s is too short; the least is 0s`},
		{"IMAP idle", "", "timeouts: {imap_idle: 29m}", `p.yaml:13: timeouts.imap_idle: 29m is too short; the least is 30m (RFC 9051 section 5.4)`},
		{"POP3 idle", "", "timeouts: {pop3_idle: 9m30s}", `p.yaml:13: timeouts.pop3_idle: 9m30s is too short; the least is 10m (RFC 1939 section 3)`},
		{"number", "", "limits: {max_connections: many}", `p.yaml:13: limits.max_connections: "many" is not a whole number`},
		{"number out of range", "", "limits: {network_connections: 0}", `p.yaml:13: limits.network_connections: 0 is out of range; use 1 to 1000000`},
		{"burst", "", "guard: {network: {burst: -1}}", `p.yaml:13: guard.network.burst: -1 is out of range; use 1 to 10000`},
		{"reserve", "", "limits: {max_connections: 10, reserve: 10}", `p.yaml:13: limits.reserve: 10 is out of range; use 0 to less than max_connections`},
		{"attempt_wait", "", "limits: {attempt_wait: 2m}", `p.yaml:13: limits.attempt_wait: 2m is too long; the most is 1m`},
		{"size without unit", "", "limits: {listing_memory: 256}", `p.yaml:13: limits.listing_memory: "256" is not a size; 256 mebibytes are written 256MiB, and there are KiB and GiB`},
		{"size in other units", "", "limits: {listing_memory: 256MB}", `p.yaml:13: limits.listing_memory: "256MB" is not a size; 256 mebibytes are written 256MiB, and there are KiB and GiB`},
		{"size that is negative", "", "limits: {listing_memory: -1MiB}", `p.yaml:13: limits.listing_memory: "-1MiB" is not a size; 256 mebibytes are written 256MiB, and there are KiB and GiB`},
		{"size without end", "", "limits: {listing_memory: 9000000000GiB}", `p.yaml:13: limits.listing_memory: "9000000000GiB" is not a size; 256 mebibytes are written 256MiB, and there are KiB and GiB`},
		{"size too small", "", "limits: {listing_memory: 1023KiB}", `p.yaml:13: limits.listing_memory: 1023KiB is out of range; use 1MiB to 1024GiB`},
		{"learning", "", "guard: {learning: 1000h}", `p.yaml:13: guard.learning: 1000h is too long; the most is 720h`},
		{"delay", "", "guard: {delay: 0s}", `p.yaml:13: guard.delay: 0s is too short; the least is 100ms`},
		{"unknown budget", "", "guard: {networks: {burst: 1}}", `p.yaml:13: guard.networks: unknown key; is network meant?`},
		{"guard of a listener", `":995"`, `":995", guard: {account_network: {burst: 0}}`, `p.yaml:4: listeners[1].guard.account_network.burst: 0 is out of range; use 1 to 10000`},
		{"sessions of a listener", `":995"`, `":995", guard: {account_sessions: 0}`, `p.yaml:4: listeners[1].guard.account_sessions: 0 is out of range; use 1 to 1000000`},
		{"what a listener's guard has not", `":995"`, `":995", guard: {policy: {}}`, `p.yaml:4: listeners[1].guard.policy: unknown key; known here: account, account_network, account_sessions, delay, dry_run, known_network, network, network_24, network_48, network_56, oauth, strict_nist`},
		{"policy server", "", "guard: {policy: {url: localhost}}", `p.yaml:13: guard.policy.url: "localhost" is not a URL such as http://127.0.0.1:8084/`},
		{"no policy server", "", "guard: {policy: {log_only: true}}", `p.yaml:13: guard.policy.url: missing; write that of the policy server, such as http://127.0.0.1:8084/`},
		{"policy timeout", "", "guard: {policy: {url: \"http://h/\", timeout: 1m}}", `p.yaml:13: guard.policy.timeout: 1m is too long; the most is 30s`},
		{"every", "", "guard: {account: {every: 0s}}", `p.yaml:13: guard.account.every: 0s is too short; the least is 1s`},
		{"network", "", "trusted_networks:\n  - 10.0.0.0/24\n  - webmail", `p.yaml:15: trusted_networks[1]: "webmail" is not a network; it is written 10.0.0.0/24 or 2001:db8::/64, a single address 10.0.0.40`},
		{"network with host bits", "", "trusted_networks: [10.0.0.40/24]", `p.yaml:13: trusted_networks[0]: "10.0.0.40/24" is an address inside its network; write 10.0.0.0/24 for all of the network or 10.0.0.40 for the address alone`},
		{"mapped network", "", `trusted_networks: ["::ffff:10.0.0.0/120"]`, `p.yaml:13: trusted_networks[0]: an IPv4 network is written without the prefix ::ffff`},
		{"true or false", `5:993"`, `5:993", insecure: yes`, `p.yaml:11: backends.main.imap.insecure: "yes" is neither true nor false`},
		{"lost state", "", "pop3: {on_unreadable_record: guess}", `p.yaml:13: pop3.on_unreadable_record: "guess" is not a way out; use refuse or recompute`},
		{"expire", "", "pop3: {expire: 30}", `p.yaml:13: pop3.expire: "30" is not a promise; use never`},
		{"login delay", "", "pop3: {login_delay: 10ms}", `p.yaml:13: pop3.login_delay: 10ms is too short; the least is 1s, or 0 for none`},
		{"delete", "", "pop3: {delete: yes}", `p.yaml:13: pop3.delete: "yes" is not a meaning of DELE; use expunge, isolate, trash, hide or keep`},
		{"delete of a listener", `{protocol: pop3`, `{pop3: {delete: yes, lock: dot}, protocol: pop3`, "p.yaml:4: listeners[1].pop3.delete: \"yes\" is not a meaning of DELE; use expunge, isolate, trash, hide or keep\np.yaml:4: listeners[1].pop3.lock: \"dot\" is not a kind of lock; use allow, wait, refuse or takeover"},
		{"pop3 of another listener", `{protocol: imap`, `{pop3: {delete: keep}, protocol: imap`, `p.yaml:3: listeners[0].pop3: has no meaning for imap; remove it`},
		{"unknown key of a listener's pop3", `{protocol: pop3`, `{pop3: {uidl: cyrus}, protocol: pop3`, `p.yaml:4: listeners[1].pop3.uidl: unknown key; known here: delete, lock, mode`},
		{"first listings", "", "pop3: {first_listings: 0}", `p.yaml:13: pop3.first_listings: 0 is out of range; use 1 to 1000`},
		{"lock", "", "pop3: {lock: dot}", `p.yaml:13: pop3.lock: "dot" is not a kind of lock; use allow, wait, refuse or takeover`},
		{"bodies of submission", "tls: starttls", "stable_bodies: true", `p.yaml:12: backends.main.submission: stable_bodies and sizes_are_estimates belong to imap; remove them`},
		{"control socket", "", "control: {socket: /" + strings.Repeat("s", 103) + "}", `p.yaml:13: control.socket: the control socket "/` + strings.Repeat("s", 79) + `"... has a path of 104 octets, and a socket's may have 103: set control.socket to a shorter one, or off`},
		{"control socket beside the state", "", "state: {path: /" + strings.Repeat("s", 90) + "}", `p.yaml:13: state.path: the control socket "/` + strings.Repeat("s", 79) + `"... has a path of 104 octets, and a socket's may have 103: set control.socket to a shorter one, or off`},
		{"control group", "", "state: {path: /s}\ncontrol: {group: mail}", `p.yaml:14: control.group: needs control.socket, in a directory that the group can enter: state.path is for Postern's user alone`},
		{"log format", "", "log: {format: xml}", `p.yaml:13: log.format: "xml" is not a log format; use auto, text, json or journald`},
		{"log level", "", "log: {level: INFO}", `p.yaml:13: log.level: "INFO" is not a log level; use debug, error, info or warn`},
		{"TLS profile", "tls:\n", "tls:\n  profile: old\n", `p.yaml:7: tls.profile: "old" is not a profile; use modern, compatible or legacy`},
		{"TLS profile of a listener", `":993"`, `":993", tls_profile: ssl3`, `p.yaml:3: listeners[0].tls_profile: "ssl3" is not a profile; use modern, compatible or legacy`},
		{"TLS profile without TLS", `":993"`, `":993", tls: refuse, tls_profile: legacy`, `p.yaml:3: listeners[0].tls_profile: has no meaning with tls: refuse; remove it`},
		{"networks of one listener", `":995"`, `":995", networks: [10.0.0.0/8]`, `p.yaml:4: listeners[1].networks: choose among listeners at one address; one for all other clients, without networks, is missing at ":995"`},
		{"no networks", `":995"`, `":995", networks: []`, `p.yaml:4: listeners[1].networks: none; write those of the clients, or remove the key`},
		{"networks at port 0", `":995"`, `":0", networks: [10.0.0.0/8]`, `p.yaml:4: listeners[1].networks: have no meaning at port 0, which is another for each listener`},
		{"networks of another protocol", `":995"`, `":993", networks: [10.0.0.0/8]`, `p.yaml:4: listeners[1].protocol: listeners[0] has another at the same address`},
		{"networks behind another balancer", `  - {protocol: pop3`, `  - {protocol: imap, address: ":993", networks: [10.0.0.0/8], proxy_from: [10.1.1.1]}
  - {protocol: pop3`, `p.yaml:4: listeners[1].proxy_from: listeners[0] has others at the same address`},
		{"networks twice", `  - {protocol: pop3`, `  - {protocol: imap, address: ":993", networks: [10.0.0.0/8]}
  - {protocol: imap, address: ":993", networks: [192.0.2.1, 10.1.0.0/16]}
  - {protocol: pop3`, `p.yaml:5: listeners[2].networks[1]: 10.1.0.0/16 overlaps the networks of listeners[1] at the same address`},
		{"two for all other clients", `  - {protocol: pop3`, `  - {protocol: imap, address: ":993", networks: [10.0.0.0/8]}
  - {protocol: imap, address: ":993"}
  - {protocol: pop3`, `p.yaml:5: listeners[2].address: ":993" overlaps listeners[0].address in line 3`},
		{"a long value is shortened", "mail.example.org", strings.Repeat("x", 300), `p.yaml:1: hostname: "` + strings.Repeat("x", 80) + `"... is not a host name; write one such as mail.example.org`},

		// Listeners.
		{"no listeners", `  - {protocol: imap, address: ":993"}
  - {protocol: pop3, address: ":995"}
  - {protocol: submission, address: ":465"}
`, "", `p.yaml:2: listeners: none; at least one is needed, such as - {protocol: imap, address: ":993"}`},
		{"protocol", "protocol: pop3", "protocol: pop3s", `p.yaml:4: listeners[1].protocol: "pop3s" is not a protocol; use imap, pop3, submission or sieve`},
		{"no protocol", "protocol: pop3, ", "", `p.yaml:4: listeners[1].protocol: missing; use imap, pop3, submission or sieve`},
		{"no address", `, address: ":995"`, "", `p.yaml:4: listeners[1].address: missing; write a port such as ":993" or an IP address and a port such as "192.0.2.1:993"`},
		{"address without colon", `":995"`, "995", `p.yaml:4: listeners[1].address: "995" lacks a colon; write ":995"`},
		{"address without port", `":995"`, "192.0.2.1", `p.yaml:4: listeners[1].address: "192.0.2.1" is not an address with a port, such as "192.0.2.1:993"`},
		{"IPv6 address without port", `":995"`, `"2001:db8::1"`, `p.yaml:4: listeners[1].address: "2001:db8::1" lacks a port; write "[2001:db8::1]:993" or another`},
		{"named port", `":995"`, `":pop3s"`, `p.yaml:4: listeners[1].address: "pop3s" is not a port; use a number from 1 to 65535`},
		{"port out of range", `":995"`, `":65536"`, `p.yaml:4: listeners[1].address: "65536" is not a port; use a number from 1 to 65535`},
		{"host name to listen at", `":995"`, `"localhost:995"`, `p.yaml:4: listeners[1].address: "localhost" is not an IP address; write one, or only the port (":995") to listen on all addresses`},
		{"the same address", `":995"`, `":993"`, `p.yaml:4: listeners[1].address: ":993" overlaps listeners[0].address in line 3`},
		{"an address among all", `":995"`, `"127.0.0.1:993"`, `p.yaml:4: listeners[1].address: "127.0.0.1:993" overlaps listeners[0].address in line 3`},
		{"an unspecified address", `":995"`, `"[::]:993"`, `p.yaml:4: listeners[1].address: "[::]:993" overlaps listeners[0].address in line 3`},
		{"ready_address at metrics.address", "", `metrics: {address: ":1", ready_address: ":1"}`, `p.yaml:13: metrics.ready_address: ":1" overlaps metrics.address in line 13`},
		{"networks of no metrics", "", `metrics: {address: off, networks: [10.0.0.0/8]}`, `p.yaml:13: metrics.networks: has no meaning with metrics.address: off; remove one of them`},
		{"part of an address", "", "privacy: {addresses: some}", `p.yaml:13: privacy.addresses: "some" is not a part of an address; use full, prefix or none`},
		{"name of an account", "", "privacy: {users: none}", `p.yaml:13: privacy.users: "none" is not a way to name an account; use full or pseudonym`},
		{"bans without addresses", "", "privacy: {addresses: prefix}\nlog: {fail2ban: f}", `p.yaml:14: log.fail2ban: its lines have addresses and accounts, which privacy keeps out of logs; remove one of the two`},
		{"retention without unit", "", "retention: {ledger: 400}", `p.yaml:13: retention.ledger: "400" is not a number of days; 30 days are written 30d`},
		{"retention too short", "", "retention: {uidls: 7d}", `p.yaml:13: retention.uidls: 7d is too short; the least is 30d; clients that return later may download all mail again`},
		{"retention of the guard", "", "retention: {guard: 0d}", `p.yaml:13: retention.guard: 0d is too short; the least is 1d`},
		{"passwords that no backend uses", "", "passwords: {file: passwd}", `p.yaml:13: passwords: are used by no backend: all servers get the client's own password, and check it; remove them`},
		{"passwords of too little memory", "", "passwords: {memory: 64KiB}", `p.yaml:13: passwords.memory: 64KiB is out of range; use 1MiB to 1024GiB`},
		{"devices without a key", "", "passwords: {devices: true}\nstate: {path: state}", "p.yaml:13: passwords: are used by no backend: all servers get the client's own password, and check it; remove them\np.yaml:13: passwords.devices: needs state.path, where devices are kept, and state.key_file, the key of their hashes"},
		{"passwords of an unknown backend", "", "passwords: {backend: mian}", "p.yaml:13: passwords: are used by no backend: all servers get the client's own password, and check it; remove them\np.yaml:13: passwords.backend: \"mian\" is not a backend; is main meant?"},
		{"record without a place", "", "state: {path: state, record: {}}", `p.yaml:13: state.record: has neither postgres nor owner; write postgres: {url: ...} or owner: HOST:PORT`},
		{"record in two places", "", "state: {path: state, key_file: k, record: {postgres: {url: x}, owner: \"h:1\"}}", `p.yaml:13: state.record: has both postgres and owner; remove one of them`},
		{"record without state", "", "state: {record: {owner: \"h:1\"}}", `p.yaml:13: state.record: needs state.path, where the rest of the state is kept`},
		{"record without a URL", "", "state: {path: state, record: {postgres: {ca: x}}}", `p.yaml:13: state.record.postgres.url: missing; write it without a password, such as postgres://postern@db.example.org/postern`},
		{"owner without a key", "", "state: {path: state, record: {owner: \"h:1\"}}", `p.yaml:13: state.record.owner: needs state.key_file, the same as the owner's: by it the two know each other`},
		{"owner without a port", "", "state: {path: state, key_file: k, record: {owner: h}}", `p.yaml:13: state.record.owner: "h" is not a host and a port; write cluster.serve_record of the Postern that keeps the record, such as 10.0.0.11:7993`},
		{"serves what it has not", "", "state: {path: state, key_file: k, record: {owner: \"h:1\"}}\ncluster: {serve_record: \":7993\"}", `p.yaml:14: cluster.serve_record: this Postern keeps no record that it could serve: state.record says where it is; remove one of them`},
		{"serves without a key", "", "state: {path: state}\ncluster: {serve_record: \":7993\"}", `p.yaml:14: cluster.serve_record: needs state.path, where the record is, and state.key_file, by which the other Posterns and this one know each other`},
		{"key file without state", "", "state: {key_file: state.key}", `p.yaml:13: state.key_file: has no meaning without state.path, where what the key is for would be kept; set state.path, or remove the key`},
		{"retention too long", "", "retention: {ledger: 4000d}", `p.yaml:13: retention.ledger: 4000d is too long; the most is 3650d`},
		{"ledger shorter than UIDLs", "", "retention: {ledger: 100d}", `p.yaml:13: retention.ledger: 100d is shorter than retention.uidls, 400d: the ledger has the day of the last login`},
		{"metrics at a listener's address", "", `metrics: {address: "127.0.0.1:465"}`, `p.yaml:13: metrics.address: "127.0.0.1:465" overlaps listeners[2].address in line 5`},
		{"a listener at the default metrics address", `":995"`, `":9930"`, `p.yaml:1: metrics.address: "127.0.0.1:9930" overlaps listeners[1].address in line 4`},
		{"listener name", `{protocol: pop3`, `{name: "a b", protocol: pop3`, `p.yaml:4: listeners[1].name: "a b" is not a name; use letters, digits, - and _`},

		// Certificates.
		{"no tls", "tls:\n  certificates:\n    - {cert: mail.pem, key: mail.key}\n", "", `p.yaml:1: tls.certificates: none; the listeners need one, such as - {cert: /etc/postern/tls/mail.pem, key: /etc/postern/tls/mail.key}`},
		{"no certificates", "    - {cert: mail.pem, key: mail.key}\n", "", `p.yaml:7: tls.certificates: none; the listeners need one, such as - {cert: /etc/postern/tls/mail.pem, key: /etc/postern/tls/mail.key}`},
		{"no cert", "cert: mail.pem, ", "", `p.yaml:8: tls.certificates[0].cert: missing; write the path of the certificate chain in PEM form`},
		{"no key", ", key: mail.key", "", `p.yaml:8: tls.certificates[0].key: missing; write the path of the certificate's private key in PEM form`},

		// Backends and routes.
		{"no backends", good[strings.Index(good, "backends:"):], "", `p.yaml:1: backends: none; at least one is needed, such as main: {imap: {address: "10.0.0.5:993"}}`},
		{"backend name", "", "  two words: {}", `p.yaml:13: backends."two words": "two words" is not a name; use letters, digits, - and _`},
		{"empty backend", "", "  empty: {}\nroutes: [{backend: main}]", `p.yaml:13: backends.empty: has neither imap, pop3, submission nor sieve; give it at least one`},
		{"connections of an account", "", "    account_connections: {imap: -1, submission: 1000001, sieve: 3}\n    account_wait: 2m", `p.yaml:13: backends.main.account_connections.imap: -1 is out of range; use 1 to 1000000, or 0 for no limit
p.yaml:13: backends.main.account_connections.submission: 1000001 is out of range; use 1 to 1000000, or 0 for no limit
p.yaml:13: backends.main.account_connections.sieve: the backend has no sieve; remove it
p.yaml:14: backends.main.account_wait: 2m is too long; the most is 1m`},
		{"kind of TLS", "tls: starttls", "tls: ssl", `p.yaml:12: backends.main.submission.tls: "ssl" is not a kind of TLS; use implicit, starttls or none`},
		{"plain text over a network", "tls: starttls", "tls: none", `p.yaml:12: backends.main.submission.tls: none would send passwords in the clear to "10.0.0.5:587"; use implicit or starttls, or say insecure: true`},
		{"insecure beside TLS", "tls: starttls", "tls: starttls, insecure: true", `p.yaml:12: backends.main.submission.insecure: allows tls: none and nothing else; remove it, as tls is starttls`},
		{"CA without TLS", `"10.0.0.5:587", tls: starttls`, `"127.0.0.1:587", tls: none, ca: ca.pem`, `p.yaml:12: backends.main.submission.ca: has no meaning with tls: none; remove one of them`},
		{"server name without TLS", `"10.0.0.5:587", tls: starttls`, `"[::1]:587", tls: none, server_name: mx`, `p.yaml:12: backends.main.submission.server_name: has no meaning with tls: none; remove one of them`},
		{"server name", "tls: starttls", "server_name: m x", `p.yaml:12: backends.main.submission.server_name: "m x" is not a host name`},
		{"no server address", `{address: "10.0.0.5:993"}`, "{}", `p.yaml:11: backends.main.imap.address: missing; write a host and a port such as "10.0.0.5:993"`},
		{"server address without host", `"10.0.0.5:993"`, `":993"`, `p.yaml:11: backends.main.imap.address: ":993" begins with no host name or IP address`},
		{"server address with half an IP address", `"10.0.0.5:993"`, `"10.0.0:993"`, `p.yaml:11: backends.main.imap.address: "10.0.0:993" begins with no host name or IP address`},
		{"server port 0", `"10.0.0.5:993"`, `"10.0.0.5:0"`, `p.yaml:11: backends.main.imap.address: "10.0.0.5:0" has no port to connect to`},
		{"server address without port", `"10.0.0.5:993"`, `mx.internal`, `p.yaml:11: backends.main.imap.address: "mx.internal" is not an address with a port, such as "192.0.2.1:993"`},
		{"no IMAP server", `    imap: {address: "10.0.0.5:993"}` + "\n", "", "p.yaml:3: listeners[0].protocol: imap needs backends.main.imap, which is missing\np.yaml:4: listeners[1].protocol: pop3 needs backends.main.imap, which is missing"},
		{"no old server", "", "pop3: {mode: passthrough}\n", `p.yaml:4: listeners[1].protocol: pop3 needs backends.main.pop3, which is missing; write it, or the name of a backend that has one in pop3.old_server`},
		{"no old server for a route", "", "routes: [{domain: example.org, backend: main, pop3_mode: passthrough}, {backend: main}]\n", `p.yaml:4: listeners[1].protocol: pop3 needs backends.main.pop3, which is missing; write it, or the name of a backend that has one in pop3.old_server`},
		{"shadow without a state", "", "  old: {pop3: {address: \"127.0.0.1:110\", tls: none}}\nroutes: [{backend: main}]\npop3: {mode: shadow, old_server: old}\n", `p.yaml:15: pop3.mode: shadow needs state.path, where the unique ids are recorded`},
		{"shadow of a route without an old server", "", "routes: [{backend: main, pop3_mode: shadow}]\nstate: {path: /s}\n", `p.yaml:4: listeners[1].protocol: pop3 needs backends.main.pop3, which is missing; write it, or the name of a backend that has one in pop3.old_server`},
		{"shadow of nothing", "", "pop3: {shadow: {concurrency: 0, per_second: 2000}}\n", "p.yaml:13: pop3.shadow.concurrency: 0 is out of range; use 1 to 1000\np.yaml:13: pop3.shadow.per_second: 2000 is out of range; use 1 to 1000"},
		{"learning from an unknown backend", "", "pop3: {learn_from: odl}\n", `p.yaml:13: pop3.learn_from: "odl" is not a backend; use main`},
		{"learning from a backend without pop3", "", "pop3: {learn_from: main}\n", `p.yaml:13: pop3.learn_from: backend main has no pop3 server: write backends.main.pop3, or the name of another backend`},
		{"learning without a state", "", "  old: {pop3: {address: \"127.0.0.1:110\", tls: none}}\nroutes: [{backend: main}]\npop3: {learn_from: old}\n", `p.yaml:15: pop3.learn_from: needs state.path, where the unique ids are recorded`},
		{"learning for no time", "", "pop3: {learn_wait: 0s}\n", `p.yaml:13: pop3.learn_wait: 0s is too short; the least is 1s`},
		{"an unknown old server", "", "pop3: {old_server: odl}\n", `p.yaml:13: pop3.old_server: "odl" is not a backend; use main`},
		{"an old server without pop3", "", "pop3: {old_server: main}\n", `p.yaml:13: pop3.old_server: backend main has no pop3 server: write backends.main.pop3, or the name of another backend`},
		{"mode", "", "pop3: {mode: shadowy}\n", `p.yaml:13: pop3.mode: "shadowy" is not a mode; use bridge, passthrough or shadow`},
		{"mode of a listener", `{protocol: pop3`, `{pop3: {mode: pass}, protocol: pop3`, `p.yaml:4: listeners[1].pop3.mode: "pass" is not a mode; use bridge, passthrough or shadow`},
		{"mode of a route", "", "routes: [{backend: main, pop3_mode: pass}]\n", `p.yaml:13: routes[0].pop3_mode: "pass" is not a mode; use bridge, passthrough or shadow`},
		{"kind of an old server", "", "    pop3: {address: \"10.0.0.5:995\", kind: exchange}\n", `p.yaml:13: backends.main.pop3.kind: "exchange" is not a kind of server; use dovecot, cyrus, courier, popa3d, solid-pop3d, mailutils, qpopper or other`},
		{"identity of an old server", "", "    pop3: {address: \"10.0.0.5:995\", identity: xclient}\n", `p.yaml:13: backends.main.pop3.identity: "xclient" is not a way to tell this server who the client is; use proxy-v1, proxy-v2 or none`},
		{"no submission server", `    submission: {address: "10.0.0.5:587", tls: starttls}` + "\n", "", `p.yaml:5: listeners[2].protocol: submission needs backends.main.submission, which is missing`},
		{"route to nowhere", "", "routes: [{backend: elsewhere}]", `p.yaml:13: routes[0].backend: "elsewhere" is not a backend; use main`},
		{"route to a misspelt backend", "", "routes: [{backend: mian}]", `p.yaml:13: routes[0].backend: "mian" is not a backend; is main meant?`},
		{"route without backend", "", "routes: [{}]", `p.yaml:13: routes[0].backend: missing; write the name of a backend`},
		{"listener's TLS", `address: ":995"`, `address: ":995", tls: none`, `p.yaml:4: listeners[1].tls: "none" is not a way to TLS; use implicit, starttls or refuse`},
		{"balance", "tls: starttls", "balance: random", `p.yaml:12: backends.main.submission.balance: "random" is not a way to choose an address; use least or hash`},
		{"identity", "tls: starttls", "identity: id", `p.yaml:12: backends.main.submission.identity: "id" is not a way to tell this server who the client is; use xclient, xclient-login, proxy-v1, proxy-v2 or none`},
		{"kind", "tls: starttls", "kind: cyrus", `p.yaml:12: backends.main.submission.kind: "cyrus" is not a kind of server; use dovecot, postfix, exim, exchange, gmail, stalwart or other`},
		{"LOGIN without IMAP", "", "  sub: {submission: {address: \"10.0.0.6:25\", identity: xclient-login}}\nroutes: [{backend: main}]", `p.yaml:13: backends.sub.submission.identity: xclient-login needs an imap server in the same backend, which verifies the password`},
		{"source", "tls: starttls", "source: [here]", `p.yaml:12: backends.main.submission.source[0]: "here" is not an IP address`},
		{"max_connections", "tls: starttls", "max_connections: -1", `p.yaml:12: backends.main.submission.max_connections: -1 is out of range; 0 is no limit`},
		{"address and addresses", "tls: starttls", `addresses: ["10.0.0.6:587"]`, `p.yaml:12: backends.main.submission.addresses: stands beside address; write all of them here`},
		{"one of the addresses", `address: "10.0.0.5:587"`, `addresses: ["10.0.0.6:587", "10.0.0.7"]`, `p.yaml:12: backends.main.submission.addresses[1]: "10.0.0.7" is not an address with a port, such as "192.0.2.1:993"`},
		{"route with two keys", "", "routes: [{file: f, domain: example.org, backend: main}, {backend: main}]", `p.yaml:13: routes[0]: has more than one of file, hook and domain; write a route for each`},
		{"hook with a backend", "", "routes: [{hook: \"http://127.0.0.1/\", backend: main}, {backend: main}]", `p.yaml:13: routes[0].backend: has no meaning beside hook, which answers with one; remove it`},
		{"hook", "", "routes: [{hook: 127.0.0.1}, {backend: main}]", `p.yaml:13: routes[0].hook: "127.0.0.1" is not a URL such as http://127.0.0.1:8082/route`},
		{"route domain", "", "routes: [{domain: \"@x\", backend: main}, {backend: main}]", `p.yaml:13: routes[0].domain: "@x" is not a domain`},
		{"timeout without hook", "", "routes: [{timeout: 1s, backend: main}]", `p.yaml:13: routes[0]: timeout and cache belong to a hook; remove them`},
		{"no route for the rest", "", "routes: [{domain: example.org, backend: main}]", `p.yaml:13: routes: leave some logins without a backend; end with one that takes the rest, - {backend: ...}`},
		{"default domain", "", "accounts: {default_domain: a b}", `p.yaml:13: accounts.default_domain: "a b" is not a domain`},
		{"rewrite", "", `accounts: {rewrite: [{match: "(", to: x}]}`, "p.yaml:13: accounts.rewrite[0].match: error parsing regexp: missing closing ): `(`"},
		{"rewrite to nothing", "", `accounts: {rewrite: [{match: "x"}]}`, `p.yaml:13: accounts.rewrite[0].to: missing; write what the name becomes, such as $1`},
		{"text beyond ASCII", "", "texts: {wrong: falsches Paßwort}", `p.yaml:13: texts.wrong: holds more than ASCII, which POP3 and SMTP cannot say`},
		{"text too long", "", "domains: [{domain: example.org, texts: {wrong: " + strings.Repeat("x", 301) + "}}]", `p.yaml:13: domains[0].texts.wrong: has 301 octets; the protocols leave room for 300`},
		{"bare newlines", "", "submission: {bare_newlines: keep}", `p.yaml:13: submission.bare_newlines: "keep" is not a way with them; use normalize, reject or pass`},
		{"two routes", "", "routes: [{backend: main}, {backend: main}]", `p.yaml:13: routes[1]: never reached, as routes[0] takes every login; remove one of them`},
		{"several backends and no route", "", `  other: {imap: {address: "10.0.0.6:993"}}`, `p.yaml:1: routes: missing; with several backends one has to be chosen, such as - {backend: main}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := good + c.new
			if c.old != "" {
				text = strings.Replace(good, c.old, c.new, 1)
			}
			if text == good {
				t.Fatal("the case changes nothing")
			}
			_, err := Parse("p.yaml", []byte(text))
			if err == nil || err.Error() != c.want {
				t.Errorf("Parse:\n%v\nwant:\n%s", err, c.want)
			}
		})
	}
}

func TestAListenerMayHaveItsOwnPOP3(t *testing.T) {
	cfg, err := Parse("p.yaml", []byte(strings.Replace(good, "{protocol: pop3", "{pop3: {delete: keep}, protocol: pop3", 1)+"pop3: {delete: hide, lock: wait, enable_last: true}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.POP3.At(cfg.Listeners[1]); got.Delete != "keep" || got.Lock != "wait" || !got.EnableLast {
		t.Errorf("the listener has %+v", got)
	}
	if got := cfg.POP3.At(cfg.Listeners[0]); got != cfg.POP3 {
		t.Errorf("another one has %+v, want %+v", got, cfg.POP3)
	}
}

func TestAListenerNameIsUnique(t *testing.T) {
	text := strings.Replace(good, "{protocol: imap", "{name: mail, protocol: imap", 1)
	text = strings.Replace(text, "{protocol: pop3", "{name: mail, protocol: pop3", 1)
	_, err := Parse("p.yaml", []byte(text))
	if want := `p.yaml:4: listeners[1].name: "mail" is the name of listeners[0] already`; err == nil || err.Error() != want {
		t.Errorf("Parse:\n%v\nwant:\n%s", err, want)
	}
}

// Criterion: unknown key, duplicate key, missing file, bad duration and an address twice are all named in one go, each with file, line and key.
func TestAllMistakesAreNamedInOneGo(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, dir, "postern.yaml", `hostnam: mail.example.org
listeners:
  - {protocol: imap, address: ":993"}
  - {protocol: imaps, address: "127.0.0.1:993"}
tls:
  certificates:
    - cert: mail.pem
      key: mail.key
backends:
  main:
    imap: {address: "127.0.0.1:143", tls: none}
timeouts:
  login: 35 minutes
  dial: 5s
  dial: 6s
log: text
`)
	_, err := Load(path)
	want := strings.NewReplacer("FILE", path, "DIR", dir).Replace(`FILE:1: hostnam: unknown key; is hostname meant?
FILE:4: listeners[1].protocol: "imaps" is not a protocol; use imap, pop3, submission or sieve
FILE:4: listeners[1].address: "127.0.0.1:993" overlaps listeners[0].address in line 3
FILE:7: tls.certificates[0].cert: DIR/mail.pem does not exist: put the file there, or write the path of yours
FILE:8: tls.certificates[0].key: DIR/mail.key does not exist: put the file there, or write the path of yours
FILE:13: timeouts.login: "35 minutes" is not a duration; 35 minutes is written 35m, an hour and a half 1h30m, ten seconds 10s
FILE:15: timeouts.dial: written twice; the first is in line 14
FILE:16: log: keys with values ("key: value" or {key: value}) is expected here, not a single value`)
	if err == nil || err.Error() != want {
		t.Errorf("Load:\n%v\nwant:\n%s", err, want)
	}
	errs, ok := errors.AsType[Errors](err)
	if !ok || len(errs) == 0 {
		t.Fatalf("Load returned a %T, want Errors", err)
	}
	if got, want := errs[1], (Error{path, 4, 6, "listeners[1].protocol", `"imaps" is not a protocol; use imap, pop3, submission or sieve`}); got != want {
		t.Errorf("second mistake is %+v, want %+v", got, want)
	}
}

func TestAFileThatCannotBeReadIsNoMistakeInIt(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "postern.yaml"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of no file: %v, want %v", err, fs.ErrNotExist)
	}
	path := writeFile(t, t.TempDir(), "postern.yaml", strings.Repeat("#", maxFile+1))
	_, err = Load(path)
	if want := "read configuration: " + path + " is larger than 1048576 bytes"; err == nil || err.Error() != want {
		t.Errorf("Load of a large file: %v, want %s", err, want)
	}
}

func TestFilesAreJudgedByWhatIsInThem(t *testing.T) {
	for _, c := range []struct{ name, cert, key, ca, want string }{
		{"good", "mail.pem", "mail.key", "mail.pem", ""},
		{"key and certificate in one file", "both.pem", "both.pem", "both.pem", ""},
		{"another key", "mail.pem", "other.key", "mail.pem", "FILE:8: tls.certificates[0].key: DIR/other.key and DIR/mail.pem are no pair: tls: private key does not match public key"},
		{"a certificate for a key", "mail.pem", "other.pem", "mail.pem", "FILE:8: tls.certificates[0].key: DIR/other.pem and DIR/mail.pem are no pair: tls: found a certificate rather than a key in the PEM for the private key"},
		{"a key for a certificate", "mail.key", "mail.key", "mail.pem", "FILE:8: tls.certificates[0].cert: DIR/mail.key holds no certificate in PEM form"},
		{"a broken certificate", "broken.pem", "mail.key", "mail.pem", "FILE:8: tls.certificates[0].cert: DIR/broken.pem holds a certificate that cannot be read: x509: malformed certificate"},
		{"a folder", ".", "mail.key", "mail.pem", "FILE:8: tls.certificates[0].cert: read DIR: is a directory"},
		{"no CA file", "mail.pem", "mail.key", "none.pem", "FILE:11: backends.main.imap.ca: DIR/none.pem does not exist: put the file there, or write the path of yours"},
		{"no CA in the file", "mail.pem", "mail.key", "postern.yaml", "FILE:11: backends.main.imap.ca: DIR/postern.yaml holds no certificate in PEM form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			writePair(t, dir, "mail")
			writePair(t, dir, "other")
			writeFile(t, dir, "both.pem", readTestFile(t, dir, "mail.key")+readTestFile(t, dir, "mail.pem"))
			writeFile(t, dir, "broken.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})))
			text := strings.NewReplacer("mail.pem", c.cert, "mail.key", c.key, `5:993"`, `5:993", ca: `+c.ca).Replace(good)
			path := writeFile(t, dir, "postern.yaml", text)
			got := ""
			if _, err := Load(path); err != nil {
				got = err.Error()
			}
			want := strings.NewReplacer("FILE", path, "DIR", dir).Replace(c.want)
			if got != want {
				t.Errorf("Load:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestMistakesFoundLaterHaveALine(t *testing.T) {
	cfg, err := Parse("p.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	for key, line := range map[string]int{
		"listeners[1].address": 4, "listeners[1].name": 4, "listeners": 2, "backends.main.imap.ca": 11,
		"timeouts.login": 1, "": 1,
	} {
		if got := cfg.Errorf(key, "refused").Line; got != line {
			t.Errorf("line of %q = %d, want %d", key, got, line)
		}
	}
	if got, want := cfg.Errorf("listeners[0].address", "%s is taken", ":993").Error(), "p.yaml:3: listeners[0].address: :993 is taken"; got != want {
		t.Errorf("Errorf = %q, want %q", got, want)
	}
}

// Criterion: configs/postern.yaml, the documented example, loads and names every key.
func TestTheExampleLoadsAndNamesEveryKey(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, "mail")
	writePair(t, dir, "internal-ca")
	writeFile(t, dir, "customers", "example.org\n")
	text := strings.ReplaceAll(readTestFile(t, ".", "postern.yaml"), "/etc/postern/tls", dir)
	cfg, err := Load(writeFile(t, dir, "postern.yaml", text))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keysOf(reflect.TypeFor[Config]()) {
		if !strings.Contains(text, key+":") && !strings.Contains(text, "\n#   "+key+" ") {
			t.Errorf("the example does not name the key %s", key)
		}
	}

	// What is commented out are the defaults, and means what it says when it
	// is not.
	all := strings.NewReplacer(
		"\n  # - ", "\n  - ", "\n    # submission:", "\n  other:\n    submission:", "\n    # sieve:", "\n    sieve:", "\n  # ", "\n  ",
	).Replace(text)
	same, err := Load(writeFile(t, dir, "all.yaml", all))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Config{cfg, same} {
		c.file, c.positions = "", nil
	}
	if acme := same.TLS.ACME; acme == nil || acme.OnDemand == nil || len(acme.Names) != 1 {
		t.Errorf("without comment signs the example has the ACME configuration %+v", acme)
	}
	same.TLS.ACME = nil
	same.Listeners = same.Listeners[:len(cfg.Listeners)]
	main := same.Backends["main"]
	main.Sieve = nil
	same.Backends["main"] = main
	delete(same.Backends, "other")
	delete(same.Backends, "farm")
	delete(same.Backends, "old")
	same.POP3.OldServer, same.POP3.LearnFrom = "", "" // no default that could be shown
	if len(same.Routes) != 4 || len(same.Domains) != 1 || same.Protocols.File == "" || same.Control.Group == "" || same.Texts.Plaintext == "" || len(same.Accounts.Rewrite) != 1 {
		t.Errorf("without comment signs the example is\n%+v", same)
	}
	// These have no default that could be shown.
	same.Routes, same.Domains, same.Protocols, same.Texts = cfg.Routes, nil, cfg.Protocols, cfg.Texts
	same.Accounts.DefaultDomain, same.Accounts.Rewrite, same.Control.Group = "", nil, ""
	same.Guard.AuthPolicy.URL, same.Log.Fail2ban = "", ""
	same.Metrics.Networks, same.Metrics.ReadyAddress = nil, ""
	if !reflect.DeepEqual(cfg, same) {
		t.Errorf("without comment signs the example is\n%+v, want\n%+v", same, cfg)
	}
}

// keys is every key of t's fields and of what they hold.
func keysOf(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Pointer:
		return keysOf(t.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var all []string
	for field := range t.Fields() {
		switch key := field.Tag.Get("yaml"); key {
		case "":
		case ",inline":
			all = append(all, keysOf(field.Type)...)
		default:
			all = append(append(all, key), keysOf(field.Type)...)
		}
	}
	return all
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(""))
	f.Add([]byte("a: &a [*a, *a]\n<<: *a\n? {b: c}\n: !!x d\n---\n"))
	f.Add([]byte("backends: {m: {imap: {address: \"[::1]:143\", tls: none}}}\ntrusted_networks: [::1, 10.0.0.0/8]\ntimeouts: {login: 1h}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("p.yaml", data)
		if (cfg == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v; want one of them", cfg, err)
		}
		if err == nil {
			return
		}
		errs, ok := errors.AsType[Errors](err)
		if !ok || len(errs) == 0 {
			t.Fatalf("Parse returned the error %#v, want Errors", err)
		}
		lines := 1
		for _, r := range string(data) {
			if strings.ContainsRune("\r\n\u2028\u2029", r) { // YAML's line breaks
				lines++
			}
		}
		for _, e := range errs {
			// The end of a text that ends in a line break is a line, too.
			if e.Line < 1 || e.Line > lines {
				t.Errorf("mistake in line %d of %d: %v", e.Line, lines, e)
			}
			if strings.ContainsAny(e.Error(), "\r\n") {
				t.Errorf("a mistake is more than a line: %q", e.Error())
			}
		}
	})
}

func writeFile(t *testing.T, dir, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readTestFile(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// writePair writes a self-signed certificate, NAME.pem, and its key, NAME.key.
func writePair(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	writeFile(t, dir, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}
