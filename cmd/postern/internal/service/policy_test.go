package service

import (
	"strings"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/route"
)

func policyOf(t *testing.T, text string) *route.Protocols {
	t.Helper()
	p, err := route.OpenProtocols(file(t, t.TempDir(), "policy", text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Criterion: check says what is off, for how many lines, and which last days of POP3 come next, in which time zone.
func TestCheckExplainsThePolicy(t *testing.T) {
	now := time.Date(2027, 1, 30, 23, 30, 0, 0, time.FixedZone("CET", 3600))
	for name, test := range map[string]struct{ policy, want string }{
		"nothing": {"a pop3:on\n", ""},
		"off without a date": {"a pop3:off imap:off\n@example.org pop3:off\n", `
policy.file: imap is off for 1 account
policy.file: pop3 is off for 1 account and 1 domain`},
		"past, today and to come": {"a pop3:off-after=2026-10-31\nb pop3:off-after=2027-01-29\nc pop3:off-after=2027-01-30\nd pop3:off-after=2027-01-31\n* pop3:off-after=2027-03-31\n", `
policy.file: POP3 was switched off for 2 accounts after a last day, the latest 2027-01-29
policy.file: the last day of POP3 is 2027-01-30 (today) for 1 account
policy.file: the last day of POP3 is 2027-01-31 (tomorrow) for 1 account
policy.file: the last day of POP3 is 2027-03-31 (in 60 days) for all without another line
policy.file: a last day ends at midnight of this machine's time zone, now CET (UTC+01:00)`},
		"all over": {"a pop3:off-after=2026-10-31\n", `
policy.file: POP3 was switched off for 1 account after a last day, the latest 2026-10-31
policy.file: a last day ends at midnight of this machine's time zone, now CET (UTC+01:00)`},
		"many days": {"a pop3:off-after=2028-01-01\nb pop3:off-after=2028-01-02\nc pop3:off-after=2028-01-03\nd pop3:off-after=2028-01-04\n" +
			"e pop3:off-after=2028-01-05\nf pop3:off-after=2028-01-06\ng pop3:off-after=2028-01-07\n", `
policy.file: the last day of POP3 is 2028-01-01 (in 336 days) for 1 account
policy.file: the last day of POP3 is 2028-01-02 (in 337 days) for 1 account
policy.file: the last day of POP3 is 2028-01-03 (in 338 days) for 1 account
policy.file: the last day of POP3 is 2028-01-04 (in 339 days) for 1 account
policy.file: the last day of POP3 is 2028-01-05 (in 340 days) for 1 account
policy.file: 2 later days are not shown, the last one is 2028-01-07
policy.file: a last day ends at midnight of this machine's time zone, now CET (UTC+01:00)`},
	} {
		g := &generation{routing: &routing{policy: policyOf(t, test.policy)}}
		if got, want := strings.Join(g.explainPolicy(now), "\n"), strings.TrimPrefix(test.want, "\n"); got != want {
			t.Errorf("%s: explained is\n%s\nwant\n%s", name, got, want)
		}
	}
	if got := (&generation{routing: &routing{}}).explainPolicy(now); got != nil {
		t.Errorf("without a file: %q", got)
	}
}

// Criterion: check, and the log after a start, warn of a last day of POP3 that is at most 7 days away.
func TestALastDayWithinAWeekIsWarnedOf(t *testing.T) {
	day := func(n int) string { return time.Now().AddDate(0, 0, n).Format(time.DateOnly) }
	path := file(t, t.TempDir(), "policy", "a pop3:off-after="+day(-1)+"\nb pop3:off-after="+day(7)+"\nc pop3:off-after="+day(8)+"\n")
	cfg, err := configs.Parse("test.yaml", []byte(baseConfig+"listeners: [{protocol: imap, address: \":0\"}]\n"+
		"backends: {main: {imap: {address: \"127.0.0.1:1\", tls: none}}}\npolicy:\n  file: "+path+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	g := &generation{cfg: cfg, routing: &routing{policy: policyOf(t, "b pop3:off-after="+day(7)+"\na pop3:off-after="+day(-1)+"\nc pop3:off-after="+day(8)+"\n")}}
	var found []string
	for _, w := range g.warnings(nil) {
		if w.Key == "policy.file" {
			found = append(found, w.Text)
		}
	}
	want := "POP3 ends for 1 account: the last day is " + day(7) + " (in 7 days); who needs longer gets a line with a later day"
	if got := strings.Join(found, "\n"); got != want {
		t.Errorf("warnings: %q, want %q", got, want)
	}
}
