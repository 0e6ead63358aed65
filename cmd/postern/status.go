package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

// statusAttention is the exit status of status if something needs attention.
const statusAttention = exitStatus(2)

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the running Postern, and first what needs attention",
		Long: `Show the state of the running Postern on one screen: first what needs attention,
each with the next step, then listeners, backends, providers of tokens, device
passwords, certificates, the last reload, the login guard, files and descriptors. P50 and P95 are the times in which a backend
accepted half, and 95 of 100, of the logins of the last 15 minutes.

The exit status is 0 if nothing needs attention, 2 if something is critical or a
warning, and 1 if no Postern is running or the state cannot be had.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "as one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var status service.Status
		err := callRunning(cmd.Context(), *path, service.AskStatus, struct{}{}, func(s service.Status) error {
			status = s
			if *asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		})
		if err == nil && status.NeedsAttention() {
			return statusAttention
		}
		return err
	}
	return cmd
}

// The size of the screen that a status fits on.
const (
	screenWidth = 80
	mostRows    = 10 // of findings, of listeners and of servers
)

func printStatus(out io.Writer, s service.Status) error {
	w := &screen{out: out}
	state := s.Readyz
	if !s.Ready {
		state = "NOT READY: " + state
	} else if n := attention(s.Findings); n > 0 {
		state = fmt.Sprintf("ready, %s attention", counted(n, "thing needs", "things need"))
	}
	w.text(fmt.Sprintf("%s: %s", s.Hostname, state), "")
	w.text(fmt.Sprintf("Postern %s, process %d, up %s (since %s)", s.Version, s.PID, service.Span(s.At.Sub(s.Started)), moment(s.Started)), "")
	w.findings(s.Findings)
	w.listeners(s.Listeners)
	w.servers(s)
	w.line("")
	for i, line := range providerLines(s) {
		w.field([]string{"providers", ""}[min(i, 1)], line)
	}
	for i, line := range passwordLines(s.Passwords) {
		w.field([]string{"passwords", ""}[min(i, 1)], line)
	}
	w.field("certificates", certificateLine(s))
	w.field("reload", reloadLine(s.Reload))
	for i, line := range guardLines(s.Guard, s.At) {
		w.field([]string{"guard", ""}[min(i, 1)], line)
	}
	w.field("state", stateLine(s))
	w.field("descriptors", fmt.Sprintf("%d of %d", s.Descriptors.Used, s.Descriptors.Allowed))
	if b := s.Before; b != nil {
		line := fmt.Sprintf("process %d, from before the upgrade, has %s left", b.PID, counted(b.Sessions, "session", "sessions"))
		if b.Error != "" {
			line = b.Error
		}
		w.field("upgrade", line)
	}
	return w.err
}

// attention returns how many findings are more than a notice.
func attention(all []service.Finding) (n int) {
	for _, f := range all {
		if f.Severity != service.Notice {
			n++
		}
	}
	return n
}

// A screen is text of at most screenWidth columns, except for words that are longer.
type screen struct {
	out io.Writer
	err error // the first one
}

func (w *screen) line(text string) {
	if w.err == nil {
		_, w.err = fmt.Fprintln(w.out, text)
	}
}

// text prints text, whose further lines begin with indent. Characters that are not printable,
// which a server may have sent, are replaced.
func (w *screen) text(text, indent string) {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
	line := ""
	for i, word := range strings.Split(text, " ") {
		switch {
		case i == 0:
			line = word
		case len([]rune(line))+1+len([]rune(word)) > screenWidth:
			w.line(strings.TrimRight(line, " "))
			line = indent + word
		default:
			line += " " + word
		}
	}
	w.line(line)
}

// field prints a value under a name; an empty name goes on with the one before.
func (w *screen) field(name, value string) {
	const indent = 14
	w.text(fmt.Sprintf("%-*s%s", indent, name, value), strings.Repeat(" ", indent))
}

func (w *screen) findings(all []service.Finding) {
	if len(all) == 0 {
		w.text("nothing needs attention", "")
		return
	}
	const indent = 10
	for i, f := range all {
		if i == mostRows {
			w.text(fmt.Sprintf("... and %d more: postern status --json", len(all)-i), "")
			return
		}
		w.line("")
		space := strings.Repeat(" ", indent)
		w.text(fmt.Sprintf("%-*s%s", indent, strings.ToUpper(f.Severity), f.Text), space)
		if f.Detail != "" {
			w.text(space+f.Detail, space)
		}
		w.text(space+"next: "+f.Next, space)
	}
}

func (w *screen) listeners(all []service.ListenerStatus) {
	w.line("")
	t := tabwriter.NewWriter(w.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "LISTENER\tADDRESS\tTLS\tSTATE\tCONNECTIONS\tSESSIONS")
	for i, l := range all {
		if i == mostRows {
			_, _ = fmt.Fprintf(t, "... and %d more\n", len(all)-i)
			break
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\n", l.Name, l.Address, l.TLS, l.State, l.Connections, l.Sessions)
	}
	w.err = cmp.Or(w.err, t.Flush())
}

// servers prints the servers of backends, those that accept no logins first.
func (w *screen) servers(s service.Status) {
	w.line("")
	all := slices.Clone(s.Backends)
	slices.SortStableFunc(all, func(a, b service.ServerStatus) int { return cmp.Compare(rankOf(a.State), rankOf(b.State)) })
	t := tabwriter.NewWriter(w.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "BACKEND\tPROTOCOL\tSERVER\tSTATE\tCONNECTIONS\tP50\tP95")
	for i, m := range all {
		if i == mostRows {
			_, _ = fmt.Fprintf(t, "... and %d more: postern drain\n", len(all)-i)
			break
		}
		state := m.State
		if !m.Since.IsZero() && m.State != "drained" {
			state += " " + shortSpan(s.At.Sub(m.Since))
		}
		p50, p95 := "-", "-"
		if m.Logins > 0 {
			p50, p95 = milliseconds(m.P50), milliseconds(m.P95)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", m.Backend, m.Protocol, m.Address, state, m.Connections, p50, p95)
	}
	w.err = cmp.Or(w.err, t.Flush())
}

func rankOf(state string) int {
	return slices.Index([]string{"down", "unknown", "drained", "up"}, state)
}

// shortSpan formats a duration in its two largest units of days, hours, minutes and seconds.
func shortSpan(d time.Duration) string {
	switch d = max(0, d); {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%ds", int(d.Seconds()))
}

// milliseconds formats a time in milliseconds, or seconds from ten on.
func milliseconds(seconds float64) string {
	switch ms := seconds * 1000; {
	case seconds >= 10:
		return fmt.Sprintf("%.0fs", seconds)
	case ms >= 10:
		return fmt.Sprintf("%.0fms", ms)
	default:
		return fmt.Sprintf("%.1fms", ms)
	}
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// providerLines are the providers of tokens, each with its state, its tokens, and the end of
// what authenticates Postern there.
func providerLines(s service.Status) (lines []string) {
	for i, p := range s.Providers {
		if i == mostRows {
			return append(lines, fmt.Sprintf("... and %d more: postern provider list", len(s.Providers)-i))
		}
		line := p.Name + ": " + p.State
		if !p.Since.IsZero() {
			line += " for " + service.Span(s.At.Sub(p.Since))
		}
		line += ", " + counted(p.Tokens, "valid token", "valid tokens")
		if !p.Last.IsZero() {
			line += ", the last came " + service.Span(s.At.Sub(p.Last)) + " ago"
		}
		if !p.NotAfter.IsZero() {
			line += "; credential ends " + p.NotAfter.UTC().Format(time.DateOnly)
		}
		lines = append(lines, line)
	}
	return lines
}

// passwordLines are the numbers of device passwords, and what slow hashes take. p nil:
// Postern checks no passwords.
func passwordLines(p *service.PasswordStatus) (lines []string) {
	if p == nil {
		return nil
	}
	if p.Devices > 0 || p.Hashes == nil {
		parts := []string{fmt.Sprintf("devices: %d of %s", p.Devices, counted(p.Accounts, "account", "accounts"))}
		for _, other := range []struct {
			n    int
			what string
		}{{p.Expired, "past their last day"}, {p.Foreign, "of a key that is not in state.key_file"}, {p.Damaged, "that cannot be read"}} {
			if other.n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", other.n, other.what))
			}
		}
		lines = append(lines, strings.Join(parts, "; "))
	}
	if h := p.Hashes; h != nil {
		lines = append(lines, fmt.Sprintf("slow hashes: %d running, %d waiting, %s of %s", h.Running, h.Waiting, fileSize(h.Memory), fileSize(h.Limit)))
	}
	return lines
}

func certificateLine(s service.Status) string {
	if len(s.Certificates) == 0 {
		return "none"
	}
	first := s.Certificates[0]
	end := "the first ends in " + service.Span(first.NotAfter.Sub(s.At))
	if !s.At.Before(first.NotAfter) {
		end = "the first has expired"
	}
	return fmt.Sprintf("%s, %s: %s, %s (%s)", counted(len(s.Certificates), "name", "names"), end, first.Label(), moment(first.NotAfter), first.Source)
}

func reloadLine(r *service.Reload) string {
	switch {
	case r == nil:
		return "none since the start"
	case r.Error != "":
		return moment(r.At) + ": failed, nothing has changed"
	case len(r.Changed) == 0:
		return moment(r.At) + ": loaded, nothing has changed"
	}
	return moment(r.At) + ": loaded, changed: " + strings.Join(r.Changed, ", ")
}

func guardLines(g service.GuardStatus, now time.Time) []string {
	state := "on"
	if g.DryRun {
		state = "dry run"
	}
	if g.LearningSeconds > 0 {
		state += ", learning (" + service.Span(time.Duration(g.LearningSeconds*float64(time.Second))) + " left)"
	}
	refused := "nobody"
	if g.RefusedAccounts > 0 {
		refused = counted(g.RefusedAccounts, "account", "accounts") + " from " + counted(g.RefusedNetworks, "network", "networks")
	}
	lines := []string{fmt.Sprintf("%s; rate-limited now: %s", state, refused)}
	if g.FailingAccounts > 0 {
		lines = append(lines, fmt.Sprintf("wrong passwords in 5 minutes: %s, %s, %.1f %% of attempts",
			counted(g.FailingAccounts, "account", "accounts"), counted(g.FailingNetworks, "network", "networks"), 100*g.FailureRatio))
	}
	for _, r := range g.Busiest {
		lines = append(lines, fmt.Sprintf("%s from %s: %d refused (%s), for %s", cmp.Or(r.Account, "("+r.Hash+")"), r.Network, r.Refused, r.Limit, shortSpan(r.Until.Sub(now))))
	}
	return lines
}

// fileSize returns a number of octets in KiB or MiB.
func fileSize(octets int64) string {
	if octets < 1<<20 {
		return fmt.Sprintf("%d KiB", (octets+1023)/1024)
	}
	return fmt.Sprintf("%.1f MiB", float64(octets)/(1<<20))
}

func stateLine(s service.Status) string {
	if len(s.State) == 0 {
		return "off: nothing is remembered"
	}
	var parts []string
	shared := false
	for _, f := range s.State {
		shared = shared || f.Shared
		if f.Shared {
			word := "record in " + f.Name
			if f.Away != "" {
				word += ", AWAY"
			}
			parts = append(parts, word)
			continue
		}
		size := "size unknown"
		if f.Size >= 0 {
			size = fileSize(f.Size)
		}
		if f.Broken != "" {
			size += ", BROKEN"
		}
		parts = append(parts, f.Name+" "+size)
	}
	if shared { // it is backed up there
		return strings.Join(parts, ", ")
	}
	backup := "no backup since the start"
	if !s.Backup.IsZero() {
		backup = "backup " + moment(s.Backup)
	}
	return strings.Join(parts, ", ") + "; " + backup
}
