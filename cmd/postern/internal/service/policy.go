package service

import (
	"fmt"
	"time"

	"postern/metrics"
	"postern/proxy"
	"postern/proxy/route"
)

// How many days before the last day of POP3 somebody has to know: an operator who looks at
// the status, and one who checks a configuration.
const (
	noticeDays = 14
	warnDays   = 7
)

// switches returns what policy.file switches off.
func (r *routing) switches() []route.Switch {
	if r == nil || r.policy == nil {
		return nil
	}
	return r.policy.Switches()
}

// explainPolicy returns lines that say what policy.file switches off, and until when POP3
// works: the days to come, the first of them.
func (g *generation) explainPolicy(now time.Time) (all []string) {
	const most = 5
	var ended route.Lines
	last, ahead := "", 0
	for _, s := range g.routing.switches() {
		switch {
		case s.LastDay == "":
			all = append(all, fmt.Sprintf("policy.file: %s is off for %s", s.Protocol, s.Lines))
		case s.Ended(now):
			ended, last = ended.Plus(s.Lines), s.LastDay
		default:
			if ended != (route.Lines{}) {
				all, ended = append(all, explainEnded(ended, last)), route.Lines{}
			}
			if ahead++; ahead <= most {
				all = append(all, fmt.Sprintf("policy.file: the last day of POP3 is %s (%s) for %s", s.LastDay, inDays(s.LastDay, now), s.Lines))
			}
			last = s.LastDay
		}
	}
	if ended != (route.Lines{}) {
		all = append(all, explainEnded(ended, last))
	}
	if ahead > most {
		all = append(all, fmt.Sprintf("policy.file: %d later days are not shown, the last one is %s", ahead-most, last))
	}
	if last != "" {
		zone, offset := now.Zone()
		all = append(all, fmt.Sprintf("policy.file: a last day ends at midnight of this machine's time zone, now %s (UTC%+03d:%02d)",
			zone, offset/3600, max(offset, -offset)%3600/60))
	}
	return all
}

func explainEnded(lines route.Lines, last string) string {
	return fmt.Sprintf("policy.file: POP3 was switched off for %s after a last day, the latest %s", lines, last)
}

// daysUntil returns the number of days from the date of now to day, such as 2027-01-31.
func daysUntil(day string, now time.Time) int {
	to, err := time.Parse(time.DateOnly, day)
	if err != nil { // package route has checked it
		return 0
	}
	today := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC)
	return int(to.Sub(today) / (24 * time.Hour))
}

func inDays(day string, now time.Time) string {
	switch n := daysUntil(day, now); n {
	case 0:
		return "today"
	case 1:
		return "tomorrow"
	default:
		return fmt.Sprintf("in %d days", n)
	}
}

// endingWithin returns the last days of POP3 from that of now on, at most days later.
func (r *routing) endingWithin(days int, now time.Time) (all []route.Switch) {
	for _, s := range r.switches() {
		if s.LastDay != "" && !s.Ended(now) && daysUntil(s.LastDay, now) <= days {
			all = append(all, s)
		}
	}
	return all
}

func endOfPOP3(s route.Switch, now time.Time) string {
	return fmt.Sprintf("POP3 ends for %s: the last day is %s (%s)", s.Lines, s.LastDay, inDays(s.LastDay, now))
}

// findEndOfPOP3 finds that POP3 ends soon.
func (g *generation) findEndOfPOP3(now time.Time, all *findingList) {
	soon := g.routing.endingWithin(noticeDays, now)
	if len(soon) == 0 {
		return
	}
	detail := ""
	for _, s := range soon[1:] {
		if detail != "" {
			detail += ", "
		}
		detail += fmt.Sprintf("%s for %s", s.LastDay, s.Lines)
	}
	if detail != "" {
		detail = "later last days: " + detail
	}
	all.add(Notice, endOfPOP3(soon[0], now), detail, "postern report pop3 says who still uses POP3, docs/support.md what to tell them")
}

// policyGauges returns the figures of policy.file for metrics.
func (s *Service) policyGauges() (p metrics.Policy) {
	g := s.current.Load()
	if g == nil {
		return p
	}
	now := time.Now()
	for _, one := range g.routing.switches() {
		lines := metrics.PolicyLines(one.Lines)
		switch {
		case one.Protocol != proxy.POP3:
		case one.LastDay == "":
			p.Off = lines
		case one.Ended(now):
			p.Ended = p.Ended.Plus(lines)
		default:
			p.Ending = p.Ending.Plus(lines)
		}
	}
	return p
}
