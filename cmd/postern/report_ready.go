package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/ledger"
	"postern/proxy"
)

// notReady is the exit status of a statement against which something stands.
const notReady exitStatus = 2

// A readyReport computes whether an old POP3 server can be switched off, or with back
// whether accounts can move back to it.
type readyReport struct {
	ready, back bool
	days        int
	backend     string
	all         bool
	json        bool
}

// maxDays is how many days can be judged: the ledger's retention.
const maxDays = 400

// flags adds the flags to cmd.
func (r *readyReport) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.ready, "ready", false, "state whether the old POP3 server can be switched off, and what stands against it")
	f.BoolVar(&r.back, "back", false, "state which accounts could move back to the old POP3 server without a client that notices")
	f.IntVar(&r.days, "days", 30, "with --ready and --back: accounts count that used POP3 within so many `days`")
	f.StringVar(&r.backend, "backend", "", "with --ready and --back: only accounts of this `backend`, and those of which it is not known")
	f.BoolVar(&r.all, "all", false, "with --ready and --back: list all accounts, not 20 for each reason")
}

// exclude makes other flags of cmd exclude those of r.
func (*readyReport) exclude(cmd *cobra.Command) {
	cmd.MarkFlagsMutuallyExclusive("ready", "back")
	for _, other := range []string{"since", "quiet-since", "csv", "totals", "from"} {
		cmd.MarkFlagsMutuallyExclusive("ready", other)
		cmd.MarkFlagsMutuallyExclusive("back", other)
	}
}

// A judgedAccount is an account that has used POP3, and what becomes of it.
type judgedAccount struct {
	Account string `json:"account"`
	ledger.Judgement
	Habit string `json:"habit"` // ledger.Habit...
	Last  string `json:"last"`  // day of the last POP3 login; "": there was none
}

// A statement is whether the old POP3 server can be switched off. Against it stands what is
// in Reasons, and the accounts in Against.
type statement struct {
	Verdict string               `json:"verdict"` // in words
	Ready   bool                 `json:"ready"`
	Time    time.Time            `json:"time"`
	Since   string               `json:"since"` // a day
	Backend string               `json:"backend,omitempty"`
	Domain  string               `json:"domain,omitempty"` // of the accounts
	Reasons []string             `json:"reasons"`
	Active  int                  `json:"active"`           // accounts that used POP3 since then
	Quiet   int                  `json:"quiet"`            // other known accounts: they have used POP3 before, or their unique ids are recorded
	Classes map[ledger.Class]int `json:"classes"`          // of Active
	Against []judgedAccount      `json:"against"`          // of Active
	Habits  map[string]int       `json:"habits,omitempty"` // of Active, by ledger.Habit...
}

// run prints the statement. domain is that of accounts; "": any.
func (r *readyReport) run(cmd *cobra.Command, cfg *configs.Config, domain string) error {
	if r.days < 0 || r.days > maxDays {
		return fmt.Errorf("--days: %d is not one of 0 to %d", r.days, maxDays)
	}
	if kept := int(cfg.Retention.Ledger); r.days > kept {
		return fmt.Errorf("--days: accounts that were quiet for longer than retention.ledger, %d days, are forgotten; give no more days, or make retention.ledger longer and wait", kept)
	}
	if _, ok := cfg.Backends[r.backend]; r.backend != "" && !ok {
		return fmt.Errorf("--backend: there is no backend %q", r.backend)
	}
	if cfg.State.Path == "" {
		return errors.New("state.path is not set: nothing is known of accounts")
	}
	uses, err := service.FindUsesOfOldServer(cfg)
	if err != nil {
		return err
	}
	now := time.Now()
	c := ledger.Conditions{Now: now, Since: ledger.Day(now.AddDate(0, 0, -r.days)), Off: uses.Off, Learn: uses.Learn}
	var entries []ledger.Entry
	err = stored.ReportUsage.AskReadOnly(cmd.Context(), cfg, stored.UsageFilter{Protocol: proxy.POP3, Domain: domain}, func(e ledger.Entry) error {
		if r.backend == "" || e.Migration == nil || e.Migration.Backend == "" || e.Migration.Backend == r.backend {
			entries = append(entries, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if r.back {
		return r.printBack(cmd.OutOrStdout(), c, entries)
	}
	var around stored.Surroundings
	err = stored.ReportSurroundings.AskReadOnly(cmd.Context(), cfg, c.Since, func(s stored.Surroundings) error { around = s; return nil })
	if err != nil {
		return err
	}
	s := judgeAll(c, entries)
	s.Backend, s.Domain = r.backend, domain
	s.Reasons = append(s.Reasons, uses.Ways...)
	s.Reasons = append(s.Reasons, unobserved(around.Days, now, r.days)...)
	if s.Active+s.Quiet == 0 {
		s.Reasons = append(s.Reasons, "Postern knows of no account that has used POP3: absence proves nothing; lead the POP3 clients of the old server through Postern")
	}
	for _, backend := range around.Brakes {
		if _, ok := cfg.Backends[backend]; ok {
			s.Reasons = append(s.Reasons, fmt.Sprintf("the brake of backend %s is on: postern status says why", backend))
		}
	}
	s.conclude()
	if r.json {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(s)
	} else {
		err = s.print(cmd.OutOrStdout(), r.all)
	}
	if err == nil && !s.Ready {
		return notReady
	}
	return err
}

// judgeAll judges accounts.
func judgeAll(c ledger.Conditions, entries []ledger.Entry) *statement {
	s := &statement{
		Time: c.Now.UTC().Truncate(time.Second), Since: c.Since, Reasons: []string{}, Classes: make(map[ledger.Class]int), Against: []judgedAccount{},
		Habits: make(map[string]int),
	}
	for _, e := range entries {
		if !c.Active(e) {
			if e.Last != "" || e.Migration != nil {
				s.Quiet++
			}
			continue
		}
		s.Active++
		j, habit := c.Judge(e), newUsage(e, c.Now).habit()
		s.Classes[j.Class]++
		s.Habits[habit]++
		if j.Against {
			s.Against = append(s.Against, judgedAccount{e.Account, j, habit, e.Last})
		}
	}
	return s
}

// unobserved returns what stands against a statement about the last n days because Postern has
// not observed them.
func unobserved(days []ledger.Observed, now time.Time, n int) (reasons []string) {
	enough := make(map[string]ledger.Observed, len(days))
	begun := ledger.Day(now) // the first day of observation
	for _, d := range days {
		begun = min(begun, d.Day)
		enough[d.Day] = d
	}
	var short []string
	last := time.Time{} // the last day that is missing
	for i := n; i >= 1; i-- {
		at := now.UTC().AddDate(0, 0, -i)
		day := ledger.Day(at)
		d := enough[day]
		if d.Enough() {
			continue
		}
		if last = at; day > begun {
			short = append(short, fmt.Sprintf("%s (%d of 24 hours)", day, d.Seconds/3600))
		}
	}
	if last.IsZero() {
		return nil
	}
	long := fmt.Sprintf("long enough on %s, if Postern runs until then", ledger.Day(last.AddDate(0, 0, n+1)))
	if first := ledger.Day(now.UTC().AddDate(0, 0, -n)); !enough[first].Enough() && begun >= first {
		reasons = append(reasons, fmt.Sprintf("Postern has observed since %s, which is shorter than %d days: %s", begun, n, long))
	}
	if short != nil {
		some := strings.Join(short[:min(len(short), 5)], ", ")
		if more := len(short) - 5; more > 0 {
			some += fmt.Sprintf(" and %d more", more)
		}
		reasons = append(reasons, fmt.Sprintf("Postern was down on %s: %s", some, long))
	}
	return reasons
}

// conclude sets the verdict.
func (s *statement) conclude() {
	accounts := "accounts"
	if s.Backend != "" {
		accounts += " of backend " + s.Backend
	}
	if s.Domain != "" {
		accounts += " of " + s.Domain
	}
	s.Ready = len(s.Reasons) == 0 && len(s.Against) == 0
	if s.Ready {
		s.Verdict = fmt.Sprintf("safe to switch off: nothing stands against it for the %d %s that used POP3 since %s", s.Active, accounts, s.Since)
		return
	}
	var against []string
	if n := len(s.Against); n > 0 {
		against = append(against, fmt.Sprintf("%d of %d %s that used POP3 since %s", n, s.Active, accounts, s.Since))
	}
	switch n := len(s.Reasons); n {
	case 0:
	case 1:
		against = append(against, "1 reason beside the accounts")
	default:
		against = append(against, fmt.Sprintf("%d reasons beside the accounts", n))
	}
	s.Verdict = "NOT safe to switch off; against it: " + strings.Join(against, ", and ")
}

// print prints s, of each class up to toLookAt accounts unless all is set.
func (s *statement) print(out io.Writer, all bool) error {
	_, _ = fmt.Fprintln(out, s.Verdict)
	for _, reason := range s.Reasons {
		_, _ = fmt.Fprintf(out, "against it: %s\n", reason)
	}
	_, _ = fmt.Fprintf(out, "\naccounts that used POP3 since %s: %d\n", s.Since, s.Active)
	fine, against := ledger.Classes()
	for _, c := range fine {
		if n := s.Classes[c]; n > 0 {
			_, _ = fmt.Fprintf(out, "  %d: %s\n", n, c.Words())
		}
	}
	for _, c := range against {
		if n := s.Classes[c]; n > 0 {
			_, _ = fmt.Fprintf(out, "  %d, against it: %s\n", n, c.Words())
		}
	}
	if s.Quiet > 0 {
		_, _ = fmt.Fprintf(out, "known accounts that have not: %d\n", s.Quiet)
	}
	for _, c := range against {
		s.list(out, c, all)
	}
	_, err := fmt.Fprintln(out, "\nPostern knows only the sessions that it has served itself. Next: docs/monitoring.md, \"Safe to switch off\".")
	return err
}

// list prints the accounts of a class.
func (s *statement) list(out io.Writer, c ledger.Class, all bool) {
	n, most := 0, toLookAt
	if all {
		most = len(s.Against)
	}
	for _, a := range s.Against {
		if a.Class != c {
			continue
		}
		if n == 0 {
			_, _ = fmt.Fprintf(out, "\n%s:\n", c.Words())
		}
		if n++; n <= most {
			_, _ = fmt.Fprintf(out, "  %s (%s, last login %s): %s\n    now switched off: %s\n", a.Account, ledger.HabitWords(a.Habit), orDash(a.Last), a.Reason, a.Effect)
		}
	}
	if n > most {
		_, _ = fmt.Fprintf(out, "  and %d more: --all or --json lists them\n", n-most)
	}
}

// A backAccount is an account that Postern's own POP3 serves, and whether it could move back.
type backAccount struct {
	Account string `json:"account"`
	Safe    bool   `json:"safe"`
	Why     string `json:"why"`
	Habit   string `json:"habit"`
	Last    string `json:"last"`
}

// printBack prints which accounts could move back to the old server.
func (r *readyReport) printBack(out io.Writer, c ledger.Conditions, entries []ledger.Entry) error {
	all := []backAccount{}
	safe := 0
	for _, e := range entries {
		if !c.Active(e) || c.Judge(e).Class != ledger.Bridged {
			continue
		}
		a := backAccount{Account: e.Account, Habit: newUsage(e, c.Now).habit(), Last: e.Last}
		if a.Safe, a.Why = c.MovesBack(e); a.Safe {
			safe++
		}
		all = append(all, a)
	}
	if r.json {
		p := newPrinter[backAccount](out, true, "", nil)
		for _, a := range all {
			if err := p.print(a); err != nil {
				return err
			}
		}
		return r.endBack(p.end(nil), safe == len(all))
	}
	_, _ = fmt.Fprintf(out, "accounts that could move back to the old server: %d of %d that Postern's own POP3 serves\n", safe, len(all))
	slices.SortStableFunc(all, func(a, b backAccount) int { // the safe ones last
		switch {
		case a.Safe == b.Safe:
			return 0
		case b.Safe:
			return -1
		}
		return 1
	})
	for _, safe := range []bool{false, true} {
		n := 0
		for _, a := range all {
			if a.Safe != safe {
				continue
			}
			if n == 0 && safe {
				_, _ = fmt.Fprintln(out, "\nsafe:")
			} else if n == 0 {
				_, _ = fmt.Fprintln(out, "\nnot known to be safe; what was delivered or deleted since the move may be in one place alone:")
			}
			if n++; n <= toLookAt || r.all {
				_, _ = fmt.Fprintf(out, "  %s (%s, last login %s): %s\n", a.Account, ledger.HabitWords(a.Habit), orDash(a.Last), a.Why)
			}
		}
		if n > toLookAt && !r.all {
			_, _ = fmt.Fprintf(out, "  and %d more: --all or --json lists them\n", n-toLookAt)
		}
	}
	if safe < len(all) {
		_, _ = fmt.Fprintln(out, "\nA comparison that is younger than a day says more: postern uidl compare.")
	}
	return r.endBack(nil, safe == len(all))
}

func (r *readyReport) endBack(err error, safe bool) error {
	if err == nil && !safe {
		return notReady
	}
	return err
}
