package stored

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"postern/bridge"
	"postern/metrics/ledger"
	"postern/proxy/admin"
)

// A UsageFilter chooses entries of the ledger by one protocol. Days are as in an Entry.
type UsageFilter struct {
	Protocol   string `json:"protocol"`
	Domain     string `json:"domain,omitempty"`      // without @; "": any
	Since      string `json:"since,omitempty"`       // seen on that day or later
	QuietSince string `json:"quiet_since,omitempty"` // logged in, and the last time before that day; "": any
}

// LogValue implements slog.LogValuer.
func (f UsageFilter) LogValue() slog.Value {
	return admin.Arguments("protocol", f.Protocol, "domain", f.Domain, "since", f.Since, "quiet_since", f.QuietSince)
}

// Match reports whether f chooses an entry.
func (f UsageFilter) Match(e ledger.Entry) bool {
	return e.Protocol == f.Protocol && e.Seen() >= f.Since &&
		(f.Domain == "" || strings.HasSuffix(e.Account, "@"+f.Domain)) &&
		(f.QuietSince == "" || e.Last != "" && e.Last < f.QuietSince)
}

// ReportUsage answers with the entries of the ledger that a filter chooses, in the order of
// accounts.
var ReportUsage = Question[UsageFilter, ledger.Entry]{"report", func(ctx context.Context, m *Storage, f UsageFilter, each func(ledger.Entry) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	return ledger.Entries(ctx, a.ledger, "", func(e ledger.Entry) error {
		if !f.Match(e) {
			return nil
		}
		return each(e)
	})
}}

// Surroundings are what a statement about all accounts depends on beside the accounts.
type Surroundings struct {
	Days   []ledger.Observed `json:"days"`             // that were observed
	Brakes []string          `json:"brakes,omitempty"` // backends whose brake is on, or cannot be read
}

// ReportSurroundings answers with the Surroundings of the days since its argument.
var ReportSurroundings = Question[string, Surroundings]{"report/surroundings", func(ctx context.Context, m *Storage, since string, each func(Surroundings) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	var s Surroundings
	if s.Days, err = ledger.ObservedDays(ctx, a.days, since); err != nil {
		return err
	}
	err = a.Record.Bucket(BrakeBucket).Scan(ctx, "", func(backend string, _ []byte) error {
		s.Brakes = append(s.Brakes, backend)
		return nil
	})
	if err != nil {
		return err
	}
	s.Brakes = slices.DeleteFunc(s.Brakes, func(backend string) bool {
		b := bridge.NewBrake(backend, nil)
		return b.Open(ctx, a.Record.Bucket(BrakeBucket)) == nil && !b.Status().Braked()
	})
	return each(s)
}}
