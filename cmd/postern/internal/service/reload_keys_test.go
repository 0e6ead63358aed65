package service

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/proxytest"
)

const needsRestart = ""

// reloaded has for each key of the configuration, or the section that it is in, the test
// that proves that a reload changes it; needsRestart: none does.
var reloaded = map[string]string{
	"hostname":         "TestAReloadTakesEffect",
	"listeners":        "TestReloadBreaksNoSession",
	"tls":              "TestConfigureReplacesSources",
	"backends":         "TestAReloadTakesEffect",
	"providers":        "TestAReloadKeepsTokens",
	"routes":           "TestAReloadTakesEffect",
	"accounts":         "TestAReloadTakesEffect",
	"policy":           "TestAReloadTakesEffect",
	"texts":            "TestAReloadTakesEffect",
	"domains":          "TestAReloadTakesEffect",
	"trusted_networks": "TestAReloadTakesEffect",
	"timeouts":         "TestAReloadTakesEffect",
	"pop3":             "TestAReloadTakesEffect",
	"submission":       "TestAReloadTakesEffect",
	"sieve":            "TestAReloadTakesEffect",

	"limits.max_connections":     "TestReloadForgetsNothing",
	"limits.reserve":             "TestReloadForgetsNothing",
	"limits.network_connections": "TestReloadForgetsNothing",
	"limits.network_logins":      "TestReloadForgetsNothing",
	"limits.account_sessions":    "TestAReloadTakesEffect",
	"limits.attempts":            "TestReloadGivesNewSlotsToTheQueue",
	"limits.attempt_wait":        "TestReloadForgetsNothing",
	"limits.listing_memory":      "TestAReloadTakesEffect",
	"limits.park":                "TestAReloadTakesEffect",
	"limits.guard_entries":       needsRestart,
	"limits.known_networks":      needsRestart,

	"guard":          "TestAReloadTakesEffect",
	"guard.learning": needsRestart, // if it becomes longer
	"guard.policy":   "TestAReloadTakesEffect",

	"state.path":     needsRestart,
	"state.key_file": "TestScripts",
	"state.record":   needsRestart,
	"cluster":        needsRestart,
	"control.socket": needsRestart,
	"control.group":  needsRestart,

	"metrics.address":       "TestReloadRefusesAnAddressThatChangesHands",
	"metrics.ready_address": "TestReloadRefusesAnAddressThatChangesHands",
	"metrics.networks":      "TestAReloadTakesEffect",

	"log.format":   needsRestart,
	"log.level":    "TestAReloadTakesEffect",
	"log.fail2ban": needsRestart,

	"privacy":          "TestAReloadTakesEffect",
	"retention.guard":  "TestAReloadTakesEffect",
	"retention.ledger": "TestAReloadTakesEffect",
	"retention.uidls":  "TestAReloadTakesEffect",
	"passwords":        "TestAReloadReplacesTheStoresOfPasswords",
}

// Criterion: a reload changes every key of the configuration, or is refused because the key needs a restart, and says so.
func TestEveryKeyIsReloadedOrNeedsARestart(t *testing.T) {
	tests := testNames(t)
	for key, test := range reloaded {
		if test != needsRestart && !tests[test] {
			t.Errorf("%s: there is no test %s", key, test)
		}
	}
	base := func() *configs.Config {
		cfg, err := configs.Parse("postern.yaml", []byte(`
hostname: mail.example.org
listeners: [{protocol: imap, address: ":993"}]
tls: {certificates: [{cert: a, key: b}]}
backends: {main: {imap: {address: "192.0.2.1:993"}}}
state: {path: /var/lib/postern}
control: {socket: /run/postern/control.sock}
`))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	used := map[string]bool{}
	walkConfig(reflect.ValueOf(base()).Elem(), "", nil, func(key string, index [][]int) {
		in := key
		for {
			if _, ok := reloaded[in]; ok {
				break
			}
			i := strings.LastIndexByte(in, '.')
			if i < 0 {
				t.Errorf("%s: is it reloaded, and which test proves it?", key)
				return
			}
			in = in[:i]
		}
		used[in] = true
		changed := base()
		v := reflect.ValueOf(changed).Elem()
		for _, i := range index {
			v = v.FieldByIndex(i)
		}
		change(t, key, v)
		s := &Service{}
		s.current.Store(&generation{cfg: base()})
		err := s.checkRestartOnly(changed)
		mistakes, _ := errors.AsType[configs.Errors](err)
		reported := len(mistakes) == 1 && mistakes[0].Key == key
		if reloaded[in] == needsRestart && !reported || reloaded[in] != needsRestart && err != nil {
			t.Errorf("a change of %s: %v", key, err)
		}
	})
	for key := range reloaded {
		if !used[key] {
			t.Errorf("%s is no key", key)
		}
	}
}

// walkConfig visits the fields of v that are not structs, with their key.
func walkConfig(v reflect.Value, prefix string, index [][]int, visit func(key string, index [][]int)) {
	for f, field := range v.Fields() {
		name := f.Tag.Get("yaml")
		if name == "" {
			continue
		}
		key := strings.TrimPrefix(prefix+"."+name, ".")
		if name == ",inline" {
			key = prefix
		}
		at := append(slices.Clone(index), f.Index)
		if field.Kind() == reflect.Struct && field.NumField() > 0 && field.Type().Field(0).Tag.Get("yaml") != "" {
			walkConfig(field, key, at, visit)
		} else {
			visit(key, at)
		}
	}
}

// change gives v another value.
func change(t *testing.T, key string, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Struct: // a Budget
		v.Set(reflect.Zero(v.Type()))
	default:
		t.Fatalf("%s: cannot change %s", key, v.Type())
	}
}

// testNames returns the names of all tests of this module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../../../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Criterion: what a reload changes is in force for the next connection: backends, routes, accounts, policy, texts, limits, guard, privacy, log level.
func TestAReloadTakesEffect(t *testing.T) {
	cert, key, _ := proxytest.CertFiles(t)
	before, _ := inMemory(t, "before", "alice")
	after, _ := inMemory(t, "after", "alice@example.org", "bob@example.org")
	sieve := greetingServer(t, "\"IMPLEMENTATION\" \"Dovecot\"\r\n\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n\"VERSION\" \"1.0\"\r\nOK\r\n")
	dir := t.TempDir()
	path, address := filepath.Join(dir, "postern.yaml"), proxytest.FreeAddress(t)
	write := func(name, text string) string {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	common := fmt.Sprintf("listeners: [{protocol: pop3, address: %q}, {protocol: sieve, address: %q}]\ntls: {certificates: [{cert: %q, key: %q}]}\ncontrol: {socket: off}\nmetrics: {address: %q", address, proxytest.FreeAddress(t), cert, key, proxytest.FreeAddress(t))
	write("postern.yaml", common+fmt.Sprintf("}\nhostname: one.example.org\nbackends: {main: {imap: {address: %q, tls: none}, sieve: {address: %q, tls: none}}}\ntexts: {wrong: Ask one}\n", before, sieve))
	cfg, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	store, err := certs.New(CertificateSources(cfg))
	if err != nil {
		t.Fatal(err)
	}
	r := startServiceWith(t, cfg, store, t.Output())
	s := r.service
	s.path = path
	login := func(user, password, want string) {
		t.Helper()
		client := tls.Client(r.dial(t, "pop3"), &tls.Config{InsecureSkipVerify: true})
		proxytest.Transcript(t, client, fmt.Sprintf("S: +OK *\nC: USER %s\nS: +OK *\nC: PASS %s\nS: %s", user, password, want))
	}
	login("alice", "secret of alice", "+OK *")
	login("alice", "wrong", "-ERR \\[AUTH] *Ask one*")

	proxytest.Transcript(t, r.dial(t, "sieve"), `S: "IMPLEMENTATION" "Postern"`)

	policy := write("policy", "bob@example.org pop3:off\n")
	write("postern.yaml", common+fmt.Sprintf(`, networks: [192.0.2.0/24]}
hostname: two.example.org
backends: {main: {imap: {address: %q, tls: none}, sieve: {address: %q, tls: none}}, other: {imap: {address: %q, tls: none}, sieve: {address: %q, tls: none}}}
routes: [{domain: example.org, backend: other}, {backend: main}]
accounts: {default_domain: example.org}
policy: {file: %q}
texts: {wrong: Ask two}
domains: [{domain: example.org, texts: {wrong: Ask example.org}}]
trusted_networks: [198.51.100.0/24]
timeouts: {login: 17s}
limits: {account_sessions: 7, listing_memory: 64MiB, park: false}
guard: {account_network: {burst: 3, every: 1h}, policy: {url: "http://127.0.0.1:1/"}}
pop3: {login_delay: 1s}
submission: {bare_newlines: reject}
sieve: {announce_implementation: false}
log: {level: debug}
privacy: {addresses: prefix}
retention: {guard: 7d, ledger: 70d, uidls: 60d}
`, before, sieve, after, sieve, policy))
	done := make(chan error, 1)
	s.changes <- changeRequest{s.reload, done}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	login("bob", "secret of bob@example.org", "-ERR *")
	login("alice", "secret of alice@example.org", "+OK *")
	login("alice", "wrong", "-ERR \\[AUTH] *Ask example.org*")

	proxytest.Transcript(t, r.dial(t, "sieve"), `S: "IMPLEMENTATION" ""`)

	g := s.current.Load()
	e := s.guard.Explain("pop3", "carol", netip.MustParseAddr("198.51.100.1"))
	pair := slices.IndexFunc(e.Buckets, func(b guard.State) bool { return b.Bucket == guard.Pair })
	sessions := slices.IndexFunc(e.Buckets, func(b guard.State) bool { return b.Bucket == guard.Sessions })
	for what, ok := range map[string]bool{
		"hostname":              g.cfg.Hostname == "two.example.org",
		"trusted_networks":      e.Trusted,
		"timeouts.login":        g.cfg.Timeouts.Login == 17*time.Second,
		"guard.account_network": pair >= 0 && e.Buckets[pair].Burst == 3,
		"limits.sessions":       sessions >= 0 && e.Buckets[sessions].AtOnce == 7,
		"guard.policy":          g.policy != nil,
		"limits.park":           !s.server.Parks(),
		"pop3.login_delay":      g.pop3.delay != nil,
		"log.level":             s.level.Level() == slog.LevelDebug,
		"privacy":               s.redaction.Load().Addresses == "prefix",
		"metrics.networks":      s.metrics.Allows(netip.MustParseAddr("192.0.2.1")) && !s.metrics.Allows(netip.MustParseAddr("192.0.3.1")),
	} {
		if !ok {
			t.Errorf("%s is as before", what)
		}
	}
}

// greetingServer starts a server that greets and answers nothing, and returns its address.
func greetingServer(t *testing.T, greeting string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(c, greeting)
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
	}()
	return ln.Addr().String()
}
