package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// Criterion: postern report pop3 says what fetchmail, mpop and getmail do with the mail of an account - leave it on the server, delete all, delete it
// days after - and who tries without TLS.
func TestReportSaysWhatRealClientsDo(t *testing.T) {
	s := open(t, "fetchmail", "mpop", "getmail")
	state := t.TempDir()
	p := launch(t, []string{"protocol: pop3, name: pop3s", "protocol: pop3, name: pop3-110, tls: starttls"}, []string{
		"main:", fmt.Sprintf("  imap: {address: %q, tls: none}", s.backend.IMAP),
	}, fmt.Sprintf("state: {path: %q}\n", state))
	keeps, deletes, later, empty := s.user(t), s.user(t), s.user(t), s.user(t)
	for _, u := range []user{keeps, deletes, later} {
		s.deliver(t, u, "one", "two")
	}

	const none, failed = 1, 3 // exit statuses of fetchmail: no mail, login refused
	fetch := func(args []string, statuses ...int) {
		t.Helper()
		run(t, t.TempDir(), nil, args, statuses...)
	}
	fetch(fetchmail(t, t.TempDir(), p.at(t, "pop3s"), p.ca, keeps, "keep"))
	fetch(fetchmail(t, t.TempDir(), p.at(t, "pop3-110"), "", keeps, "keep"), failed)
	fetch(fetchmail(t, t.TempDir(), p.at(t, "pop3s"), p.ca, empty, "keep"), none)
	fetch(append(mpop(t, t.TempDir(), p.at(t, "pop3s"), p.ca, deletes, "user"), "--keep=off"))
	getmail := getmail(t, t.TempDir(), p.at(t, "pop3s"), p.ca, later)
	fetch(getmail)
	s.deliver(t, later, "three")
	fetch(append(getmail, "--delete"))

	config := filepath.Join(filepath.Dir(p.log), "postern.yaml")
	report := ""
	within(t, patience, "all sessions have ended", func() bool {
		report = run(t, state, nil, []string{"postern", "report", "pop3", "--config", config})
		return strings.Contains(report, "messages: 7, ")
	})
	for u, want := range map[user]string{
		keeps:   `1.3 D D 0d 1 1 1 2 N leaves on server D`,
		deletes: `1.3 D D 0d 1 1 1 2 N deletes all -`,
		later:   `1.3 D D 0d 2 1 1 3 N deletes after days -`,
		empty:   `1.3 D D 0d 1 1 1 0 0 unknown -`,
	} {
		if !strings.Contains(simplified(report), "\n"+u.name+" "+want+"\n") {
			t.Errorf("the report has no line %s %s", u.name, want)
		}
	}
	if !strings.HasSuffix(simplified(report), `
accounts that logged in by POP3 since D: 4
 TLS: 1.3 4
 habit: leaves on server 1, deletes after days 1, deletes all 1, unknown 1
 logins: 5, messages: 7, bytes: N
accounts refused without TLS: 1, of which have never logged in by POP3: 0
`) {
		t.Error("the totals are others")
	}
}

// Criterion: postern report pop3 --from reads the logs that Dovecot, Courier and Cyrus write of POP3, also compressed, before there is a configuration.
func TestReportReadsTheLogsOfOldServers(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root: the mail servers change their user")
	}
	proxytest.Need(t, "dovecot", "/usr/lib/dovecot/pop3")
	passwords := map[string]string{"keeps": newSecret(), "deletes": newSecret()}
	type server struct {
		name, pop3 string
		deliver    func(testing.TB, string, []byte) string
		log        func() string // as syslog has it
		want       []string
	}
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, POP3: true})
	courier := proxytest.StartCourier(t, proxytest.CourierOptions{Users: passwords})
	cyrus := proxytest.StartCyrus(t, proxytest.CyrusOptions{Users: passwords})
	priority := regexp.MustCompile(`(?m)^<\d+>`)
	severity := regexp.MustCompile(`(?m)^[A-Z]+: `)
	for _, s := range []server{
		{
			name: "dovecot", pop3: dovecot.POP3, deliver: dovecot.Deliver,
			log: func() string { return content(t, dovecot.Log) },
			want: []string{
				"deletes none D D 0d 1 1 1 2 N deletes all", "keeps none D D 0d 1 1 1 1 N leaves on server",
				" habit: leaves on server 1, deletes all 1",
			},
		},
		{
			name: "courier", pop3: courier.POP3, deliver: courier.Deliver,
			log: func() string { // courierlogger sets time, host, program
				return severity.ReplaceAllString(content(t, filepath.Join(filepath.Dir(courier.Log), "pop3.log")), time.Now().Format("Jan _2 15:04:05")+" mx pop3d: ")
			},
			want: []string{"deletes none D D 0d 1 1 1 - N unknown", "keeps none D D 0d 1 1 1 - N unknown", " habit: unknown 2"},
		},
		{
			name: "cyrus", pop3: cyrus.POP3,
			deliver: func(t testing.TB, user string, raw []byte) string { cyrus.Deliver(t, user, raw); return "" },
			log:     func() string { return priority.ReplaceAllString(content(t, cyrus.Log), "") },
			want: []string{
				"deletes none D D 0d 1 1 1 2 - deletes all", "keeps none D D 0d 1 1 1 1 - leaves on server",
				" habit: leaves on server 1, deletes all 1",
			},
		},
	} {
		for account, commands := range map[string][]string{"keeps": {"RETR 1", "QUIT"}, "deletes": {"RETR 1", "DELE 1", "RETR 2", "DELE 2", "QUIT"}} {
			for range 2 {
				s.deliver(t, account, []byte("Subject: one\r\n\r\n"+strings.Repeat("line\r\n", 50)))
			}
			client := loginOn(t, dial(t, s.pop3), user{name: account, password: passwords[account]})
			for _, command := range commands {
				if strings.HasPrefix(command, "RETR") {
					client.retrieve(command)
				} else {
					client.command(command)
				}
			}
		}
		dir, report := t.TempDir(), ""
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s:\n%s", s.name, report)
			}
		})
		within(t, patience, s.name+" has logged what the report is about", func() bool {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			_, _ = io.WriteString(w, s.log())
			_ = w.Close()
			log := file(t, dir, "mail.log.gz", z.String())
			report = simplified(run(t, dir, nil, []string{"postern", "report", "pop3", "--from", log}, 0, 1))
			return !slices.ContainsFunc(s.want, func(line string) bool { return !strings.Contains(report, line+"\n") })
		})
	}
}

// retrieve sends RETR and reads the message.
func (c *pop3) retrieve(command string) {
	c.t.Helper()
	c.command(command)
	for string(c.line()) != ".\r\n" {
	}
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	dates  = regexp.MustCompile(`\b20\d\d-\d\d-\d\d\b`)
	octets = regexp.MustCompile(`\b\d{3,}\b`)
	spaces = regexp.MustCompile(` +`)
)

// simplified returns a report with D for dates, N for large numbers and single spaces.
func simplified(report string) string {
	report = octets.ReplaceAllString(dates.ReplaceAllString(report, "D"), "N")
	return spaces.ReplaceAllString(report, " ")
}
