package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy"
)

func whyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why ACCOUNT",
		Short: "Say how the last logins of an account ended, why, and what to do",
		Long: `Say how the last logins and sessions of an account ended, the last one at the end:
what happened, what to do, and the session id, which every line of the log has.
The account may be written as the user types it.

Failures before a login, such as a certificate that the mail program rejects, have no
account: those of networks from which the account has logged in are shown, too.

The running Postern remembers the last 32 outcomes of an account, the same ones
within an hour as one, and after an upgrade those of the process before. A restart
forgets all: the log has them. The answer says since when it remembers.`,
		Example: `postern why alice@example.org
postern why alice@example.org --since 1h --network 192.0.2.1`,
	}
	path := configFlag(cmd)
	since := durationFlag(cmd, "since", 0, "only what ended within this time, such as 1h; 0s: all that is remembered")
	network := cmd.Flags().String("network", "", "only from this `network` or address, and failures before a login from there")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := service.WhyQuestion{Account: args[0]}
		if *since > 0 {
			q.Since = time.Now().Add(-*since)
		}
		if *network != "" {
			var err error
			if q.Network, err = configs.ParseNetwork(*network); err != nil {
				return err
			}
		}
		return callRunning(cmd.Context(), *path, service.AskWhy, q, func(w *service.Why) error {
			if *asJSON {
				return encodeWhy(cmd.OutOrStdout(), w)
			}
			return printWhy(cmd.OutOrStdout(), w, q)
		})
	}
	return cmd
}

// encodeWhy writes w with the words for each outcome.
func encodeWhy(out io.Writer, w *service.Why) error {
	type outcome struct {
		service.WhyOutcome
		Text   string `json:"text"`
		Advice string `json:"advice"`
	}
	answer := struct {
		*service.Why
		Outcomes []outcome `json:"outcomes"`
	}{w, []outcome{}}
	for _, o := range w.Outcomes {
		text, advice := wordsOf(o, w.Account)
		answer.Outcomes = append(answer.Outcomes, outcome{o, text, advice})
	}
	return json.NewEncoder(out).Encode(answer)
}

// whyTime is the form of times that people compare with a clock.
const whyTime = "2006-01-02 15:04:05"

func printWhy(out io.Writer, w *service.Why, q service.WhyQuestion) error {
	p := &whyPrinter{out: out}
	p.account(w)
	p.line("")
	switch {
	case len(w.Outcomes) > 0:
	case q.Network.IsValid() || !q.Since.IsZero():
		p.line("Nothing is remembered that fits --since and --network.")
	default:
		p.line("No login since %s, and no failure of a network of this account.", w.Since.Local().Format(whyTime))
	}
	for _, o := range w.Outcomes {
		p.outcome(w, o)
	}
	for _, n := range w.Now {
		p.now(w.Account, n)
	}
	return p.err
}

// A whyPrinter prints lines until the first error.
type whyPrinter struct {
	out io.Writer
	err error
}

func (p *whyPrinter) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format+"\n", args...)
	}
}

// account prints what is known of the account.
func (p *whyPrinter) account(w *service.Why) {
	switch {
	case w.Malformed != "":
		p.line("%q can be no account: %s", w.Account, w.Malformed)
	case len(w.Ledger) > 0:
		for _, e := range w.Ledger {
			p.line("%s: %s since %s, last login on %s (UTC), logins: %d", w.Account, e.Protocol, e.First, e.Last, e.Logins)
		}
	case w.Known:
		p.line("%s: known here, no login in the ledger", w.Account)
	case w.LedgerError != "":
		p.line("%s: not known to the login guard; whether it has logged in before cannot be said", w.Account)
	default:
		p.line("%s: no login with this name is known. Compare the spelling with the mail server's accounts.", w.Account)
	}
	if w.LedgerError != "" {
		p.line("ledger: %s", w.LedgerError)
	}
	switch {
	case w.RouteError != "":
		p.line("backend: cannot be said: %s", w.RouteError)
	case w.Refusing != "":
		p.line("backend: %s, which accepts no logins now: %s (postern status)", w.Backend, w.Refusing)
	case w.Backend != "":
		p.line("backend: %s", w.Backend)
	}
	off := w.Off
	if day := w.POP3LastDay; day != "" {
		when := "will be"
		if i := slices.Index(off, proxy.POP3); i >= 0 {
			when, off = "was", slices.Delete(slices.Clone(off), i, i+1)
		}
		p.line("POP3 %s switched off for this account after its last day, %s (policy.file)", when, day)
	}
	if len(off) > 0 {
		p.line("switched off for this account by policy.file: %s", strings.Join(off, ", "))
	}
	if w.Networks > 0 {
		p.line("known networks: %d (the login guard has hashes of them, no addresses)", w.Networks)
	}
	p.line("in the log: %s", w.InLog)
	zone, offset := w.Since.Local().Zone()
	p.line("remembered since: %s; earlier ones are in the log alone. Times are %s (UTC%+d:%02d).",
		w.Since.Local().Format(whyTime), zone, offset/3600, max(offset, -offset)%3600/60)
}

// outcome prints an outcome.
func (p *whyPrinter) outcome(w *service.Why, o service.WhyOutcome) {
	p.line("%s  %s from %s", whenOf(o), o.Protocol, placeOf(o))
	text, advice := wordsOf(o, w.Account)
	p.line("    %s", text)
	if o.Detail != "" && !saysDetail(o) {
		p.line("    Detail: %s", o.Detail)
	}
	if advice != "" {
		p.line("    To do: %s", advice)
	}
	if o.Session != "" {
		p.line("    Session: %s", o.Session)
	}
	p.line("")
}

// whenOf says when an outcome was, and how often.
func whenOf(o service.WhyOutcome) string {
	first, last := o.First.Local(), o.Last.Local()
	when := last.Format(whyTime)
	switch {
	case o.Count == 1:
		return when
	case first.Equal(last):
	case first.Format(time.DateOnly) == last.Format(time.DateOnly):
		when = first.Format(whyTime) + " - " + last.Format(time.TimeOnly)
	default:
		when = first.Format(whyTime) + " - " + when
	}
	return fmt.Sprintf("%s, %d times", when, o.Count)
}

// placeOf says where an outcome came from.
func placeOf(o service.WhyOutcome) string {
	place := o.Network
	if place == "" {
		place = "an unknown address"
	}
	switch {
	case !o.Account && o.Own:
		return place + ", a network that this account uses (the client was not logged in: it may be somebody else's)"
	case !o.Account:
		return place + " (the client was not logged in: it may be anybody's)"
	case o.Own:
		return place + ", a network that this account uses"
	}
	return place + ", a network from which this account had not logged in lately"
}

// now prints what a login would meet now.
func (p *whyPrinter) now(account string, n service.WhyNetwork) {
	switch {
	case n.Refused == "":
		p.line("Now the login guard would let a login from %s pass: the backend checks the password.", n.Network)
	case n.DryRun:
		p.line("Now the login guard would let a login from %s pass; without guard.dry_run it would refuse it: %s.", n.Network, limitWords(n.Refused))
	case n.Until.IsZero():
		p.line("Now the login guard would refuse a login from %s: %s.", n.Network, limitWords(n.Refused))
	default:
		p.line("Now the login guard would refuse a login from %s until %s: %s.", n.Network, n.Until.Local().Format(time.TimeOnly), limitWords(n.Refused))
		advice := "find the device that sends the wrong password, then: postern guard unlock " + account + "."
		if !n.Own {
			advice = ifTheUser + advice + ifNot
		}
		p.line("    To do: %s", advice)
	}
}
