package stored

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/configs"
	"postern/metrics/ledger"
)

// An accountFixture is a memory of which accounts have not come for a while.
type accountFixture struct {
	*Storage
	*testing.T
	today time.Time
}

func newAccountFixture(t *testing.T) *accountFixture {
	t.Helper()
	m, err := Open(t.Context(), &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return &accountFixture{m, t, time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
}

// login is one so many days ago.
func (a *accountFixture) login(account, protocol string, ago int) {
	a.Helper()
	day := ledger.Day(a.today.AddDate(0, 0, -ago))
	value, err := json.Marshal(ledger.Entry{Account: account, Protocol: protocol, First: day, Last: day, Logins: 1, TLS: "1.3"})
	if err == nil {
		err = a.Files.ledger.UpdateAll(a.Context(), []string{account + "\x00" + protocol}, func(string, []byte) ([]byte, error) { return value, nil })
	}
	if err != nil {
		a.Fatal(err)
	}
}

// shown gives an account a record of UIDLs.
func (a *accountFixture) shown(account string) {
	a.Helper()
	if err := bridge.Import(a.Context(), a.Record, bridge.AccountRecord{Account: account, Record: uidl.New(7, uidl.Dovecot)}); err != nil {
		a.Fatal(err)
	}
}

// wantForgotten retires and wants that to have been of pop3, and of the ledger.
func (a *accountFixture) wantForgotten(pop3, all []string) {
	a.Helper()
	gotPOP3, gotAll, err := a.Retire(a.Context(), configs.Retention{Ledger: 400, UIDLs: 300}, a.today)
	if err != nil || !slices.Equal(gotPOP3, pop3) || !slices.Equal(gotAll, all) {
		a.Errorf("on %s %q and %q are forgotten, %v; want %q and %q", ledger.Day(a.today), gotPOP3, gotAll, err, pop3, all)
	}
}

func (a *accountFixture) wantShown(accounts ...string) {
	a.Helper()
	got, err := bridge.Accounts(a.Context(), a.Files.uidls)
	if err != nil || !reflect.DeepEqual(got, accounts) {
		a.Errorf("records are those of %q, %v, want %q", got, err, accounts)
	}
}

// later lets days go by, on each of which the job runs.
func (a *accountFixture) later(days int) {
	a.Helper()
	for range days - 1 {
		a.today = a.today.AddDate(0, 0, 1)
		a.wantForgotten(nil, nil)
	}
	a.today = a.today.AddDate(0, 0, 1)
}

// Criterion: what is stored of an account is forgotten so many days after its last login by whatever protocol, and nothing that has no date.
func TestWhoDoesNotComeIsForgotten(t *testing.T) {
	a := newAccountFixture(t)
	for _, account := range []string{"old", "only.imap.lately", "recent", "undated"} {
		a.shown(account)
	}
	a.login("ancient", "imap", 401)
	a.login("old", "pop3", 301)
	a.login("only.imap.lately", "pop3", 399)
	a.login("only.imap.lately", "imap", 1)
	a.login("recent", "pop3", 300)
	a.wantForgotten([]string{"old"}, []string{"ancient"})
	a.wantShown("only.imap.lately", "recent", "undated")

	a.later(1)
	a.wantForgotten([]string{"recent"}, nil)
	a.login("only.imap.lately", "imap", 0)
	a.later(98)
	a.wantForgotten(nil, nil) // it is 400 days
	a.later(1)
	a.wantForgotten(nil, []string{"old"})
	a.wantShown("only.imap.lately", "undated")
}

func TestWhoHasNoDateBeginsWithTheFirstTime(t *testing.T) {
	a := newAccountFixture(t)
	a.shown("undated")
	a.shown("comes")
	a.wantForgotten(nil, nil)
	a.later(200)
	a.login("comes", "pop3", 0)
	a.wantForgotten(nil, nil)
	a.later(100)
	a.wantForgotten(nil, nil)
	a.later(1)
	a.wantForgotten([]string{"undated"}, nil)
	a.wantShown("comes")
	a.shown("undated") // which has come again, and is begun again
	a.later(1)
	a.wantForgotten(nil, nil)
	a.wantShown("comes", "undated")
}

// After a pause, in which nobody could come, and with a wrong clock, a month
// goes by before anybody is forgotten.
func TestNobodyIsForgottenAfterAPause(t *testing.T) {
	a := newAccountFixture(t)
	a.shown("alice")
	a.login("alice", "pop3", 0)
	a.wantForgotten(nil, nil)
	a.today = a.today.AddDate(10, 0, 0)
	a.wantForgotten(nil, nil)
	a.later(29)
	a.wantForgotten(nil, nil)
	a.wantShown("alice")
	a.later(1)
	a.wantForgotten([]string{"alice"}, []string{"alice"})
}
