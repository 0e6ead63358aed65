package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/metrics/ledger"
	"postern/metrics/outcomes"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/guard"
)

// AskWhy is the request for the last outcomes of an account.
const AskWhy = "why"

// A WhyQuestion asks how the last logins of an account ended.
type WhyQuestion struct {
	Account string       `json:"account"`          // as typed
	Since   time.Time    `json:"since,omitzero"`   // outcomes that ended earlier are left out
	Network netip.Prefix `json:"network,omitzero"` // only outcomes from here
}

// LogValue implements slog.LogValuer.
func (q WhyQuestion) LogValue() slog.Value {
	network := ""
	if q.Network.IsValid() {
		network = q.Network.String()
	}
	return admin.Arguments("account", q.Account, "network", network)
}

// A Why is the answer to a WhyQuestion.
type Why struct {
	Account     string         `json:"account"` // as logins have it; as typed if Malformed
	AccountHash string         `json:"account_hash"`
	InLog       string         `json:"in_log"`              // by which lines of the log are found, such as account=alice
	Malformed   string         `json:"malformed,omitempty"` // why the name cannot be an account
	Known       bool           `json:"known"`               // the account has logged in before, or a file lists it
	Since       time.Time      `json:"remembered_since"`    // earlier outcomes are in the log alone
	Ledger      []ledger.Entry `json:"ledger"`
	LedgerError string         `json:"ledger_error,omitempty"` // why Ledger is not known
	Backend     string         `json:"backend,omitempty"`      // where a login would be sent
	RouteError  string         `json:"route_error,omitempty"`  // why Backend is not known
	Refusing    string         `json:"refusing,omitempty"`     // which servers of Backend accept no logins now, and why
	Off         []string       `json:"protocols_off,omitempty"`
	POP3LastDay string         `json:"pop3_last_day,omitempty"` // past or to come: 2027-01-31; "": policy.file has none for the account
	Networks    int            `json:"known_networks"`          // from which the account has logged in within retention.guard
	Now         []WhyNetwork   `json:"networks"`
	Outcomes    []WhyOutcome   `json:"outcomes"` // the last one at the end
}

// A WhyOutcome is an outcomes.Outcome, in the form for output.
type WhyOutcome struct {
	Outcome  outcomes.Kind `json:"outcome"`
	Protocol string        `json:"protocol"`
	First    time.Time     `json:"first"`
	Last     time.Time     `json:"last"`
	Count    int           `json:"count"`
	Network  string        `json:"network,omitempty"` // as privacy.addresses shows it
	Own      bool          `json:"own_network"`       // the account had logged in from Network lately
	Account  bool          `json:"has_account"`       // false: the connection ended before a login
	Session  string        `json:"session,omitempty"` // of the last one
	Detail   string        `json:"detail,omitempty"`
}

// A WhyNetwork is what the login guard would do with a login from a network now.
type WhyNetwork struct {
	Network string    `json:"network"` // as privacy.addresses shows it
	Own     bool      `json:"own_network"`
	Refused string    `json:"refused,omitempty"` // the budget that is empty; "": the guard lets it pass
	Until   time.Time `json:"until,omitzero"`    // when the budget has something again
	DryRun  bool      `json:"dry_run,omitempty"`
}

// maxWhyNetworks bounds the networks of an answer.
const maxWhyNetworks = 16

// answerWhy makes c answer the request AskWhy.
func (s *Service) answerWhy(c *admin.Server) {
	admin.Handle(c, AskWhy, func(ctx context.Context, q WhyQuestion) (*Why, error) {
		g := s.current.Load()
		if g == nil {
			return nil, errors.New("not serving yet")
		}
		w := &Why{Account: q.Account, Since: s.outcomes.Since(), Ledger: []ledger.Entry{}, Now: []WhyNetwork{}, Outcomes: []WhyOutcome{}}
		account, err := g.routing.accounts.Account(q.Account)
		if err != nil {
			w.Malformed = err.Error()
		} else {
			w.Account = account
			w.Known = s.known(account)
			w.Networks = s.guard.Known(account)
			s.addStored(ctx, w)
			g.addRoute(ctx, w)
		}
		w.AccountHash = s.audit.Hash(w.Account).String()
		w.InLog = "account_hash=" + w.AccountHash
		if w.Known {
			w.InLog = "account=" + s.nameInLog(w.Account)
		}
		for _, o := range s.outcomesOf(w.Account, q) {
			w.Outcomes = append(w.Outcomes, o.WhyOutcome)
		}
		if w.Malformed == "" {
			s.addNetworks(w, q)
		}
		return w, nil
	})
}

// addStored adds what the ledger has of the account.
func (s *Service) addStored(ctx context.Context, w *Why) {
	l := s.ledger.Load()
	if l == nil {
		w.LedgerError = "state.path is not set: there is no ledger"
		return
	}
	s.Storage.Reading.RLock()
	defer s.Storage.Reading.RUnlock()
	err := l.Write(ctx)
	if err == nil {
		err = ledger.Entries(ctx, s.Storage.Ledger(), w.Account, func(e ledger.Entry) error {
			w.Ledger = append(w.Ledger, e)
			return nil
		})
	}
	if err != nil {
		w.LedgerError = err.Error()
	}
}

// whyRouteTime bounds the request to a hook.
const whyRouteTime = 5 * time.Second

// addRoute adds where a login of the account would be sent.
func (g *generation) addRoute(ctx context.Context, w *Why) {
	r := g.routing
	ctx, cancel := context.WithTimeout(ctx, whyRouteTime)
	defer cancel()
	choice, err := r.rules.Route(ctx, &proxy.Login{User: w.Account, Account: w.Account, Client: proxy.Client{Protocol: proxy.IMAP}})
	if err != nil {
		w.RouteError = err.Error()
	}
	w.Backend = choice.Backend
	for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
		if key.name == choice.Backend && len(g.refusing([]poolKey{key})) > 0 {
			w.Refusing = strings.TrimPrefix(w.Refusing+", "+g.whyRefusing([]poolKey{key}), ", ")
		}
	}
	for _, protocol := range proxy.Protocols() {
		if r.policy == nil {
			break
		}
		off, lastDay := r.policy.Off(w.Account, protocol, time.Now())
		if off {
			w.Off = append(w.Off, protocol)
		}
		w.POP3LastDay = cmp.Or(w.POP3LastDay, lastDay)
	}
}

// A placedOutcome is a WhyOutcome and its network in full.
type placedOutcome struct {
	WhyOutcome
	network netip.Prefix
}

// outcomesOf returns the outcomes of an account, and the failures without an account of the
// networks that the account uses; with q.Network of the networks in it.
func (s *Service) outcomesOf(account string, q WhyQuestion) (all []placedOutcome) {
	asked := func(n netip.Prefix) bool { return !q.Network.IsValid() || q.Network.Overlaps(n) }
	own := s.outcomes.Of(account)
	uses := func(n netip.Prefix) bool {
		return n.IsValid() && (slices.ContainsFunc(own, func(o outcomes.Outcome) bool { return o.Own && o.Network == n }) ||
			s.guard.KnowsNetworkOf(account, n.Addr()))
	}
	for _, o := range own {
		if asked(o.Network) && !o.Last.Before(q.Since) {
			o.Own = o.Own || uses(o.Network) // not every refused login has asked the guard
			all = append(all, s.placed(o, true))
		}
	}
	failures := s.outcomes.FromNetworks(func(n netip.Prefix) bool { return asked(n) && (q.Network.IsValid() || uses(n)) })
	for _, o := range failures {
		if !o.Last.Before(q.Since) {
			o.Own = uses(o.Network)
			all = append(all, s.placed(o, false))
		}
	}
	slices.SortStableFunc(all, func(a, b placedOutcome) int { return a.Last.Compare(b.Last) })
	return all
}

func (s *Service) placed(o outcomes.Outcome, ofAccount bool) placedOutcome {
	return placedOutcome{WhyOutcome{
		Outcome: o.Kind, Protocol: o.Protocol, First: o.First, Last: o.Last, Count: o.Count, Network: s.shown(o.Network), Own: o.Own,
		Account: ofAccount, Session: o.Session, Detail: o.Detail,
	}, o.Network}
}

// nameInLog returns an account as privacy.users shows it.
func (s *Service) nameInLog(account string) string {
	if rules := s.redaction.Load(); rules != nil {
		return rules.Account(account)
	}
	return account
}

// shown returns a network as privacy.addresses shows it.
func (s *Service) shown(n netip.Prefix) string {
	if !n.IsValid() {
		return ""
	}
	text := n.String()
	if n.IsSingleIP() {
		text = n.Addr().String()
	}
	if rules := s.redaction.Load(); rules != nil {
		return rules.Address(text)
	}
	return text
}

// addNetworks adds what the guard would do with logins from the networks of the answer, and
// from q.Network.
func (s *Service) addNetworks(w *Why, q WhyQuestion) {
	var all []netip.Prefix
	if q.Network.IsValid() {
		if n, ok, err := networkOf(q.Network.String()); ok && err == nil {
			all = append(all, n)
		}
	}
	for _, o := range slices.Backward(s.outcomesOf(w.Account, q)) { // the last ones first
		if o.Account && o.network.IsValid() && !slices.Contains(all, o.network) && len(all) < maxWhyNetworks {
			all = append(all, o.network)
		}
	}
	for _, n := range all {
		w.Now = append(w.Now, s.decisionNow(w.Account, n))
	}
}

// decisionNow returns what the guard would do with a login now.
func (s *Service) decisionNow(account string, n netip.Prefix) WhyNetwork {
	e := s.guard.Explain("", account, n.Addr())
	d := WhyNetwork{Network: s.shown(n), Own: e.Tier == guard.KnownGood, DryRun: s.dryRun()}
	if e.Refused == guard.NoBucket {
		return d
	}
	d.Refused = e.Refused.String()
	for _, b := range e.Buckets {
		if b.Bucket == e.Refused {
			d.Until = b.Next
		}
	}
	return d
}

// importOutcomes adds what the process before remembers.
func (s *Service) importOutcomes(batch []byte) {
	if err := s.outcomes.Import(batch); err != nil {
		s.log.Warn("postern why does not know what the process before the upgrade remembered", "err", err)
	}
}
