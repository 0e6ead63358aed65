package stored

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/bridge"
	"postern/cmd/postern/internal/logs"
	"postern/metrics/ledger"
	"postern/proxy/admin"
	"postern/proxy/password"
)

// An AccountFilter chooses entries of the ledger.
type AccountFilter struct {
	Protocol string   `json:"protocol,omitempty"` // "": any
	TLS      []string `json:"tls,omitempty"`      // none: any
	Since    string   `json:"since,omitempty"`    // a day; entries seen on that day or later
}

// LogValue implements slog.LogValuer.
func (n AccountFilter) LogValue() slog.Value {
	return admin.Arguments("protocol", n.Protocol, "tls", strings.Join(n.TLS, ","), "since", n.Since)
}

func (n AccountFilter) match(e ledger.Entry) bool {
	return (n.Protocol == "" || n.Protocol == e.Protocol) && (n.TLS == nil || slices.Contains(n.TLS, e.TLS)) && e.Last >= n.Since
}

// ListAccounts answers with the entries of the ledger that a filter chooses.
var ListAccounts = Question[AccountFilter, ledger.Entry]{"account/list", func(ctx context.Context, m *Storage, n AccountFilter, each func(ledger.Entry) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	return ledger.Entries(ctx, a.ledger, "", func(e ledger.Entry) error {
		if !n.match(e) {
			return nil
		}
		return each(e)
	})
}}

// An Account has all stored data of an account. It has only the number of networks,
// because networks are stored as keyed hashes.
type Account struct {
	Account   string         `json:"account"`
	Pseudonym string         `json:"pseudonym"` // in logs, if privacy.users says so
	Ledger    []ledger.Entry `json:"ledger"`
	POP3      bridge.Stored  `json:"pop3"`

	Devices   []password.Device `json:"devices,omitempty"` // without their passwords, which are not stored
	Networks  int               `json:"known_networks"`    // number of networks in the login guard
	LastLogin *time.Time        `json:"last_login,omitempty"`
	Damaged   string            `json:"damaged,omitempty"` // errors of data that cannot be read
}

// Empty reports whether there is no stored data of the account.
func (s *Account) Empty() bool {
	return len(s.Ledger) == 0 && s.POP3.Record == nil && s.POP3.Listing == nil && s.POP3.Deleted == nil && s.POP3.Fingerprints == 0 &&
		s.POP3.OldHeaders == 0 && s.Devices == nil && s.Networks == 0 && s.Damaged == ""
}

// ExportAccount answers with all stored data of an account.
var ExportAccount = Question[AccountName, Account]{"account/export", func(ctx context.Context, m *Storage, name AccountName, each func(Account) error) error {
	account := string(name)
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	s := Account{Account: account, Ledger: []ledger.Entry{}}
	key, err := a.PseudonymKey(ctx)
	if err != nil {
		return err
	}
	s.Pseudonym = logs.NewPseudonyms(key).Of(account)
	err = ledger.Entries(ctx, a.ledger, account, func(e ledger.Entry) error {
		s.Ledger = append(s.Ledger, e)
		return nil
	})
	if err != nil {
		return err
	}
	if s.POP3, err = bridge.Lookup(ctx, m.Cache, m.Record, account); err != nil {
		s.Damaged = err.Error()
	}
	if s.Devices, err = m.devicesOf(ctx, account); err != nil {
		s.Damaged = strings.TrimPrefix(s.Damaged+"; "+err.Error(), "; ")
	}
	g, err := m.loadGuard(ctx)
	if err != nil {
		return err
	}
	if s.Networks = g.Known(account); s.Networks > 0 {
		last := g.Explain("", account, netip.Addr{}).Last.Truncate(time.Second)
		s.LastLogin = &last
	}
	return each(s)
}}

// ForgetAccount removes all stored data of an account.
var ForgetAccount = Question[AccountName, struct{}]{"account/forget", func(ctx context.Context, m *Storage, name AccountName, each func(struct{}) error) error {
	account := string(name)
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	if _, err := ledger.Forget(ctx, a.ledger, account); err != nil {
		return err
	}
	if err := a.erase(ctx, []string{account}); err != nil {
		return err
	}
	if err := m.forgetDevices(ctx, account); err != nil {
		return err
	}
	g, err := m.loadGuard(ctx)
	if err != nil {
		return err
	}
	g.Forget(account)
	if err := g.Save(ctx, m.Guard); err != nil {
		return fmt.Errorf("store what the guard remembers: %w", err)
	}
	if m.Forgotten != nil {
		m.Forgotten(account)
	}
	return each(struct{}{})
}}
