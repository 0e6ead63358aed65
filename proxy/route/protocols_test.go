package route

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// Criterion: POP3 works on the last day of an account until midnight, local time, and not from then on; a session that is open stays.
func TestPOP3EndsAtMidnightAfterItsLastDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		behind := &fakeBackend{}
		m := &Mux{Rules: Rules{Default{Backend: "main"}}, Targets: map[Choice]Target{{Backend: "main"}: target(behind, proxy.Offer{})}}
		m.Protocols = openProtocols(t, "alice pop3:off-after=2027-01-31\n")
		at := func(day, hour, minute, second int) {
			t.Helper()
			month := time.January
			if day == 1 {
				month = time.February
			}
			time.Sleep(time.Until(time.Date(2027, month, day, hour, minute, second, 0, time.Local)))
		}
		pop3 := func(password string) error {
			_, err := login(m, "alice", password)
			return err
		}
		at(30, 12, 0, 0)
		if err := pop3("right"); err != nil {
			t.Errorf("a day before the last day: %v", err)
		}
		at(31, 23, 59, 59)
		if err := pop3("right"); err != nil {
			t.Errorf("in the last second of the last day: %v", err)
		}
		at(1, 0, 0, 0)
		err := pop3("right")
		r, ok := errors.AsType[*proxy.Refusal](err)
		if !ok || r.Reason != proxy.POP3Ended || !r.Verified || !strings.Contains(err.Error(), "2027-01-31") {
			t.Errorf("at midnight: error %v, want pop3_ended, verified, with the day", err)
		}
		if behind.closed != 1 {
			t.Errorf("%d sessions were closed, want the refused one alone", behind.closed)
		}
		at(1, 0, 1, 0)
		if err := pop3("wrong"); proxy.ReasonOf(err) != proxy.Wrong {
			t.Errorf("a wrong password a minute after midnight: error %v, want wrong", err)
		}
		l := testLogin("alice") // by IMAP
		l.Secret = proxy.NewSecret([]byte("right"))
		if _, err := m.Login(t.Context(), l); err != nil {
			t.Errorf("IMAP after the last day of POP3: %v", err)
		}
	})
}

func TestALastDayEndsInTheLocalTimeZone(t *testing.T) {
	p := openProtocols(t, "alice pop3:off-after=2027-01-31")
	for _, test := range []struct {
		now string
		off bool
	}{
		{"2027-01-31T23:59:59+01:00", false}, {"2027-02-01T00:00:00+01:00", true},
		{"2027-01-31T23:59:59-05:00", false}, {"2027-02-01T00:00:00-05:00", true},
		{"2027-01-31T23:30:00Z", false},
		{"2036-01-01T00:00:00Z", true},
	} {
		now, err := time.Parse(time.RFC3339, test.now)
		if err != nil {
			t.Fatal(err)
		}
		if off, day := p.Off("alice", proxy.POP3, now); off != test.off || day != "2027-01-31" {
			t.Errorf("at %s: Off = %t, %q, want %t, 2027-01-31", test.now, off, day, test.off)
		}
	}
}

// Criterion: the last day of POP3 in the line of an account goes before that of its domain, later or earlier.
func TestTheLastDayOfAnAccountGoesBeforeThatOfItsDomain(t *testing.T) {
	p := openProtocols(t, `
		* pop3:off-after=2027-03-31
		@example.org pop3:off-after=2027-01-31
		early@example.org pop3:off-after=2026-12-31
		late@example.org  pop3:off-after=2027-06-30
		vip@example.org   pop3:on
		never@example.org pop3:off
		other@example.org imap:off
	`)
	now := time.Date(2027, 2, 1, 8, 0, 0, 0, time.UTC)
	for account, want := range map[string]string{
		"early@example.org": "true 2026-12-31", "late@example.org": "false 2027-06-30", "vip@example.org": "false ",
		"never@example.org": "true ", "other@example.org": "true 2027-01-31", "any@EXAMPLE.org": "true 2027-01-31", "any@example.net": "false 2027-03-31",
	} {
		off, day := p.Off(account, proxy.POP3, now)
		if got := fmt.Sprint(off, " ", day); got != want {
			t.Errorf("%s: Off = %q, want %q", account, got, want)
		}
	}
}

func TestMistakesOfLastDaysAreNamedAllAtOnce(t *testing.T) {
	path := writeFile(t, `a pop3:off-after=2027-02-30
b pop3:off-after=31.01.2027
c pop3:off-after
d pop3:off-after=2017-01-31
e imap:off-after=2027-01-31
f pop3:off-after=2027-01-31 pop3:off
g pop3:off-after=2027-01-31 # twice, and the same
g pop3:off-after=2027-01-31
h pop3:off-after=2027-01-31
h pop3:off-after=2027-02-28
i pop3:off-after=2027-01-31T00:00
j pop3:off-after=
`)
	const day = " names no day: write the last day of POP3 as in pop3:off-after=2027-01-31"
	want := []string{
		`1: "pop3:off-after=2027-02-30"` + day,
		`2: "pop3:off-after=31.01.2027"` + day,
		`3: "pop3:off-after" is not one of imap, pop3, submission and sieve, with :on or :off behind it, nor pop3:off-after=2027-01-31`,
		`4: "pop3:off-after=2017-01-31" has a year that is not one of 2025 to 2099`,
		`5: "imap:off-after=2027-01-31" has a last day, which only pop3 can have: write imap:off`,
		`6: pop3 is named twice`,
		`10: "h" is also in an earlier line, with "pop3:off-after=2027-01-31" behind it, and here with "pop3:off-after=2027-02-28"`,
		`11: "pop3:off-after=2027-01-31T00:00"` + day,
		`12: "pop3:off-after="` + day,
	}
	_, err := OpenProtocols(path)
	wrong, ok := errors.AsType[Mistakes](err)
	if !ok || len(wrong) != len(want) {
		t.Fatalf("mistakes: %v, want %d", wrong, len(want))
	}
	for i, line := range want {
		if got := wrong[i].Error(); got != path+":"+line {
			t.Errorf("mistake %s, want %s:%s", got, path, line)
		}
	}
}

func TestSwitchesCountTheLinesOfEachDay(t *testing.T) {
	p := openProtocols(t, `
		* pop3:off-after=2027-03-31
		@example.org imap:on pop3:off-after=2027-01-31
		a@example.org pop3:off-after=2027-01-31
		A@example.org pop3:off-after=2027-01-31 # the same account
		b@example.org pop3:off-after=2027-01-31 submission:off
		c@example.org pop3:off
		d@example.org pop3:on
	`)
	var got []string
	for _, s := range p.Switches() {
		got = append(got, fmt.Sprintf("%s %s: %s", s.Protocol, s.LastDay, s.Lines))
	}
	want := "pop3 : 1 account; submission : 1 account; pop3 2027-01-31: 2 accounts and 1 domain; pop3 2027-03-31: all without another line"
	if got := strings.Join(got, "; "); got != want {
		t.Errorf("switches: %s\nwant: %s", got, want)
	}
}

// Criterion: a changed last day of POP3 is in force without a reload; a file with a mistake changes nothing, and neither does one that is gone.
func TestAChangedLastDayIsReadAgain(t *testing.T) {
	path := writeFile(t, "alice pop3:off-after=2025-01-31\n")
	p, err := OpenProtocols(path)
	if err != nil {
		t.Fatal(err)
	}
	go p.Watch(t.Context(), time.Millisecond, slog.New(slog.DiscardHandler))
	replace := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	waitFor := func(want string, stale bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			_, day := p.Off("alice", proxy.POP3, time.Now())
			err := p.Stale()
			if day == want && (err != nil) == stale {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the last day is %s, stale: %v; want %s, %t", day, err, want, stale)
			}
		}
	}
	waitFor("2025-01-31", false)
	replace("alice pop3:off-after=2099-01-31\n")
	waitFor("2099-01-31", false)
	replace("alice pop3:off-after=2099-31-01\n")
	waitFor("2099-01-31", true)
	replace("bob pop3:off\n\nalice pop3:off-after=2098-01-31\n")
	waitFor("2098-01-31", false)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	waitFor("2098-01-31", true)
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	waitFor("2098-01-31", false)
}
