package main

import (
	"strings"
	"testing"
	"time"

	"postern/metrics/ledger"
	"postern/proxy"
)

// Criterion: no account name makes a spreadsheet calculate, or breaks the columns of CSV.
func TestCSVIsSafe(t *testing.T) {
	var out strings.Builder
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	r := newUsageReport(&out, now, "", usageOptions{csv: true})
	for _, account := range []string{`=cmd|' /C calc'!A0`, "+1@example.org", "-2+3", "@sum(a1)", `a,"b"@example.org`, "a\nb"} {
		if err := r.add(ledger.Entry{Account: account, Protocol: proxy.POP3, First: "2026-11-20", Last: "2026-11-20", Logins: 1, TLS: "1.3"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.end(nil); err != nil {
		t.Fatal(err)
	}
	const rest = ",1.3,2026-11-20,2026-11-20,2,1,,,,,,,,unknown,,0\n"
	want := strings.Join(usageColumns[:], ",") + "\n'=cmd|' /C calc'!A0" + rest + "'+1@example.org" + rest + "'-2+3" + rest + "'@sum(a1)" + rest +
		`"a,""b""@example.org"` + rest + "\"a\nb\"" + rest
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Criterion: who tries without TLS and never logs in is in the report, and is counted apart.
func TestWhoOnlyTriesWithoutTLSIsReported(t *testing.T) {
	var out strings.Builder
	r := newUsageReport(&out, time.Now(), "", usageOptions{})
	if err := r.add(ledger.Entry{Account: "alice", Protocol: proxy.POP3, Plaintext: "2026-11-20", PlaintextTries: 3}); err != nil {
		t.Fatal(err)
	}
	if err := r.end(nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nalice - - - - 0 - - - - unknown D\n", "by POP3 ever: 0\n", "\naccounts refused without TLS: 1, of which have never logged in by POP3: 1\n"} {
		if !strings.Contains(simplified(out.String()), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
