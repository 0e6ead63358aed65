package main

import (
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/service"
	"postern/metrics/outcomes"
	"postern/proxy"
	"postern/proxy/authpolicy"
	"postern/proxy/guard"
)

// Criterion: postern why has a sentence for each outcome that a help desk can read out, and what to do for each that is a failure.
func TestEachOutcomeHasWords(t *testing.T) {
	details := append([]string{"", "none", "legacy", "an error", authpolicy.Bucket}, guard.Buckets()...)
	details = append(details, proxy.CertificateAlerts()...)
	for _, k := range outcomes.Kinds() {
		if _, ok := whyWords[k]; !ok {
			t.Errorf("%v has no words", k)
		}
		for _, detail := range details {
			for _, protocol := range append(proxy.Protocols(), "") {
				o := service.WhyOutcome{Outcome: k, Protocol: protocol, Detail: detail}
				text, advice := wordsOf(o, "alice@example.org")
				if !strings.HasSuffix(text, ".") || strings.Contains(text+advice, "%") || (advice == "") != (k == outcomes.Login) {
					t.Errorf("%v, %q: %q, %q", k, detail, text, advice)
				}
			}
		}
	}
	if text, advice := wordsOf(service.WhyOutcome{Outcome: 255}, "alice"); text == "" || advice == "" {
		t.Error("an outcome of another version has no words")
	}
	for _, b := range guard.Buckets() {
		if bucketWords[b] == "" {
			t.Errorf("budget %s has no words", b)
		}
	}
	for _, a := range proxy.CertificateAlerts() {
		if alertWords[a] == "" {
			t.Errorf("alert %s has no words", a)
		}
	}
}

// Criterion: what Postern remembers for postern why outlives an upgrade, and how a session of the old process ends is learnt
// by the new one.
func TestWhyOutlivesAnUpgrade(t *testing.T) {
	t.Parallel()
	f := startProcesses(t, 2, "")
	session, err := f.imapSession(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	before, err := f.say("why", "u0", "--json")
	if err != nil || !strings.Contains(before, `"outcome":"login"`) {
		t.Fatalf("%v: %s", err, before)
	}
	since := func(answer string) string {
		_, s, _ := strings.Cut(answer, `"remembered_since":"`)
		s, _, _ = strings.Cut(s, `"`)
		return s
	}
	time.Sleep(1100 * time.Millisecond) // times are to the second
	f.change(t, "upgrade")
	within(t, patience, "the new process has all outcomes", func() bool {
		after, err := f.say("why", "u0", "--json")
		return err == nil && strings.Contains(after, `"outcome":"login"`) && since(after) == since(before) && since(after) != ""
	})
	if out, err := f.say("kick", "--account", "u0"); err != nil || out != "ended: 1\n" {
		t.Fatalf("%v: %s", err, out)
	}
	within(t, patience, "the new process knows how the session ended", func() bool {
		after, err := f.say("why", "u0")
		return err == nil && strings.Contains(after, "An operator ended a session.")
	})
}
