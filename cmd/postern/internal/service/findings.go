package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/listen"
	"postern/proxy/route"
)

// The severities of a Finding, the most urgent first.
const (
	Critical = "critical" // clients are refused, or will be soon
	Warning  = "warning"  // somebody should look; with it Postern is degraded
	Notice   = "notice"   // worth knowing
)

// A Finding is a fault of the running Postern that an operator should know. The command
// status, the status page and /readyz show the same findings.
type Finding struct {
	Severity string `json:"severity"`
	Text     string `json:"text"`             // what is wrong, without addresses and errors: /readyz may be open to all
	Detail   string `json:"detail,omitempty"` // address, error
	Next     string `json:"next"`             // what to do next

	everywhere bool // another Postern would see the same: no matter for /readyz
}

// A findingList collects findings.
type findingList []Finding

func (l *findingList) add(severity, text, detail, next string) {
	*l = append(*l, Finding{Severity: severity, Text: text, Detail: detail, Next: next})
}

// findings returns what needs attention, the most urgent first.
func (s *Service) findings() []Finding {
	var all findingList
	now, g := time.Now(), s.current.Load()
	if s.drained.Load() {
		all.add(Warning, "this Postern is drained: /readyz says 503, clients that come are served", "", "postern drain --self --undo")
	}
	s.findDescriptors(g, &all)
	if g != nil {
		g.findBackends(now, &all)
		g.findProviders(now, &all)
		g.findDevices(&all)
		g.findStaleFiles(&all)
		g.findEndOfPOP3(now, &all)
	}
	s.activity.findHeaders(now, &all)
	s.findCertificates(&all)
	if r := s.lastReload.Load(); r != nil && r.Error != "" {
		all.add(Warning, "the last reload has failed: the configuration before it is still served",
			r.At.UTC().Format(dateTime)+": "+firstLine(r.Error), "postern check, then postern reload")
	}
	s.findState(&all)
	if s.dryRun() {
		all.add(Notice, "the login guard is in dry_run: it counts and refuses nobody", "", "see what it would refuse (postern guard list), then guard.dry_run: false")
	}
	if n := s.activity.panics.Load(); n > 0 {
		all.add(Notice, fmt.Sprintf("bugs caught since the start: %d", n), "each has ended one connection", "report the stack in the log (panic)")
	}
	rank := map[string]int{Critical: 0, Warning: 1, Notice: 2}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	return all
}

// An accountFile is a file of accounts that is read again when it changes.
type accountFile struct {
	key   string // in the configuration
	stale error  // why it was not loaded since it has changed; nil: it was
}

// accountFiles returns the files of accounts.
func (g *generation) accountFiles() (all []accountFile) {
	for i, rule := range g.routing.rules {
		if f, ok := rule.(*route.File); ok {
			all = append(all, accountFile{fmt.Sprintf("routes[%d].file", i), f.Stale()})
		}
	}
	if p := g.routing.policy; p != nil {
		all = append(all, accountFile{"policy.file", p.Stale()})
	}
	if f := g.passwords.file; f != nil {
		all = append(all, accountFile{"passwords.file", f.Stale()})
	}
	for _, name := range slices.Sorted(maps.Keys(g.sources)) {
		if names := g.sources[name].Names; names != nil {
			all = append(all, accountFile{"backends." + name + ".names_file", names.Stale()})
		}
	}
	return all
}

// findStaleFiles finds files of accounts that have changed and could not be loaded.
func (g *generation) findStaleFiles(all *findingList) {
	for _, f := range g.accountFiles() {
		if f.stale != nil {
			all.add(Warning, f.key+" has changed and was not loaded: its content before is in use", f.stale.Error(), "correct the file (postern check has all mistakes); it is read again by itself")
		}
	}
}

// firstLine returns the first line of an error with several mistakes.
func firstLine(text string) string {
	first, rest, more := strings.Cut(strings.TrimSpace(text), "\n")
	if more {
		first += fmt.Sprintf(" (and %d more)", 1+strings.Count(rest, "\n"))
	}
	return first
}

// degraded returns the findings that need an operator although clients are served, or
// nil.
func (s *Service) degraded() error {
	const most = 5
	var texts []string
	for _, f := range s.findings() {
		if f.Severity == Notice || f.everywhere {
			continue
		}
		if len(texts) == most {
			texts = append(texts, "and more: postern status")
			break
		}
		texts = append(texts, f.Text)
	}
	if texts == nil {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

// findDescriptors finds too few file descriptors.
func (s *Service) findDescriptors(g *generation, all *findingList) {
	if err := listen.CheckDescriptors(); err != nil {
		all.add(Critical, err.Error(), "", "raise LimitNOFILE in the unit, and restart")
		return
	}
	used, allowed := openDescriptors()
	if used > allowed/5*4 {
		all.add(Warning, fmt.Sprintf("%d of %d file descriptors are in use", used, allowed), "", "raise LimitNOFILE in the unit, and restart")
	}
	if g == nil {
		return
	}
	if needed, allowed := g.descriptors(); needed > allowed {
		all.add(Notice, fmt.Sprintf("limits.max_connections %d needs %d file descriptors, %d are allowed", g.cfg.Limits.MaxConnections, needed, allowed),
			"", "raise LimitNOFILE in the unit, or lower limits.max_connections")
	}
}

// openDescriptors returns the number of the process's open file descriptors, and the limit.
// used is 0 if it is not known.
func openDescriptors() (used, allowed int) {
	allowed, _ = listen.Descriptors()
	if all, err := os.ReadDir("/proc/self/fd"); err == nil {
		used = len(all) - 1 // one is the open folder
	}
	return used, allowed
}

// findBackends finds servers that get no logins, and faults of backends. A pool that no
// listener uses is left out.
func (g *generation) findBackends(now time.Time, all *findingList) {
	users := make(map[poolKey][]string) // protocols
	served := g.served()
	for _, protocol := range slices.Sorted(maps.Keys(served)) {
		for _, key := range served[protocol] {
			users[key] = append(users[key], protocol)
		}
		if len(served[protocol]) == 0 {
			all.add(Critical, fmt.Sprintf("no route leads to a backend with %s", protocol), "", "see routes and backends in the configuration")
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(users), poolKey.compare) {
		members := g.pools[key].Status()
		g.findServers(key, members, strings.Join(users[key], " and "), now, all)
		if slices.ContainsFunc(members, func(m backend.MemberStatus) bool { return m.IdentityRefused }) {
			severity := Notice // the default identity is an offer
			if g.cfg.IsSet(fmt.Sprintf("backends.%s.%s.identity", key.name, key.protocol)) {
				severity = Warning
			}
			all.add(severity, fmt.Sprintf("backend %s (%s) takes Postern for the client", key.name, key.protocol), "it does not offer the configured identity",
				"let the backend trust Postern's address; postern check --probe names the setting")
		}
		brake := g.pop3.shared[key.name].brake
		if brake == nil || key.protocol != proxy.IMAP || !slices.Contains(users[key], proxy.POP3) {
			continue
		}
		if b := brake.Status(); b.Braked() {
			*all = append(*all, Finding{
				Severity: Critical, Text: fmt.Sprintf("many mailboxes of backend %s look different: POP3 logins to these are refused", key.name),
				Next: "if the change is intended: postern uidl accept " + key.name, everywhere: true,
			})
		}
	}
}

// findServers finds the servers of a pool that get no logins. protocols are those of the
// clients that the pool serves.
func (g *generation) findServers(key poolKey, members []backend.MemberStatus, protocols string, now time.Time, all *findingList) {
	n := countMembers(members)
	if n.accepting == len(members) || n.accepting > 0 && n.down+n.drained == 0 {
		return
	}
	detail := ""
	for _, m := range members {
		if detail == "" && stateOf(m) == stateDown {
			detail = fmt.Sprintf("%s, for %s", m.Address, Span(now.Sub(m.Since)))
			if m.Err != nil {
				detail += ": " + reasonOf(m.Err, key, m.Address)
			}
		}
	}
	next := "postern check --probe"
	if n.down == 0 && n.drained > 0 {
		next = fmt.Sprintf("postern drain %s --undo", key.name)
	}
	if n.accepting == 0 {
		text := fmt.Sprintf("backend %s accepts no %s logins: it is %s", key.name, protocols, n.word())
		if n.unknown > 0 {
			next = "look again in a few seconds: the first probe has not ended"
		}
		all.add(Critical, text, detail, next)
		return
	}
	var parts []string
	for state, count := range map[string]int{stateDown: n.down, stateDrained: n.drained} {
		if count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count, state))
		}
	}
	slices.Sort(parts)
	all.add(Warning, fmt.Sprintf("backend %s (%s): of %d servers %s", key.name, protocols, len(members), strings.Join(parts, " and ")), detail, next)
}

// reasonOf returns err without the words that name the backend and its address, which
// stand before.
func reasonOf(err error, key poolKey, address string) string {
	text := err.Error()
	for _, mark := range []string{" at " + address + ": ", fmt.Sprintf("backend %s, %s: ", key.name, key.protocol)} {
		if _, after, ok := strings.Cut(text, mark); ok {
			return after
		}
	}
	return text
}

// findState finds files of the state that are broken or lost.
func (s *Service) findState(all *findingList) {
	a := s.Storage.Opened.Load()
	switch {
	case a == nil:
	case a.Record.Err() != nil:
		all.add(Critical, stored.RecordFile+" is broken: POP3 logins are refused temporarily", a.Record.Err().Error(),
			"postern state check. If the file is damaged, put a backup back before Postern starts again: with a damaged file nothing starts, IMAP neither")
	case a.Shared.Err() != nil:
		all.add(Critical, "the shared record is not available: POP3 logins, and those with device passwords, are refused temporarily",
			a.Shared.Where+": "+a.Shared.Err().Error(), "look at the database or the owner; this Postern asks again each second or two")
		(*all)[len(*all)-1].everywhere = true
	case a.Cache.Err() != nil:
		all.add(Warning, stored.CacheFile+" is broken: POP3 logins take longer", a.Cache.Err().Error(), "restart Postern, which makes the file anew")
	case a.Lost.Load() > 0:
		all.add(Critical, fmt.Sprintf("%s: %s has nothing of %d accounts that POP3 clients use", stored.LostRecord, stored.RecordFile, a.Lost.Load()), "", stored.LostRemedy)
	}
}

// dateTime is the form of times for operators, in UTC.
const dateTime = "2006-01-02 15:04:05Z"

// Span formats a duration in days, hours, minutes or seconds.
func Span(d time.Duration) string {
	const day = 24 * time.Hour
	one := func(n time.Duration, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch {
	case d >= 2*day:
		return one(d/day, "day")
	case d >= 2*time.Hour:
		return one(d/time.Hour, "hour")
	case d >= 2*time.Minute:
		return one(d/time.Minute, "minute")
	}
	return one(max(0, d/time.Second), "second")
}
