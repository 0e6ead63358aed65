package stored

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/proxy/admin"
)

// A Selection chooses accounts. The zero value chooses all.
type Selection struct {
	Account string `json:"account,omitempty"`
	Domain  string `json:"domain,omitempty"`
}

func (s Selection) match(account string) bool {
	switch {
	case s.Account != "":
		return account == s.Account
	case s.Domain != "":
		at := strings.LastIndexByte(account, '@')
		return at >= 0 && strings.EqualFold(account[at+1:], s.Domain)
	}
	return true
}

// LogValue implements slog.LogValuer.
func (s Selection) LogValue() slog.Value {
	if s == (Selection{}) {
		return admin.Arguments("domain", "all")
	}
	return admin.Arguments("account", s.Account, "domain", s.Domain)
}

// String returns the selection as a command prints it.
func (s Selection) String() string {
	switch {
	case s.Account != "":
		return s.Account
	case s.Domain != "":
		return "all accounts of " + s.Domain
	}
	return "all accounts"
}

// ForgetUIDLs removes the record of accounts, and answers with their number.
var ForgetUIDLs = Question[Selection, int]{"uidl/forget", func(ctx context.Context, m *Storage, s Selection, each func(int) error) error {
	if m.Record == nil {
		return errNoRecord
	}
	lost, err := m.Files.forgetLost(ctx, s.match)
	if err != nil {
		return err
	}
	n, err := bridge.Forget(ctx, m.Files.listings, m.Files.uidls, s.match)
	if err != nil {
		return err
	}
	return each(n + lost)
}}

// ExportUIDLs answers with the record of each account.
var ExportUIDLs = Question[Selection, bridge.AccountRecord]{"uidl/export", func(ctx context.Context, m *Storage, s Selection, each func(bridge.AccountRecord) error) error {
	if m.Record == nil {
		return errNoRecord
	}
	return bridge.Export(ctx, m.Record, func(r bridge.AccountRecord) error {
		if !s.match(r.Account) {
			return nil
		}
		return each(r)
	})
}}

// ImportUIDLs replaces the records of accounts, and answers with their number.
var ImportUIDLs = Question[[]bridge.AccountRecord, int]{"uidl/import", func(ctx context.Context, m *Storage, all []bridge.AccountRecord, each func(int) error) error {
	if m.Record == nil {
		return errNoRecord
	}
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, r := range all {
		wg.Go(func() { errs[i] = bridge.Import(ctx, m.Record, r) }) // concurrent imports share one flush of the disk
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := m.Files.recount(ctx); err != nil {
		return err
	}
	return each(len(all))
}}

// A NewRecord is the record of an account that shall have none yet.
type NewRecord struct{ bridge.AccountRecord }

// LogValue implements slog.LogValuer.
func (r NewRecord) LogValue() slog.Value { return admin.Arguments("account", r.Account) }

// AddUIDLs adds the record of an account that has none, and answers whether there was
// none.
var AddUIDLs = Question[NewRecord, bool]{"uidl/add", func(ctx context.Context, m *Storage, r NewRecord, each func(bool) error) error {
	if m.Record == nil {
		return errNoRecord
	}
	added, err := bridge.Add(ctx, m.Record, r.AccountRecord)
	if err != nil {
		return err
	}
	return each(added)
}}

// ReadUIDLs answers with the record of an account, if there is one.
var ReadUIDLs = Question[AccountName, *uidl.Record]{"uidl/read", func(ctx context.Context, m *Storage, name AccountName, each func(*uidl.Record) error) error {
	if m.Record == nil {
		return errNoRecord
	}
	s, err := bridge.Lookup(ctx, nil, m.Record, string(name))
	if err != nil || s.Record == nil {
		return err
	}
	return each(s.Record)
}}

// An Acceptance allows the mailboxes of a backend to change for a while.
type Acceptance struct {
	Backend string        `json:"backend"`
	For     time.Duration `json:"for"` // nanoseconds
}

// LogValue implements slog.LogValuer.
func (a Acceptance) LogValue() slog.Value {
	return admin.Arguments("backend", a.Backend, "for", a.For.String())
}

// AcceptChanges answers with the end of the acceptance.
var AcceptChanges = Question[Acceptance, time.Time]{"uidl/accept", func(ctx context.Context, m *Storage, in Acceptance, each func(time.Time) error) error {
	b, err := m.OpenBrake(ctx, in.Backend)
	if err != nil {
		return err
	}
	until, err := b.Accept(ctx, in.For)
	if err != nil {
		return err
	}
	return each(until)
}}

// UIDLHistory answers with the generations in the record of an account.
var UIDLHistory = Question[AccountName, bridge.GenerationInfo]{"uidl/history", func(ctx context.Context, m *Storage, account AccountName, each func(bridge.GenerationInfo) error) error {
	if m.Record == nil {
		return errNoRecord
	}
	all, err := bridge.History(ctx, m.Record, string(account))
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := each(p); err != nil {
			return err
		}
	}
	return nil
}}

// UndoUIDLs gives messages the UIDLs of the generation before, and answers with the
// number of messages.
var UndoUIDLs = Question[AccountName, int]{"uidl/undo", func(ctx context.Context, m *Storage, name AccountName, each func(int) error) error {
	account := string(name)
	if m.Record == nil {
		return errNoRecord
	}
	if m.Serving != nil {
		if err := m.Serving(account); err != nil {
			return err
		}
	}
	n, err := bridge.Undo(ctx, m.Record, account)
	if err != nil {
		return err
	}
	return each(n)
}}

var errNoRecord = errors.New("state.path is not set: no unique ids are recorded")
