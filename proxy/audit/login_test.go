package audit_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"postern/proxy"
	"postern/proxy/audit"
	"postern/proxy/proxytest"
)

func newJSONLog() (*audit.Log, *bytes.Buffer) {
	var out bytes.Buffer
	return audit.New(slog.New(slog.NewJSONHandler(&out, nil))), &out
}

// fieldsOf reads the only line of out.
func fieldsOf(t *testing.T, out *bytes.Buffer) map[string]any {
	t.Helper()
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Fatalf("%d lines, want 1:\n%s", n, out)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return fields
}

// Criterion: each login has one event, in JSON, with all that is known of it:
// who, from where, how, by which TLS, what the guard made of it and why.
func TestEachLoginHasOneEvent(t *testing.T) {
	c := visitor
	c.TLS = &tls.ConnectionState{
		Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, CurveID: tls.X25519MLKEM768,
		ServerName: "mail.example.org", NegotiatedProtocol: "pop3",
	}
	network := netip.MustParsePrefix("192.0.2.1/32")
	common := []string{
		"time", "level", "msg", "listener", "ip", "session", "tls", "cipher", "needs", "protocol", "port", "via", "group", "server_name", "alpn",
		"user_octets", "network", "tier", "duration",
	}
	for _, test := range []struct {
		name    string
		attempt proxy.Attempt
		more    map[string]any
	}{
		{
			"right",
			proxy.Attempt{Err: nil, Backend: "main", ID: map[string]string{"name": "Mutt", "version": "2\r\n"}, Decision: proxy.Decision{Tier: "stranger_fresh", New: true}},
			map[string]any{"account": "alice", "backend": "main", "client_id": "name=Mutt version=2??", "new_network": true},
		},
		{
			"wrong",
			proxy.Attempt{Err: proxy.NewRefusal(proxy.Wrong, nil), Delay: 1990 * time.Millisecond, Decision: proxy.Decision{Tier: "known_good"}},
			map[string]any{"reason": "wrong", "account_hash": nil, "name_shape": "no_domain", "delay": float64(1990 * time.Millisecond), "err": nil},
		},
		{
			"wrong again",
			proxy.Attempt{Err: proxy.NewRefusal(proxy.Wrong, nil), Decision: proxy.Decision{Tier: "known_good", Repeat: true}},
			map[string]any{"reason": "wrong", "account_hash": nil, "name_shape": "no_domain", "repeat": true, "err": nil},
		},
		{
			"throttled",
			proxy.Attempt{Err: proxy.NewRefusal(proxy.Throttled, nil), Decision: proxy.Decision{Tier: "stranger_used", Bucket: "pair", RetryAfter: 90 * time.Second}},
			map[string]any{"reason": "throttled", "account_hash": nil, "name_shape": "no_domain", "bucket": "pair", "retry_after": "1m30s", "err": nil},
		},
		{
			"dry run",
			proxy.Attempt{Decision: proxy.Decision{Tier: "stranger_used", Bucket: "pair", RetryAfter: time.Second, DryRun: true}},
			map[string]any{"account": "alice", "bucket": "pair", "retry_after": "1s", "dry_run": true},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, out := newJSONLog()
			e := test.attempt
			e.Client, e.Via, e.User, e.Account, e.Decision.Network = c, proxy.ViaPlain, "Alice", "alice", network
			a.Observe(e)
			got := fieldsOf(t, out)
			want := slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(test.more)), common...)))
			if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
				t.Errorf("the event has %s\nwant %s", keys, want)
			}
			for key, value := range test.more {
				if value != nil && fmt.Sprint(got[key]) != fmt.Sprint(value) {
					t.Errorf("%s is %v, want %v", key, got[key], value)
				}
			}
			if got["user_octets"] != 5.0 || got["port"] != 4711.0 || got["network"] != "192.0.2.1/32" || got["group"] != "X25519MLKEM768" {
				t.Errorf("the event is %v", got)
			}
		})
	}
}

// Criterion: whatever a client calls itself, its event is one line of valid
// JSON, and no name in it is longer than 256 octets or hides what it is.
func TestOddNamesAreOneLineOfJSON(t *testing.T) {
	for _, odd := range []string{
		"a\r\nb", "\x1b[2J\x1b]0;title\x07", "\u202egro.elpmaxe\u202c", "\u2066x\u2069\u200f\u2028\u2029", "a\x00b", strings.Repeat("x", 64<<10),
		strings.Repeat("é", 64<<10), "\xff\xfe", `"}` + "\n" + `{"msg":"forged"}`, "<b>",
	} {
		for _, known := range []bool{true, false} {
			a, out := newJSONLog()
			a.Known = func(string) bool { return known }
			client := visitor
			client.TLS = &tls.ConnectionState{ServerName: odd, NegotiatedProtocol: odd}
			e := proxy.Attempt{Client: client, Via: proxy.ViaPlain, User: odd, Account: odd, ID: map[string]string{odd: odd}, Err: proxy.NewRefusal(proxy.Wrong, nil)}
			a.Observe(e)
			wantPlain(t, fieldsOf(t, out))
			out.Reset()
			e.Err = nil
			a.Observe(e)
			wantPlain(t, fieldsOf(t, out))
			out.Reset()
			a.Observe(proxy.Closed{Client: client, Account: odd, End: proxy.EndClientQuit})
			wantPlain(t, fieldsOf(t, out))
			var failures bytes.Buffer
			a.Failures = &failures
			e.Err = proxy.NewRefusal(proxy.Wrong, nil)
			a.Observe(e)
			if line := failures.String(); strings.Count(line, "\n") != 1 || strings.ContainsAny(line, "\r\x00\x1b\u202e") || strings.Count(line, ">") != 2 {
				t.Errorf("the line of the failure is %q", line)
			}
		}
	}
}

func wantPlain(t *testing.T, fields map[string]any) {
	t.Helper()
	for key, value := range fields {
		text := fmt.Sprint(value)
		if len(text) > 256 || strings.ContainsAny(text, "\r\n\x00\x1b\x07\u202e\u2066\u2028\u2029") || !utf8.ValidString(text) {
			t.Errorf("%s is %q", key, text)
		}
	}
}

// Criterion: fail2ban's own filter for Dovecot matches each wrong password, and
// neither the same one again, nor what is throttled, nor a success.
func TestFail2banReadsTheFailures(t *testing.T) {
	proxytest.Need(t, "fail2ban-regex")
	a, _ := newJSONLog()
	a.Known = func(account string) bool { return account == "alice" }
	var failures bytes.Buffer
	a.Failures = &failures
	wrong := proxy.NewRefusal(proxy.Wrong, nil)
	var want []string
	for i, protocol := range []string{proxy.IMAP, proxy.POP3, proxy.Submission, proxy.Sieve} {
		for j, e := range []proxy.Attempt{
			{Account: "alice", Err: wrong, Via: proxy.ViaPlain, Duration: 2 * time.Second}, // these two
			{Account: "bob", User: "bob", Err: wrong, Via: proxy.ViaOAuthBearer},
			{Account: "alice", Err: wrong, Decision: proxy.Decision{Repeat: true}},
			{Account: "alice", Err: wrong, Decision: proxy.Decision{Bucket: "policy_server"}},
			{Account: "alice", Err: proxy.NewRefusal(proxy.Throttled, nil)},
			{Account: "alice", Err: proxy.NewRefusal(proxy.Unavailable, nil)},
			{Account: "alice", Err: proxy.NewRefusal(proxy.Malformed, nil)},
			{Account: "alice"},
		} {
			e.Client = visitor
			e.Client.Protocol = protocol
			e.Client.Addr = netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:4711", 10*i+j))
			if j == 1 {
				e.Client.TLS = &tls.ConnectionState{}
				e.Client.Addr = netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%d]:4711", i))
			}
			if j < 2 {
				want = append(want, e.Client.Addr.Addr().String())
			}
			e.Client.Local = netip.MustParseAddrPort("10.0.0.1:993")
			a.Observe(e)
		}
	}
	path := filepath.Join(t.TempDir(), "failed-logins.log")
	if err := os.WriteFile(path, failures.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "fail2ban-regex", "-o", "ip", path, "dovecot").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := strings.Fields(string(out))
	if !slices.Equal(got, want) || strings.Contains(failures.String(), "bob") {
		t.Errorf("fail2ban finds %q, want %q, in\n%s", got, want, &failures)
	}
}
