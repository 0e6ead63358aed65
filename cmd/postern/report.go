package main

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/ledger"
	"postern/proxy"
)

func reportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Report who uses what",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(reportPOP3Command())
	return cmd
}

func reportPOP3Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pop3 [--from LOG... | --ready | --back]",
		Short: "Report who uses POP3, how often, with which TLS, and what the clients do with the mail",
		Long: `Report who uses POP3: for each account when it first and last logged in, for how
many days it has been quiet, the oldest version of TLS on its last day, the number
of logins, on how many of the 30 days up to the last it logged in, from about how
many networks (of the 30 to 60 days up to the last), how many messages and bytes
it has downloaded, what its clients do with the mail, and when a login was last
refused because it came without TLS. Totals follow.

Habits: "leaves on server" and "deletes after days" are the clients that would
download mail again if its unique ids changed; "leaves some" is two clients, or a
changed setting; "downloads nothing" has left new messages in three sessions or
more. "unknown" is everybody else: whose mailbox was empty, who had no new mail,
and whose sessions did not end by QUIT.

--from reports on the logs of the POP3 server that Postern is to replace: Dovecot's,
Courier's or Cyrus', also compressed by gzip. Nothing of them is stored. TLS "yes" is
TLS of a version that the log does not have. Courier logs no messages and no
deletions, Cyrus no bytes, and all three count only what RETR has downloaded.

--ready states whether the old POP3 server can be switched off now: which accounts
have used POP3 within --days, what is known of each (Postern serves it already, its
unique ids are learnt, a comparison was equal or clean), and which stand against it,
why, and what would happen to them. An observation shorter than --days, days on
which Postern was down, routes to the old server, pop3.learn_from and a brake that is
on stand against it, too. The exit status is 0 if nothing stands against it, 2 if
something does, and 1 if that could not be computed.

--back states which of the accounts that Postern serves could move back to the old
server: those that a comparison of the last day found equal, without a message
downloaded or deleted since, and those of which a comparison has shown that both
have the same store. The exit status is 0 if all could, 2 if not, and 1 as above.`,
		Example: `  postern report pop3 --since 90d --csv >pop3.csv
  postern report pop3 --ready --days 30
  postern report pop3 --since 90d --from /var/log/mail.log*`,
		Args: cobra.ArbitraryArgs,
	}
	cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault // files
	}
	path := configFlag(cmd)
	flags := cmd.Flags()
	since := flags.String("since", "30d", "seen within so many `days`; with --quiet-since the default is ever")
	quiet := flags.String("quiet-since", "", "only who has not logged in for so many `days`")
	domain := flags.String("domain", "", "only accounts of this `domain`")
	asCSV := flags.Bool("csv", false, "comma-separated values, with a header")
	totals := flags.Bool("totals", false, "only the totals")
	ready := new(readyReport)
	ready.flags(cmd)
	asJSON := jsonFlag(cmd)
	from := flags.StringArray("from", nil, "report on a `log` of the old POP3 server instead, and on those that are arguments; -: standard input")
	zone := flags.String("zone", "Local", "the time `zone` of timestamps that have none, such as Europe/Berlin")
	ready.exclude(cmd)
	cmd.MarkFlagsMutuallyExclusive("csv", "json")
	cmd.MarkFlagsMutuallyExclusive("csv", "totals")
	cmd.RunE = func(cmd *cobra.Command, logs []string) error {
		if *from == nil && len(logs) > 0 {
			return fmt.Errorf("unexpected argument %q: logs come after --from", logs[0])
		}
		now := time.Now()
		f := stored.UsageFilter{Protocol: proxy.POP3}
		for _, limit := range []struct {
			flag, text string
			day        *string
			applies    bool
		}{
			{"since", *since, &f.Since, *quiet == "" || flags.Changed("since")},
			{"quiet-since", *quiet, &f.QuietSince, *quiet != ""},
		} {
			if !limit.applies {
				continue
			}
			days, err := configs.ParseDays(limit.text)
			if err != nil {
				return fmt.Errorf("--%s: %w", limit.flag, err)
			}
			*limit.day = ledger.Day(days.Before(now))
		}
		cfg, err := configs.Read(*path)
		if errors.Is(err, fs.ErrNotExist) && *from != nil && !flags.Changed("config") {
			cfg, err = configs.Default(), nil // an operator looks into the old log before there is a configuration
		}
		if err != nil {
			return err
		}
		if *domain != "" {
			f.Domain = domainNamed(cfg, strings.TrimPrefix(*domain, "@"))
		}
		if ready.ready || ready.back {
			ready.json = *asJSON
			return ready.run(cmd, cfg, f.Domain)
		}
		if flags.Changed("days") || ready.backend != "" || ready.all {
			return errors.New("--days, --backend and --all need --ready or --back")
		}
		r := newUsageReport(cmd.OutOrStdout(), now, f.Since, usageOptions{json: *asJSON, csv: *asCSV, totals: *totals, log: *from != nil})
		if *from != nil {
			l, err := readUsageLogs(cmd, cfg, append(*from, logs...), *zone)
			if err != nil {
				return err
			}
			defer l.summarize(cmd.ErrOrStderr())
			return r.end(l.each(func(e ledger.Entry) error {
				if !f.Match(e) {
					return nil
				}
				return r.add(e)
			}))
		}
		return r.end(stored.ReportUsage.AskReadOnly(cmd.Context(), cfg, f, r.add))
	}
	return cmd
}

// domainNamed returns the domain that accounts have which log in with a domain.
func domainNamed(cfg *configs.Config, domain string) string {
	account, err := accountNamed(cfg, "postmaster@"+domain)
	if err == nil {
		if _, of, ok := strings.Cut(account, "@"); ok {
			return of
		}
	}
	return strings.ToLower(domain)
}

// A usage is an entry of the ledger as a report has it.
type usage struct {
	ledger.Entry
	QuietDays *int `json:"quiet_days"` // since the last login; nil: there was none
}

// newUsage returns an entry of the ledger, with the days from its last login to now.
func newUsage(e ledger.Entry, now time.Time) usage {
	u := usage{Entry: e}
	if last, err := time.Parse(time.DateOnly, e.Last); err == nil {
		days := max(0, int(now.Sub(last)/(24*time.Hour)))
		u.QuietDays = &days
	}
	return u
}

// A usageReport prints entries of the ledger, and their totals.
type usageReport struct {
	now    time.Time
	out    io.Writer
	print  func(usage) error // nil: only the totals
	finish func(error) error // ends what print has begun
	totals *usageTotals      // nil: no totals
	asJSON bool
}

// usageTotals are the sums of a report.
type usageTotals struct {
	Since    string         `json:"since,omitempty"` // a day; "": ever
	Accounts int            `json:"accounts"`        // that have logged in
	Logins   int64          `json:"logins"`
	Messages int64          `json:"messages"`
	Octets   int64          `json:"octets"`
	TLS      map[string]int `json:"tls"`                           // accounts, by Entry.TLS
	Habits   map[string]int `json:"habits"`                        // accounts, by Sessions.Habit
	Refused  *refusedTotals `json:"refused_without_tls,omitempty"` // nil: a log does not have them
}

// refusedTotals are the sums of accounts of which a login without TLS was refused.
type refusedTotals struct {
	Accounts int `json:"accounts"`
	Never    int `json:"never_logged_in"` // by POP3
}

// usageOptions say what to print: a table and totals, unless they say otherwise.
type usageOptions struct {
	json, csv bool
	totals    bool // only the totals
	log       bool // of a log, which does not have the logins that Postern has refused
}

func newUsageReport(out io.Writer, now time.Time, since string, o usageOptions) *usageReport {
	r := &usageReport{now: now, out: out, asJSON: o.json, finish: func(err error) error { return err }}
	if o.totals || !o.json && !o.csv {
		r.totals = &usageTotals{Since: since, TLS: make(map[string]int), Habits: make(map[string]int)}
		if !o.log {
			r.totals.Refused = new(refusedTotals)
		}
	}
	switch {
	case o.totals:
	case o.csv:
		w := csv.NewWriter(out)
		r.print = func(u usage) error { return w.Write(u.record()) }
		r.finish = func(err error) error {
			w.Flush()
			return errors.Join(err, w.Error())
		}
		_ = w.Write(usageColumns[:]) // Flush returns its error
	default:
		header, cells := "ACCOUNT\tTLS\tFIRST\tLAST\tQUIET\tLOGINS\tDAYS\tNETWORKS\tMESSAGES\tBYTES\tHABIT", usage.cells
		if !o.log {
			header += "\tREFUSED WITHOUT TLS"
			cells = func(u usage) []any { return append(u.cells(), orDash(u.Plaintext)) }
		}
		p := newPrinter(out, o.json, header, cells)
		r.print, r.finish = p.print, p.end
	}
	return r
}

func (r *usageReport) add(e ledger.Entry) error {
	if r.totals != nil {
		r.totals.add(e)
	}
	if r.print == nil {
		return nil
	}
	return r.print(newUsage(e, r.now))
}

// end prints what is left, unless err is why there is none.
func (r *usageReport) end(err error) error {
	if err := r.finish(err); err != nil || r.totals == nil {
		return err
	}
	if r.asJSON {
		return json.NewEncoder(r.out).Encode(r.totals)
	}
	return r.totals.print(r.out)
}

func (u usage) habit() string {
	if u.Sessions == nil {
		return ledger.HabitUnknown
	}
	return u.Sessions.Habit
}

// cells returns the cells of a table.
func (u usage) cells() []any {
	quiet, messages, octets := "-", "-", "-"
	if u.QuietDays != nil {
		quiet = strconv.Itoa(*u.QuietDays) + "d"
	}
	if u.Sessions != nil {
		messages, octets = u.downloaded()
	}
	return []any{
		u.Account, orDash(u.TLS), orDash(u.First), orDash(u.Last), quiet, u.Logins, numberOrDash(u.Days), numberOrDash(u.Networks),
		messages, octets, ledger.HabitWords(u.habit()),
	}
}

// downloaded returns the numbers of downloaded messages and octets. Some logs have only one
// of them.
func (u usage) downloaded() (messages, octets string) {
	messages, octets = strconv.FormatInt(u.Sessions.Messages, 10), strconv.FormatInt(u.Sessions.Octets, 10)
	switch {
	case u.Sessions.Messages == 0 && u.Sessions.Octets > 0:
		messages = "-"
	case u.Sessions.Messages > 0 && u.Sessions.Octets == 0:
		octets = "-"
	}
	return messages, octets
}

func numberOrDash(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// usageColumns are the columns of CSV.
var usageColumns = [...]string{
	"account", "tls", "first", "last", "quiet_days", "logins", "days", "networks", "sessions_since", "sessions",
	"messages", "octets", "deleted", "habit", "plaintext", "plaintext_tries",
}

// record returns the cells of usageColumns. What is not known is empty.
func (u usage) record() []string {
	quiet := ""
	if u.QuietDays != nil {
		quiet = strconv.Itoa(*u.QuietDays)
	}
	s := cmp.Or(u.Sessions, &ledger.Sessions{})
	sessions := make([]string, 4)
	if u.Sessions != nil {
		messages, octets := u.downloaded()
		sessions = []string{strconv.FormatInt(s.Ended, 10), strings.Trim(messages, "-"), strings.Trim(octets, "-"), strconv.FormatInt(s.Deleted, 10)}
	}
	return []string{
		withoutFormula(u.Account), u.TLS, u.First, u.Last, quiet, strconv.FormatInt(u.Logins, 10), strings.Trim(numberOrDash(u.Days), "-"),
		strings.Trim(numberOrDash(u.Networks), "-"), s.Since, sessions[0], sessions[1], sessions[2], sessions[3], u.habit(), u.Plaintext,
		strconv.FormatInt(u.PlaintextTries, 10),
	}
}

// withoutFormula returns a cell of CSV that no spreadsheet takes for a formula: clients
// choose the names of accounts.
func withoutFormula(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}

func (t *usageTotals) add(e ledger.Entry) {
	if e.Plaintext != "" && t.Refused != nil {
		t.Refused.Accounts++
		if e.Last == "" {
			t.Refused.Never++
		}
	}
	if e.Last == "" {
		return
	}
	t.Accounts++
	t.Logins += e.Logins
	t.TLS[e.TLS]++
	habit := ledger.HabitUnknown
	if s := e.Sessions; s != nil {
		t.Messages += s.Messages
		t.Octets += s.Octets
		habit = s.Habit
	}
	t.Habits[habit]++
}

func (t *usageTotals) print(out io.Writer) error {
	since := "ever"
	if t.Since != "" {
		since = "since " + t.Since
	}
	var versions, habits []string
	for _, v := range []string{"1.3", "1.2", "1.1", "1.0", "yes", "none"} {
		if t.TLS[v] > 0 {
			versions = append(versions, fmt.Sprintf("%s %d", v, t.TLS[v]))
		}
	}
	for _, h := range ledger.Habits() {
		if t.Habits[h] > 0 {
			habits = append(habits, fmt.Sprintf("%s %d", ledger.HabitWords(h), t.Habits[h]))
		}
	}
	_, err := fmt.Fprintf(out, "accounts that logged in by POP3 %s: %d\n  TLS: %s\n  habit: %s\n  logins: %d, messages: %d, bytes: %d\n",
		since, t.Accounts, orDash(strings.Join(versions, ", ")), orDash(strings.Join(habits, ", ")), t.Logins, t.Messages, t.Octets)
	if r := t.Refused; err == nil && r != nil {
		_, err = fmt.Fprintf(out, "accounts refused without TLS: %d, of which have never logged in by POP3: %d\n", r.Accounts, r.Never)
	}
	return err
}
