package stored

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/metrics/ledger"
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
	if m.Files.forgotten != nil {
		all, err := bridge.Accounts(ctx, m.Files.uidls)
		if err == nil {
			err = m.Files.markForgotten(ctx, slices.DeleteFunc(all, func(account string) bool { return !s.match(account) }))
		}
		if err != nil {
			return err
		}
	}
	n, err := bridge.Forget(ctx, m.Files.listings, m.Files.uidls, s.match)
	if err != nil {
		return err
	}
	if err := m.disprove(ctx, s.match); err != nil {
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
	for _, r := range all {
		if err := m.noteLearnt(ctx, r, ledger.ByExport); err != nil {
			return err
		}
	}
	return each(len(all))
}}

// noteLearnt notes that a record was added.
func (m *Storage) noteLearnt(ctx context.Context, r bridge.AccountRecord, by string) error {
	n := 0
	for _, g := range r.Record.Generations[:min(1, len(r.Record.Generations))] {
		c := g.Counts()
		n = c.Entries - c.Vanished
	}
	return m.note(ctx, r.Account, ledger.Migration{Learnt: ledger.Learnt{At: time.Now(), By: by, Messages: n, Found: n}})
}

// note adds what is known of an account's way from an old POP3 server to the ledger.
// Without files there is none.
func (m *Storage) note(ctx context.Context, account string, known ledger.Migration) error {
	if m.Files == nil {
		return nil
	}
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	return ledger.Note(ctx, a.ledger, account, known)
}

// disprove removes from the ledger what was learnt and compared of accounts.
func (m *Storage) disprove(ctx context.Context, match func(account string) bool) error {
	if m.Files == nil {
		return nil
	}
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	return ledger.Disprove(ctx, a.ledger, match)
}

// A NewRecord is the record of an account that shall have none yet.
type NewRecord struct {
	bridge.AccountRecord
	Learnt ledger.Learnt `json:"learnt,omitzero"` // how the record was made
}

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
	if added && !r.Learnt.At.IsZero() {
		if err := m.note(ctx, r.Account, ledger.Migration{Learnt: r.Learnt}); err != nil {
			return err
		}
	}
	return each(added)
}}

// An Outcome is that of a comparison of an account.
type Outcome struct {
	Account string          `json:"account"`
	Compare ledger.Compared `json:"compared"`
}

// LogValue implements slog.LogValuer.
func (o Outcome) LogValue() slog.Value { return admin.Arguments("account", o.Account) }

// NoteCompared notes the outcome of a comparison, and answers nothing.
var NoteCompared = Question[Outcome, struct{}]{"uidl/compared", func(ctx context.Context, m *Storage, o Outcome, _ func(struct{}) error) error {
	return m.note(ctx, o.Account, ledger.Migration{Compare: o.Compare})
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
	if err := m.disprove(ctx, func(some string) bool { return some == account }); err != nil {
		return err
	}
	return each(n)
}}

var errNoRecord = errors.New("state.path is not set: no unique ids are recorded")
