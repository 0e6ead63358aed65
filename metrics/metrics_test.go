package metrics

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/proxy"
)

func config() Config {
	return Config{
		Version: "1.2.3",
		Labels: Labels{
			Listeners: []Listener{{"imaps", proxy.IMAP}, {"pop3s", proxy.POP3}, {"submissions", proxy.Submission}, {"imaps-2", proxy.IMAP}},
			Backends:  []Backend{{"main", proxy.IMAP}, {"main", proxy.Submission}, {"old", proxy.IMAP}},
			Providers: []string{"contoso"},
		},

		Decisions: Decisions{Tiers: []string{"known", "stranger"}, Buckets: []string{"pair", "network"}},
		Guard:     func() Guard { return Guard{} },
		Stores:    []string{"uidl", "listings"},
		Policy: func() Policy {
			return Policy{Off: PolicyLines{Accounts: 2}, Ending: PolicyLines{Accounts: 3, Domains: 1}, Ended: PolicyLines{All: true}}
		},
		Pools: func() []Pool { return []Pool{{Backend: Backend{"main", proxy.IMAP}}} },
		State: func() State { return State{Broken: map[string]bool{"record.db": false}} },
	}
}

func get(t *testing.T, h http.Handler, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// scrape returns the values of postern's series, by name and labels.
func scrape(t *testing.T, m *Metrics) map[string]string {
	t.Helper()
	status, body := get(t, m.Handler(), "/metrics")
	if status != http.StatusOK {
		t.Fatalf("GET /metrics: status %d\n%s", status, body)
	}
	all := make(map[string]string)
	for line := range strings.Lines(body) {
		if i := strings.LastIndexByte(line, ' '); strings.HasPrefix(line, "postern_") {
			all[line[:i]] = strings.TrimSpace(line[i+1:])
		}
	}
	return all
}

func client(service, protocol string) proxy.Client {
	return proxy.Client{ID: "abc", Service: service, Protocol: protocol, Addr: netip.MustParseAddrPort("192.0.2.1:1024")}
}

// everything is each event once.
func everything(c proxy.Client, text string) []proxy.Event {
	c.TLS = &tls.ConnectionState{Version: tls.VersionTLS13}
	err := errors.New(text)
	return []proxy.Event{
		proxy.Accepted{Client: c},
		proxy.Rejected{Client: c, Err: err},
		proxy.Handshake{Client: c, Result: text, Err: err},
		proxy.Handshake{Client: c, Result: proxy.HandshakeOK},
		proxy.Attempt{Client: c, Via: text, User: text, Account: text},
		proxy.Attempt{Client: c, Via: text, User: text, Err: proxy.NewRefusal(proxy.Wrong, err)},
		proxy.Attempt{Client: c, Decision: proxy.Decision{Tier: text, Bucket: text}},
		proxy.PolicyRequested{Command: text, Result: text, Err: err},
		proxy.Opened{Client: c, Account: text, Backend: text},
		proxy.Closed{Client: c, Account: text, Backend: text, End: text, Err: err},
		proxy.Dialed{Backend: text, Protocol: text, Result: text, Err: err},
		proxy.BackendLogin{Backend: text, Protocol: text, Err: err},
		proxy.AcceptFailed{Service: text, Err: err},
		proxy.AccountQueued{Client: c, Account: text, Backend: text, Protocol: text, Result: text, Err: err},
		proxy.AccountThrottled{Client: c, Account: text, Backend: text, Protocol: text},
		proxy.Probed{Backend: text, Protocol: text, Err: err},
		proxy.MaildropOpened{Client: c, Source: text},
		proxy.POP3Command{Command: text},
		proxy.MessageSent{Command: text},
		proxy.MaildropNoticed{Client: c, Account: text, Kind: text, Err: err},
		proxy.MailboxChanged{Backend: text, Account: text, Kind: text, Refused: true},
		proxy.BrakeChanged{Backend: text, On: true, Err: err},
		proxy.ListingRefused{Reason: text},
		proxy.Reconnected{Client: c, Account: text, Backend: text, Cause: text, Result: text, Err: err},
		proxy.UIDLsLearnt{Client: c, Account: text, Backend: text, Err: err},
		proxy.ShadowCompared{Client: c, Account: text, Backend: text, Result: text, Learnt: 1, Missing: 1, Err: err},
		proxy.UpdateFailed{Client: c, Stage: text, Err: err},
		proxy.PasswordChecked{Store: text, Err: err},
		proxy.TokenRequested{Provider: text, Kind: text, Result: text, Err: err},
		proxy.Routed{Source: text, Result: text, Err: err},
		proxy.IMAPCommand{Command: text, Result: text},
		proxy.StateUsed{Store: text, Operation: text, Err: err},
		proxy.CertificateObtained{Name: text}, proxy.CertificateFailed{Name: text, Err: errors.New(text)},
		proxy.CertificateDenied{Name: text, Reason: text},
		proxy.Panicked{Client: c, Value: text, Stack: []byte(text)},
	}
}

func TestNamesAreLintFree(t *testing.T) {
	c := config()
	c.Certificates = func() []Certificate { return []Certificate{{Name: "mail.example.org", Source: "file"}} }
	c.Findings = func() map[string]int { return map[string]int{"expired": 1} }
	m := New(c)
	m.Handler()
	for _, e := range everything(client("imaps", proxy.IMAP), "text") {
		m.Observe(e)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Criterion: Every series of logins is there, at 0, before anybody has logged in.
func TestSeriesOfLoginsAreThereFromTheStart(t *testing.T) {
	series := scrape(t, New(config()))
	results := []string{
		"ok", "invalid_credentials", "temporary_failure", "rate_limited", "malformed",
		"unsupported_mechanism", "client_abort", "tls_required", "forbidden",
	}
	n := 0
	for protocol, mechanisms := range map[string][]string{
		"imap":       {"plain", "login", "xoauth2", "oauthbearer", "login_command", "other"},
		"pop3":       {"plain", "login", "xoauth2", "oauthbearer", "userpass", "other"},
		"submission": {"plain", "login", "xoauth2", "oauthbearer", "other"},
	} {
		for _, mechanism := range mechanisms {
			for _, result := range results {
				n++
				name := fmt.Sprintf("postern_auth_attempts_total{mechanism=%q,protocol=%q,result=%q}", mechanism, protocol, result)
				if series[name] != "0" {
					t.Errorf("%s = %q, want 0", name, series[name])
				}
			}
		}
	}
	for name := range series {
		if strings.HasPrefix(name, "postern_auth_attempts_total") {
			n--
		}
	}
	if n != 0 {
		t.Errorf("%d more series of logins are expected than there are", n)
	}
}

// What an alert asks for must be there before it happens.
func TestAllFamiliesAreThereFromTheStart(t *testing.T) {
	series := scrape(t, New(config()))
	for _, name := range []string{
		`build_info{goversion="go.*",revision=".+",version="1.2.3"}`,
		`connections_accepted_total{listener="imaps-2",protocol="imap"}`,
		`connections_rejected_total{listener="pop3s",reason="too_many"}`,
		`connections_open{listener="imaps",protocol="imap"}`,
		`connection_duration_seconds_count{protocol="submission"}`,
		`tls_handshakes_total{listener="imaps",reason="cipher",result="error",version="1.0"}`,
		`tls_profile_needed_total{listener="imaps",profile="legacy"}`,
		`tls_handshake_duration_seconds_bucket{listener="pop3s",le="0.001"}`,
		`tls_handshake_duration_seconds_bucket{listener="pop3s",le="16.384"}`,
		`tls_negotiated_total{resumed="true",version="1.3"}`,
		`client_received_bytes_total{protocol="pop3"}`,
		`client_sent_bytes_total{protocol="pop3"}`,
		`auth_duration_seconds_count{protocol="imap",result="rate_limited"}`,
		`guard_attempts_total{decision="let_through",tier="known"}`,
		`guard_attempts_total{decision="refused",tier="stranger"}`,
		`guard_attempts_total{decision="repeated",tier="stranger"}`,
		`rate_limited_total{scope="network"}`,
		`auth_policy_requests_total{command="allow",result="tarpit"}`,
		`auth_policy_request_duration_seconds_count{command="report"}`,
		`guard_failure_ratio`,
		`guard_failing_accounts`,
		`guard_failing_networks`,
		`guard_sprayed_accounts`,
		`guard_learning`,
		`guard_dry_run`,
		`guard_entries`,
		`guard_known_networks`,
		`guard_sessions`,
		`guard_stranger_connections`,
		`guard_attempts_in_flight`,
		`guard_attempts_waiting`,
		`guard_evictions_total`,
		`guard_shed_connections_total`,
		`sessions_active{protocol="imap"}`,
		`sessions_total{end="drain",protocol="imap"}`,
		`backend_up{backend="main",protocol="submission"}`,
		`backend_dials_total{backend="old",result="tls"}`,
		`backend_dial_duration_seconds_count{backend="old"}`,
		`backend_login_duration_seconds_count{backend="main",protocol="imap"}`,
		`pop3_commands_total{command="UIDL",result="error"}`,
		`pop3_command_duration_seconds_count{command="QUIT"}`,
		`pop3_maildrop_load_duration_seconds_count{source="full"}`,
		`pop3_maildrop_messages_bucket{le="262144"}`,
		`pop3_messages_retrieved_total{command="TOP"}`,
		`pop3_messages_deleted_total`,
		`pop3_update_failures_total{stage="expunge"}`,
		`pop3_message_size_bytes_bucket{le="2.68435456e+08"}`,
		`pop3_size_mismatches_total`,
		`pop3_messages_without_final_crlf_total`,
		`pop3_maildrop_notices_total{kind="cache_failed"}`,
		`pop3_maildrop_notices_total{kind="not_proven"}`,
		`pop3_maildrop_notices_total{kind="record_failed"}`,
		`pop3_maildrop_notices_total{kind="recomputed"}`,
		`pop3_maildrop_notices_total{kind="renumbered"}`,
		`pop3_maildrop_notices_total{kind="uidls_changed"}`,
		`pop3_uidvalidity_changes_total`,
		`pop3_uidls_changed_total`,
		`backend_errors_total{backend="main",kind="unavailable",protocol="submission"}`,
		`backend_errors_total{backend="old",kind="bye",protocol="imap"}`,
		`backend_connections_open{backend="main",protocol="imap"}`,
		`backend_source_ports_used{backend="main",protocol="imap"}`,
		`route_lookups_total{result="error",source="hook"}`,
		`route_lookup_duration_seconds_count{source="hook_cache"}`,
		`imap_client_commands_total{command="SELECT",result="no"}`,
		`imap_client_command_duration_seconds_count{command="FETCH BODY"}`,
		`state_operations_total{operation="update",result="error",store="uidl"}`,
		`state_operation_duration_seconds_count{operation="get",store="listings"}`,
		`acme_operations_total{operation="renew",result="error"}`,
		`acme_operation_duration_seconds_count{operation="obtain"}`,
		`acme_denied_total{reason="not_allowed"}`,
		`log_messages_total{level="error"}`,
		`pop3_reconnects_total{backend="old",cause="bye",result="renumbered"}`,
		`pop3_reconnects_total{backend="main",cause="closed",result="ok"}`,
		`pop3_reconnects_total{backend="main",cause="silent",result="failed"}`,
		`pop3_brake{backend="main"}`,
		`pop3_mailbox_changes_total{backend="old",kind="emptied"}`,
		`pop3_mailbox_changes_total{backend="main",kind="uidnext"}`,
		`pop3_brake_refusals_total{backend="main"}`,
		`pop3_listing_refusals_total{reason="too_long"}`,
		`panics_total`,
		`draining`,
	} {
		pattern := regexp.MustCompile("^postern_" + strings.NewReplacer("{", `\{`, "}", `\}`, "+08", `\+08`).Replace(name) + "$")
		found := 0
		for s, value := range series {
			if !pattern.MatchString(s) {
				continue
			}
			found++
			if want := strings.HasPrefix(name, "build_info"); (value == "1") != want || (value == "0") == want {
				t.Errorf("%s = %s at the start", s, value)
			}
		}
		if found != 1 {
			t.Errorf("%d series are %s, want 1", found, name)
		}
	}
}

// moved returns how the scrape differs after events: only sums and counts of
// histograms, not their buckets.
func moved(t *testing.T, m *Metrics, events ...proxy.Event) (changes []string) {
	t.Helper()
	before := scrape(t, m)
	for _, e := range events {
		m.Observe(e)
	}
	for name, value := range scrape(t, m) {
		if before[name] != value && !strings.Contains(name, "_bucket") {
			changes = append(changes, strings.TrimPrefix(name, "postern_")+" "+value)
		}
	}
	slices.Sort(changes)
	return changes
}

func TestEventsMoveTheirCounters(t *testing.T) {
	pop3 := client("pop3s", proxy.POP3)
	resumed := pop3
	resumed.TLS = &tls.ConnectionState{Version: tls.VersionTLS12, DidResume: true}
	tests := []struct {
		name   string
		events []proxy.Event
		want   []string
	}{
		{"a connection that never logs in", []proxy.Event{
			proxy.Accepted{Client: pop3},
			proxy.Closed{Client: pop3, Duration: 2 * time.Second, Received: 3, Sent: 4, End: proxy.EndRefused},
		}, []string{
			`client_received_bytes_total{protocol="pop3"} 3`,
			`client_sent_bytes_total{protocol="pop3"} 4`,
			`connection_duration_seconds_count{protocol="pop3"} 1`,
			`connection_duration_seconds_sum{protocol="pop3"} 2`,
			`connections_accepted_total{listener="pop3s",protocol="pop3"} 1`,
		}},
		{"mailboxes that look different", []proxy.Event{
			proxy.MailboxChanged{Backend: "main", Kind: proxy.ChangeEmptied},
			proxy.MailboxChanged{Backend: "main", Kind: proxy.ChangeEmptied, Refused: true},
			proxy.MailboxChanged{Backend: "main", Kind: proxy.ChangeEmptied, Repeated: true, Refused: true},
			proxy.MailboxChanged{Backend: "old", Kind: proxy.ChangeUIDValidity, Accepted: true},
			proxy.BrakeChanged{Backend: "main", On: true},
			proxy.BrakeChanged{Backend: "old", On: true}, proxy.BrakeChanged{Backend: "old"},
		}, []string{
			`pop3_brake_refusals_total{backend="main"} 2`,
			`pop3_brake{backend="main"} 1`,
			`pop3_mailbox_changes_total{backend="main",kind="emptied"} 2`,
		}},
		{"listings without memory", []proxy.Event{proxy.ListingRefused{Reason: proxy.ListingsFull}, proxy.ListingRefused{Reason: proxy.ListingTooLong}}, []string{
			`pop3_listing_refusals_total{reason="full"} 1`,
			`pop3_listing_refusals_total{reason="too_long"} 1`,
		}},
		{"an open connection", []proxy.Event{proxy.Accepted{Client: pop3}}, []string{
			`connections_accepted_total{listener="pop3s",protocol="pop3"} 1`,
			`connections_open{listener="pop3s",protocol="pop3"} 1`,
		}},
		{"a refused connection", []proxy.Event{
			proxy.Rejected{Client: pop3, Err: proxy.NewRefusal(proxy.TooMany, nil)},
			proxy.Rejected{Client: pop3, Err: io.EOF},
			proxy.Rejected{Client: pop3, Err: io.ErrClosedPipe},
			proxy.Rejected{Client: pop3, Err: fmt.Errorf("%w: UDP", proxy.ErrProxyHeader)},
			proxy.Rejected{Client: pop3, Err: fmt.Errorf("%w: timeout", proxy.ErrNoProxyHeader)},
			proxy.Accepted{Client: pop3},
			proxy.Closed{Client: pop3, End: proxy.EndRefused, Err: proxy.NewRefusal(proxy.Plaintext, proxy.ErrUnexpectedProxyHeader)},
		}, []string{
			`connection_duration_seconds_count{protocol="pop3"} 1`,
			`connections_accepted_total{listener="pop3s",protocol="pop3"} 1`,
			`connections_rejected_total{listener="pop3s",reason="bad_proxy_header"} 1`,
			`connections_rejected_total{listener="pop3s",reason="health_check"} 1`,
			`connections_rejected_total{listener="pop3s",reason="no_proxy_header"} 1`,
			`connections_rejected_total{listener="pop3s",reason="other"} 1`,
			`connections_rejected_total{listener="pop3s",reason="too_many"} 1`,
			`connections_rejected_total{listener="pop3s",reason="unexpected_proxy_header"} 1`,
		}},
		{"certificates that clients reject", []proxy.Event{
			proxy.Handshake{Client: pop3, Result: proxy.HandshakeClientAbort, Reason: proxy.RejectedCertificate, Version: tls.VersionTLS13, Err: io.EOF},
			proxy.CertificateRejected{Client: pop3, Alert: "unknown_ca"},
			proxy.CertificateRejected{Client: pop3, Alert: "an alert of later days"},
			proxy.Handshake{Client: pop3, Result: proxy.HandshakeClientAbort, Reason: proxy.LeftAfterCertificate, Version: tls.VersionTLS12, Err: io.EOF},
		}, []string{
			`tls_certificate_networks{listener="pop3s",verdict="rejected"} 1`,
			`tls_certificate_rejections_total{alert="other",listener="pop3s"} 1`,
			`tls_certificate_rejections_total{alert="unknown_ca",listener="pop3s"} 1`,
			`tls_handshakes_total{listener="pop3s",reason="certificate_rejected",result="client_abort",version="1.3"} 1`,
			`tls_handshakes_total{listener="pop3s",reason="closed_after_certificate",result="client_abort",version="1.2"} 1`,
		}},
		{"what the guard judges", []proxy.Event{
			proxy.Attempt{Client: pop3, Via: proxy.ViaUserPass, Decision: proxy.Decision{Tier: "known"}},
			proxy.Attempt{Client: pop3, Via: proxy.ViaUserPass, Decision: proxy.Decision{Tier: "stranger", Repeat: true}},
			proxy.Attempt{Client: pop3, Via: proxy.ViaUserPass, Decision: proxy.Decision{Tier: "stranger", Bucket: "pair"}},
			proxy.Attempt{Client: pop3, Via: proxy.ViaUserPass, Decision: proxy.Decision{Tier: "stranger", Bucket: "pair", DryRun: true}},
			proxy.Attempt{Client: pop3, Via: proxy.ViaUserPass},
		}, []string{
			`auth_attempts_total{mechanism="userpass",protocol="pop3",result="ok"} 5`,
			`auth_duration_seconds_count{protocol="pop3",result="ok"} 5`,
			`guard_attempts_total{decision="let_through",tier="known"} 1`,
			`guard_attempts_total{decision="let_through",tier="stranger"} 1`,
			`guard_attempts_total{decision="refused",tier="stranger"} 1`,
			`guard_attempts_total{decision="repeated",tier="stranger"} 1`,
			`rate_limited_total{scope="pair"} 2`,
		}},
		{"a policy server", []proxy.Event{
			proxy.PolicyRequested{Command: "allow", Result: proxy.PolicyReject, Duration: time.Second},
			proxy.PolicyRequested{Command: "report", Result: proxy.PolicyFailed, Duration: 2 * time.Second, Err: io.EOF},
		}, []string{
			`auth_policy_request_duration_seconds_count{command="allow"} 1`,
			`auth_policy_request_duration_seconds_count{command="report"} 1`,
			`auth_policy_request_duration_seconds_sum{command="allow"} 1`,
			`auth_policy_request_duration_seconds_sum{command="report"} 2`,
			`auth_policy_requests_total{command="allow",result="reject"} 1`,
			`auth_policy_requests_total{command="report",result="failed"} 1`,
		}},
		{"handshakes", []proxy.Event{
			proxy.Handshake{Client: resumed, Result: proxy.HandshakeOK, Version: tls.VersionTLS12, Duration: time.Second},
			proxy.Handshake{Client: pop3, Result: proxy.HandshakeError, Version: tls.VersionTLS10, Reason: proxy.NoVersion, Err: io.EOF},
			proxy.Handshake{Client: pop3, Result: proxy.HandshakeError, Err: io.EOF},
			proxy.Handshake{Client: pop3, Result: proxy.HandshakeSilent, Duration: 10 * time.Second, Err: io.EOF},
		}, []string{
			`tls_certificate_networks{listener="pop3s",verdict="accepted"} 1`,
			`tls_handshake_duration_seconds_count{listener="pop3s"} 1`,
			`tls_handshake_duration_seconds_sum{listener="pop3s"} 1`,
			`tls_handshakes_total{listener="pop3s",reason="none",result="ok",version="1.2"} 1`,
			`tls_handshakes_total{listener="pop3s",reason="none",result="silent",version="none"} 1`,
			`tls_handshakes_total{listener="pop3s",reason="other",result="error",version="none"} 1`,
			`tls_handshakes_total{listener="pop3s",reason="version",result="error",version="1.0"} 1`,
			`tls_negotiated_total{resumed="true",version="1.2"} 1`,
			`tls_profile_needed_total{listener="pop3s",profile="legacy"} 1`,
		}},
		{"a session", []proxy.Event{
			proxy.Attempt{Client: pop3, Via: proxy.ViaUserPass, User: "alice", Account: "alice", Duration: time.Second},
			proxy.Opened{Client: pop3, Account: "alice", Backend: "main"},
			proxy.Closed{Client: pop3, Account: "alice", Backend: "main", End: proxy.EndClientQuit, Totals: proxy.Totals{Retrieved: 9, Deleted: 5}},
			proxy.Opened{Client: pop3, Account: "bob", Backend: "main"},
		}, []string{
			`auth_attempts_total{mechanism="userpass",protocol="pop3",result="ok"} 1`,
			`auth_duration_seconds_count{protocol="pop3",result="ok"} 1`,
			`auth_duration_seconds_sum{protocol="pop3",result="ok"} 1`,
			`connection_duration_seconds_count{protocol="pop3"} 1`,
			`connections_open{listener="pop3s",protocol="pop3"} -1`, // not accepted in this test
			`pop3_messages_deleted_total 5`,
			`sessions_active{protocol="pop3"} 1`,
			`sessions_total{end="client_quit",protocol="pop3"} 1`,
		}},
		{"a maildrop to look at", []proxy.Event{
			proxy.MaildropNoticed{Client: pop3, Account: "alice", Kind: proxy.NoticeChanged, Messages: 7},
			proxy.MaildropNoticed{Client: pop3, Account: "alice", Kind: proxy.NoticeRenumbered, Messages: 3},
			proxy.MaildropNoticed{Client: pop3, Account: "alice", Kind: proxy.NoticeRenumbered},
		}, []string{
			`pop3_maildrop_notices_total{kind="renumbered"} 2`,
			`pop3_maildrop_notices_total{kind="uidls_changed"} 1`,
			`pop3_uidls_changed_total 3`,
			`pop3_uidvalidity_changes_total 2`,
		}},
		{"a backend lost within a session", []proxy.Event{
			proxy.Reconnected{Client: pop3, Account: "alice", Backend: "main", Cause: proxy.LostBye, Result: proxy.ReconnectOK},
			proxy.Reconnected{Client: pop3, Account: "bob", Backend: "main", Cause: proxy.LostClosed, Result: proxy.ReconnectFailed, Err: io.EOF},
		}, []string{
			`backend_errors_total{backend="main",kind="bye",protocol="imap"} 1`,
			`backend_errors_total{backend="main",kind="closed",protocol="imap"} 1`,
			`pop3_reconnects_total{backend="main",cause="bye",result="ok"} 1`,
			`pop3_reconnects_total{backend="main",cause="closed",result="failed"} 1`,
		}},
		{"unique ids learnt from an old server", []proxy.Event{
			proxy.UIDLsLearnt{Client: pop3, Account: "alice", Backend: "main", Messages: 2, Found: 2},
			proxy.UIDLsLearnt{Client: pop3, Account: "bob", Backend: "main", Err: io.EOF},
		}, []string{
			`pop3_uidls_learnt_total{backend="main",result="error"} 1`,
			`pop3_uidls_learnt_total{backend="main",result="ok"} 1`,
		}},
		{"sessions of an old server that were compared", []proxy.Event{
			proxy.ShadowCompared{Client: pop3, Account: "alice", Backend: "main", Result: proxy.ShadowClean, Messages: 3, Found: 2, Late: 1, Learnt: 2},
			proxy.ShadowCompared{Client: pop3, Account: "bob", Backend: "main", Result: proxy.ShadowDiffers, Messages: 9, Found: 8, Missing: 1, Extra: 2, UIDLs: 3, Sizes: 4, Order: 5},
			proxy.ShadowCompared{Client: pop3, Account: "carol", Backend: "main", Result: proxy.ShadowFailed, Err: io.EOF},
		}, []string{
			`pop3_shadow_comparisons_total{backend="main",result="clean"} 1`,
			`pop3_shadow_comparisons_total{backend="main",result="differs"} 1`,
			`pop3_shadow_comparisons_total{backend="main",result="error"} 1`,
			`pop3_shadow_differences_total{backend="main",kind="extra"} 2`,
			`pop3_shadow_differences_total{backend="main",kind="missing"} 1`,
			`pop3_shadow_differences_total{backend="main",kind="order"} 5`,
			`pop3_shadow_differences_total{backend="main",kind="size"} 4`,
			`pop3_shadow_differences_total{backend="main",kind="uidl"} 3`,
			`pop3_shadow_uidls_learnt_total{backend="main"} 2`,
		}},
		{"a message without its last CRLF", []proxy.Event{
			proxy.MessageSent{Command: "TOP", Octets: 10, Completed: true},
		}, []string{
			`pop3_messages_retrieved_total{command="TOP"} 1`,
			`pop3_messages_without_final_crlf_total 1`,
		}},
		{"a backend", []proxy.Event{
			proxy.Dialed{Backend: "main", Protocol: proxy.IMAP, Result: proxy.DialOK, Duration: time.Second},
			proxy.Dialed{Backend: "main", Protocol: proxy.IMAP, Result: proxy.DialTimeout, Duration: time.Minute, Err: io.EOF},
			proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Duration: 2 * time.Second},
			proxy.Probed{Backend: "main", Protocol: proxy.IMAP, Up: true},
			proxy.Probed{Backend: "main", Protocol: proxy.Submission},
		}, []string{
			`backend_dial_duration_seconds_count{backend="main"} 1`,
			`backend_dial_duration_seconds_sum{backend="main"} 1`,
			`backend_dials_total{backend="main",result="ok"} 1`,
			`backend_dials_total{backend="main",result="timeout"} 1`,
			`backend_login_duration_seconds_count{backend="main",protocol="imap"} 1`,
			`backend_login_duration_seconds_sum{backend="main",protocol="imap"} 2`,
			`backend_up{backend="main",protocol="imap"} 1`,
		}},
		{"a backend that fails after the connection was made", []proxy.Event{
			proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Err: proxy.NewRefusal(proxy.Unavailable, io.EOF)},
			proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Err: proxy.NewRefusal(proxy.MailboxFull, io.EOF)},
			proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Err: proxy.NewRefusal(proxy.Wrong, io.EOF)},
			proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Err: proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("read: %w", net.ErrClosed))},
			proxy.Closed{Client: client("submissions", proxy.Submission), Account: "alice", Backend: "main", End: proxy.EndBackendClosed},
			proxy.Closed{Client: client("imaps", proxy.IMAP), Account: "alice", Backend: "main", End: proxy.EndBackendClosed},
		}, []string{
			`backend_errors_total{backend="main",kind="closed",protocol="submission"} 1`,
			`backend_errors_total{backend="main",kind="mailbox_full",protocol="imap"} 1`,
			`backend_errors_total{backend="main",kind="unavailable",protocol="imap"} 1`,
			`backend_login_duration_seconds_count{backend="main",protocol="imap"} 4`,
			`connection_duration_seconds_count{protocol="imap"} 1`,
			`connection_duration_seconds_count{protocol="submission"} 1`,
			`connections_open{listener="imaps",protocol="imap"} -1`, // not accepted in this test
			`connections_open{listener="submissions",protocol="submission"} -1`,
			`sessions_active{protocol="imap"} -1`,
			`sessions_active{protocol="submission"} -1`,
			`sessions_total{end="backend_closed",protocol="imap"} 1`,
			`sessions_total{end="backend_closed",protocol="submission"} 1`,
		}},
		{"routes", []proxy.Event{
			proxy.Routed{Source: proxy.RouteFile, Result: proxy.RouteNone},
			proxy.Routed{Source: proxy.RouteHook, Result: proxy.RouteError, Duration: 2 * time.Second, Err: io.EOF},
		}, []string{
			`route_lookup_duration_seconds_count{source="file"} 1`,
			`route_lookup_duration_seconds_count{source="hook"} 1`,
			`route_lookup_duration_seconds_sum{source="hook"} 2`,
			`route_lookups_total{result="error",source="hook"} 1`,
			`route_lookups_total{result="none",source="file"} 1`,
		}},
		{"passwords of Postern's own", []proxy.Event{
			proxy.PasswordChecked{Store: proxy.StoreDevices, Err: proxy.NewRefusal(proxy.Wrong, nil)},
			proxy.PasswordChecked{Store: proxy.StoreFile, Duration: 2 * time.Second},
			proxy.PasswordChecked{Store: proxy.StoreDevices, Err: proxy.NewRefusal(proxy.Suspended, nil)},
			proxy.PasswordChecked{Store: proxy.StoreFile, Err: proxy.NewRefusal(proxy.Unavailable, nil)},
		}, []string{
			`password_check_duration_seconds_count{store="devices"} 2`,
			`password_check_duration_seconds_count{store="file"} 2`,
			`password_check_duration_seconds_sum{store="file"} 2`,
			`password_checks_total{result="forbidden",store="devices"} 1`,
			`password_checks_total{result="invalid_credentials",store="devices"} 1`,
			`password_checks_total{result="ok",store="file"} 1`,
			`password_checks_total{result="temporary_failure",store="file"} 1`,
		}},
		{"tokens", []proxy.Event{
			proxy.TokenRequested{Provider: "contoso", Kind: "microsoft", Result: proxy.TokenOK, Duration: 2 * time.Second},
			proxy.TokenRequested{Provider: "contoso", Kind: "microsoft", Result: proxy.TokenConfiguration, Err: io.EOF},
		}, []string{
			`token_request_duration_seconds_count{provider="contoso"} 2`,
			`token_request_duration_seconds_sum{provider="contoso"} 2`,
			`token_requests_total{provider="contoso",result="configuration"} 1`,
			`token_requests_total{provider="contoso",result="ok"} 1`,
		}},
		{"connections of accounts", []proxy.Event{
			proxy.AccountQueued{Backend: "main", Protocol: proxy.Submission, Result: proxy.QueueOK, Duration: 4 * time.Second},
			proxy.AccountQueued{Backend: "main", Protocol: proxy.Submission, Result: proxy.QueueFull, Duration: 10 * time.Second, Err: io.EOF},
			proxy.AccountQueued{Backend: "main", Protocol: proxy.Submission, Result: proxy.QueueThrottled, Err: io.EOF},
			proxy.AccountThrottled{Backend: "main", Protocol: proxy.Submission, Backoff: time.Minute},
		}, []string{
			`account_queue_logins_total{backend="main",protocol="submission",result="full"} 1`,
			`account_queue_logins_total{backend="main",protocol="submission",result="ok"} 1`,
			`account_queue_logins_total{backend="main",protocol="submission",result="throttled"} 1`,
			`account_queue_seconds_count{backend="main",protocol="submission"} 2`,
			`account_queue_seconds_sum{backend="main",protocol="submission"} 14`,
			`account_throttles_total{backend="main",protocol="submission"} 1`,
		}},
		{"the server of a POP3 session", []proxy.Event{
			proxy.IMAPCommand{Command: "SELECT", Result: proxy.CommandOK, Duration: time.Second},
			proxy.IMAPCommand{Command: proxy.CommandBody, Result: proxy.CommandLost},
			proxy.IMAPCommand{Command: "XYZZY", Result: proxy.CommandBad},
		}, []string{
			`imap_client_command_duration_seconds_count{command="FETCH BODY"} 1`,
			`imap_client_command_duration_seconds_count{command="SELECT"} 1`,
			`imap_client_command_duration_seconds_count{command="other"} 1`,
			`imap_client_command_duration_seconds_sum{command="SELECT"} 1`,
			`imap_client_commands_total{command="FETCH BODY",result="lost"} 1`,
			`imap_client_commands_total{command="SELECT",result="ok"} 1`,
			`imap_client_commands_total{command="other",result="bad"} 1`,
		}},
		{"what is remembered", []proxy.Event{
			proxy.StateUsed{Store: "uidl", Operation: "update", Duration: time.Second},
			proxy.StateUsed{Store: "uidl", Operation: "get", Err: io.EOF},
		}, []string{
			`state_operation_duration_seconds_count{operation="get",store="uidl"} 1`,
			`state_operation_duration_seconds_count{operation="update",store="uidl"} 1`,
			`state_operation_duration_seconds_sum{operation="update",store="uidl"} 1`,
			`state_operations_total{operation="get",result="error",store="uidl"} 1`,
			`state_operations_total{operation="update",result="ok",store="uidl"} 1`,
		}},
		{"POP3", []proxy.Event{
			proxy.MaildropOpened{Client: pop3, Source: "full", Messages: 7, Octets: 100, Duration: time.Second},
			proxy.POP3Command{Command: "RETR", OK: true, Duration: time.Second},
			proxy.POP3Command{Command: "OTHER", Duration: time.Second},
			proxy.MessageSent{Command: "RETR", Octets: 5, Mismatched: true},
			proxy.MessageSent{Command: "RETR", Octets: 6},
			proxy.MessageSent{Command: "TOP", Octets: 100, Mismatched: true},
			proxy.UpdateFailed{Client: pop3, Stage: "expunge", Err: io.EOF},
		}, []string{
			`pop3_command_duration_seconds_count{command="RETR"} 1`,
			`pop3_command_duration_seconds_count{command="other"} 1`,
			`pop3_command_duration_seconds_sum{command="RETR"} 1`,
			`pop3_command_duration_seconds_sum{command="other"} 1`,
			`pop3_commands_total{command="RETR",result="ok"} 1`,
			`pop3_commands_total{command="other",result="error"} 1`,
			`pop3_maildrop_load_duration_seconds_count{source="full"} 1`,
			`pop3_maildrop_load_duration_seconds_sum{source="full"} 1`,
			`pop3_maildrop_messages_count 1`,
			`pop3_maildrop_messages_sum 7`,
			`pop3_message_size_bytes_count 2`,
			`pop3_message_size_bytes_sum 11`,
			`pop3_messages_retrieved_total{command="RETR"} 2`,
			`pop3_messages_retrieved_total{command="TOP"} 1`,
			`pop3_size_mismatches_total 1`,
			`pop3_update_failures_total{stage="expunge"} 1`,
		}},
		{"certificates of a CA", []proxy.Event{
			proxy.CertificateObtained{Duration: time.Second}, proxy.CertificateObtained{Renewal: true},
			proxy.CertificateFailed{Renewal: true}, proxy.CertificateDenied{Reason: proxy.DeniedLimit},
		}, []string{
			`acme_denied_total{reason="rate_limited"} 1`,
			`acme_operation_duration_seconds_count{operation="obtain"} 1`,
			`acme_operation_duration_seconds_count{operation="renew"} 2`,
			`acme_operation_duration_seconds_sum{operation="obtain"} 1`,
			`acme_operations_total{operation="obtain",result="ok"} 1`,
			`acme_operations_total{operation="renew",result="error"} 1`, `acme_operations_total{operation="renew",result="ok"} 1`,
		}},
		{"a panic", []proxy.Event{proxy.Panicked{Client: pop3, Value: "boom"}}, []string{`panics_total 1`}},
		{"what nobody announced", []proxy.Event{
			proxy.Accepted{Client: client("new", proxy.IMAP)},
			proxy.Attempt{Client: pop3, Via: proxy.ViaLoginCommand, Err: proxy.NewRefusal(proxy.Unsupported, nil)},
		}, []string{
			`auth_attempts_total{mechanism="other",protocol="other",result="unsupported_mechanism"} 1`,
			`connections_accepted_total{listener="other",protocol="other"} 1`,
			`connections_open{listener="other",protocol="other"} 1`,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := moved(t, New(config()), test.events...); !slices.Equal(got, test.want) {
				t.Errorf("changed:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(test.want, "\n\t"))
			}
		})
	}
}

func TestEachReasonHasItsResult(t *testing.T) {
	want := map[proxy.Reason]string{
		proxy.Wrong: "invalid_credentials", proxy.Malformed: "malformed", proxy.Unsupported: "unsupported_mechanism",
		proxy.ProtocolOff: "forbidden", proxy.POP3Ended: "forbidden", proxy.Plaintext: "tls_required", proxy.Throttled: "rate_limited",
		proxy.TooMany: "temporary_failure", proxy.TooManySessions: "temporary_failure", proxy.Unavailable: "temporary_failure", proxy.InUse: "temporary_failure",
		proxy.TimedOut: "temporary_failure", proxy.ShuttingDown: "temporary_failure", proxy.Kicked: "temporary_failure",
		proxy.Internal: "temporary_failure", proxy.Suspended: "forbidden", proxy.Unusable: "forbidden", proxy.Maintenance: "temporary_failure",
		proxy.MailboxFull: "temporary_failure", proxy.TooSoon: "rate_limited",
	}
	for _, reason := range proxy.Reasons() {
		if got := proxy.ResultOf(fmt.Errorf("log in: %w", proxy.NewRefusal(reason, io.EOF))); got != want[reason] {
			t.Errorf("result of %s = %s, want %s", reason, got, want[reason])
		}
		if temporary := want[reason] == proxy.ResultTemporary || want[reason] == proxy.ResultThrottled; temporary != reason.Temporary() {
			t.Errorf("%s is counted as %s, which confuses temporary and permanent", reason, want[reason])
		}
	}
	for _, err := range []error{io.EOF, context.Canceled} {
		if got := proxy.ResultOf(err); got != "client_abort" {
			t.Errorf("result of %v = %s, want client_abort", err, got)
		}
	}
}

// Criterion: 1,000,000 random users, addresses, SNI names, IMAP IDs and commands add no series, and neither does anything else that a client may send.
// No event has the name of EHLO.
func TestNothingFromOutsideBecomesASeries(t *testing.T) {
	const many = 1_000_000
	m := New(config())
	m.Observe(proxy.POP3Command{Command: "XYZZY"}) // is "other", as all that follow
	before := len(scrape(t, m))
	c := client("submissions", proxy.Submission)
	hello := &tls.ClientHelloInfo{}
	for i := range many {
		text := strconv.FormatUint(rand.Uint64(), 36)
		c.ID, hello.ServerName = text, text
		c.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(i))
		m.Observe(proxy.Handshake{Client: c, Result: proxy.HandshakeError, Hello: hello, Reason: proxy.NoCertificate, Err: io.EOF})
		m.Observe(proxy.Attempt{Client: c, Via: proxy.ViaPlain, User: text, Account: text, ID: map[string]string{text: text}})
		m.Observe(proxy.POP3Command{Command: text})
	}
	after := scrape(t, m)
	if len(after) != before {
		t.Errorf("%d series became %d", before, len(after))
	}
	for series, want := range map[string]int{
		`tls_handshakes_total{listener="submissions",reason="certificate",result="error",version="none"}`: many,
		`auth_attempts_total{mechanism="plain",protocol="submission",result="ok"}`:                        many,
		`pop3_commands_total{command="other",result="error"}`:                                             many + 1,
	} {
		if got, err := strconv.ParseFloat(after["postern_"+series], 64); err != nil || int(got) != want {
			t.Errorf("%s = %s, want %d", series, after["postern_"+series], want)
		}
	}

	sent := func(n int) (series int) {
		for range n {
			text := fmt.Sprint("\xff\"\n", rand.Uint64()) // not even UTF-8
			for _, c := range []proxy.Client{c, client(text, proxy.IMAP), client("imaps", text), client(text, text)} {
				for _, e := range everything(c, text) {
					m.Observe(e)
				}
			}
		}
		return len(scrape(t, m))
	}
	if few, many := sent(1), sent(500); few != many {
		t.Errorf("%d series with \"other\" became %d", few, many)
	}
}

func TestPoolsAreAskedAtEachScrape(t *testing.T) {
	c := config()
	c.Pools = func() []Pool {
		return []Pool{{Backend{"main", proxy.IMAP}, 7, 5, 28232, 2, 0}, {Backend{"main", proxy.Submission}, 1, 1, 0, 0, 4}}
	}
	s := scrape(t, New(c))
	if got := s[`postern_account_queue_waiting{backend="main",protocol="submission"}`]; got != "4" {
		t.Errorf("%s logins wait, want 4", got)
	}
	for series, want := range map[string]string{
		`connections_open{backend="main",protocol="imap"}`:         "7",
		`source_ports_used{backend="main",protocol="imap"}`:        "5",
		`source_ports_limit{backend="main",protocol="imap"}`:       "28232",
		`servers_drained{backend="main",protocol="imap"}`:          "2",
		`servers_drained{backend="main",protocol="submission"}`:    "0",
		`connections_open{backend="main",protocol="submission"}`:   "1",
		`source_ports_limit{backend="main",protocol="submission"}`: "", // unknown is not none
	} {
		if got := s["postern_backend_"+series]; got != want {
			t.Errorf("%s = %q, want %q", series, got, want)
		}
	}
}

func TestLogRecordsAreCountedByLevel(t *testing.T) {
	m := New(config())
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelInfo + 1, slog.LevelWarn, slog.LevelError, slog.LevelError + 4} {
		m.Logged(level)
	}
	s := scrape(t, m)
	for level, want := range map[string]string{"debug": "1", "info": "2", "warn": "1", "error": "2"} {
		if got := s[fmt.Sprintf("postern_log_messages_total{level=%q}", level)]; got != want {
			t.Errorf("%s: %s, want %s", level, got, want)
		}
	}
}

func TestCountingIsSafeFromManyGoroutines(t *testing.T) {
	m := New(config())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				for _, e := range everything(client("imaps", proxy.IMAP), fmt.Sprint(i)) {
					m.Observe(e)
				}
			}
		})
	}
	wg.Wait()
	if got := scrape(t, m)["postern_panics_total"]; got != "800" {
		t.Errorf("%s panics are counted, want 800", got)
	}
}

func TestGaugesOfTheGuard(t *testing.T) {
	c := config()
	c.Guard = func() Guard {
		return Guard{
			Learning: true, Entries: 2, KnownGood: 3, Strangers: 4, Sessions: 5, InFlight: 6, Waiting: 7, Failed: 1, Succeeded: 3,
			FailingAccounts: 8, FailingNetworks: 9, SprayedAccounts: 10, Evictions: 11, Shed: 12,
		}
	}
	s := scrape(t, New(c))
	for name, want := range map[string]string{
		"learning": "1", "dry_run": "0", "entries": "2", "known_networks": "3", "stranger_connections": "4", "sessions": "5",
		"attempts_in_flight": "6", "attempts_waiting": "7", "failure_ratio": "0.25", "failing_accounts": "8", "failing_networks": "9",
		"sprayed_accounts": "10", "evictions_total": "11", "shed_connections_total": "12",
	} {
		if got := s["postern_guard_"+name]; got != want {
			t.Errorf("postern_guard_%s = %q, want %s", name, got, want)
		}
	}
}

func TestGaugesAreAskedAtEachScrape(t *testing.T) {
	c := config()
	var certs []Certificate
	draining := false
	c.Certificates = func() []Certificate { return certs }
	c.Findings = func() map[string]int { return map[string]int{"expired": len(certs), "no_san": 0} }
	c.Draining = func() bool { return draining }
	c.Parking = func() Parking { return Parking{Parked: 3, Wakes: 4, Failures: 5} }
	m := New(c)
	const after, before = "postern_certificate_not_after_timestamp_seconds", "postern_certificate_not_before_timestamp_seconds"
	if s := scrape(t, m); s["postern_draining"] != "0" || s[after] != "" {
		t.Errorf("draining %s, certificate %s at the start", s["postern_draining"], s[after])
	}
	for name, want := range map[string]string{"sessions_parked": "3", "session_wakes_total": "4", "session_park_failures_total": "5"} {
		if got := scrape(t, m)["postern_"+name]; got != want {
			t.Errorf("postern_%s = %q, want %s", name, got, want)
		}
	}
	draining = true
	certs = []Certificate{
		{"mail.example.org", "file", time.Unix(1e9, 0), time.Unix(2e9, 0)},
		{"mail.example.org", "file", time.Unix(3, 0), time.Unix(4, 0)}, // must not spoil the scrape
		{"old\xff", "file", time.Unix(5, 0), time.Unix(6, 0)},
	}
	s := scrape(t, m)
	for name, want := range map[string]string{
		"postern_draining": "1",
		after + `{name="mail.example.org",source="file"}`:  "2e+09",
		before + `{name="mail.example.org",source="file"}`: "1e+09",
		after + `{name="old?",source="file"}`:              "6",
		`postern_certificate_findings{class="expired"}`:    "3",
		`postern_certificate_findings{class="no_san"}`:     "0",
	} {
		if s[name] != want {
			t.Errorf("%s = %q, want %s", name, s[name], want)
		}
	}
}

func TestHealthAndReadiness(t *testing.T) {
	c := config()
	var reason error
	c.Ready = func() error { return reason }
	h := New(c).Handler()
	if status, body := get(t, h, "/readyz"); status != http.StatusOK || body != "ready\n" {
		t.Errorf("GET /readyz: %d %q, want 200 and ready", status, body)
	}
	c.Degraded = func() error { return errors.New("a certificate ends") }
	if status, body := get(t, New(c).Handler(), "/readyz"); status != http.StatusOK || body != "ready, degraded: a certificate ends\n" {
		t.Errorf("GET /readyz near the end of a certificate: %d %q, want 200 and the reason", status, body)
	}
	reason = errors.New("no backend is up")
	if status, body := get(t, h, "/readyz"); status != http.StatusServiceUnavailable || body != "no backend is up\n" {
		t.Errorf("GET /readyz without a backend: %d %q, want 503 and the reason", status, body)
	}
	if status, body := get(t, h, "/healthz"); status != http.StatusOK || body != "alive\n" {
		t.Errorf("GET /healthz without a backend: %d %q, want 200: the process is alive", status, body)
	}
	if status, _ := get(t, h, "/"); status != http.StatusNotFound {
		t.Errorf("GET /: %d, want 404", status)
	}
	if status, _ := get(t, New(config()).Handler(), "/readyz"); status != http.StatusOK {
		t.Errorf("GET /readyz without Ready: %d, want 200", status)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", strings.NewReader("x")))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d, want 405", w.Code)
	}
}

func TestHandlerSpeaksOpenMetrics(t *testing.T) {
	web := httptest.NewServer(New(config()).Handler())
	defer web.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, web.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := web.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(string(body), "# EOF\n") {
		t.Errorf("type %q, end %q, want OpenMetrics", resp.Header.Get("Content-Type"), body[max(0, len(body)-20):])
	}
	for _, name := range []string{"process_open_fds ", "process_max_fds ", "go_goroutines ", "promhttp_metric_handler_requests_in_flight "} {
		if !strings.Contains(string(body), "\n"+name) {
			t.Errorf("%s is not served", name)
		}
	}
}

func BenchmarkPOP3Command(b *testing.B) {
	m := New(config())
	var e proxy.Event = proxy.POP3Command{Command: "RETR", OK: true, Duration: time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(e)
	}
}

func TestANewConfigurationBringsItsSeries(t *testing.T) {
	m := New(Config{Labels: Labels{Listeners: []Listener{{"imap", proxy.IMAP}}, Backends: []Backend{{"main", proxy.IMAP}}}})
	client := proxy.Client{Service: "imap", Protocol: proxy.IMAP}
	m.Observe(proxy.Accepted{Client: client})
	m.AddLabels(Labels{Listeners: []Listener{{"imap", proxy.IMAP}, {"pop3", proxy.POP3}}, Backends: []Backend{{"new", proxy.IMAP}}, Providers: []string{"school"}})
	m.Observe(proxy.Accepted{Client: client})
	all := scrape(t, m)
	for series, want := range map[string]string{
		`postern_connections_accepted_total{listener="imap",protocol="imap"}`: "2",
		`postern_connections_accepted_total{listener="pop3",protocol="pop3"}`: "0",
		`postern_backend_dials_total{backend="new",result="ok"}`:              "0",
		`postern_backend_dials_total{backend="main",result="ok"}`:             "0",
		`postern_token_requests_total{provider="school",result="ok"}`:         "0",
	} {
		if all[series] != want {
			t.Errorf("%s is %q, want %s", series, all[series], want)
		}
	}
}

// Criterion: Metrics count the lines of policy.file that switch POP3 off, and the logins with a right password that were refused after the last day; both without names.
func TestTheEndOfPOP3IsCounted(t *testing.T) {
	m := New(config())
	for _, reason := range []proxy.Reason{proxy.POP3Ended, proxy.POP3Ended, proxy.ProtocolOff} {
		m.Observe(proxy.Attempt{Client: client("pop3s", proxy.POP3), Via: proxy.ViaUserPass, Account: "alice", Err: proxy.NewRefusal(reason, nil)})
	}
	all := scrape(t, m)
	for series, want := range map[string]string{
		"postern_pop3_ended_refusals_total":                        "2",
		`postern_policy_pop3_lines{name="account",state="off"}`:    "2",
		`postern_policy_pop3_lines{name="account",state="ending"}`: "3",
		`postern_policy_pop3_lines{name="domain",state="ending"}`:  "1",
		`postern_policy_pop3_lines{name="account",state="ended"}`:  "0",
		`postern_policy_pop3_lines{name="all",state="ended"}`:      "1",
	} {
		if got := all[series]; got != want {
			t.Errorf("%s is %q, want %s", series, got, want)
		}
	}
}
