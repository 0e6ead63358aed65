package bridge

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"postern/proxy"
)

// shownTo returns the UIDLs that an account is shown.
func shownTo(t *testing.T, b *Backend, account string) (ids []string, err error) {
	t.Helper()
	opened, err := b.Login(t.Context(), &proxy.Login{Account: account})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	if _, err := opened.Open(t.Context()); err != nil {
		return nil, err
	}
	s := opened.(*session)
	for i := range s.maildrop.messages {
		ids = append(ids, string(s.uniqueID(nil, &s.maildrop.messages[i])))
	}
	return ids, nil
}

// Criterion: when the mailboxes of many accounts of a backend look different at once, the logins of those beyond the first are refused for now, and nothing of what they look like is recorded.
func TestAStoreThatIsNotMountedIsNotBelieved(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(m *model)
		back   func(m, before *model)

		renames bool // without fingerprints there is nothing by which messages are found again
	}{
		{"empty, with another UIDVALIDITY", func(m *model) { m.uidValidity, m.uidNext, m.mails = 99, 1, nil }, func(m, before *model) {
			m.uidValidity, m.uidNext, m.mails = before.uidValidity, before.uidNext, before.mails
		}, false},
		{"empty, with another UIDVALIDITY, and the cache is lost", func(m *model) { m.uidValidity, m.uidNext, m.mails, m.lost = 99, 1, nil, true }, func(m, before *model) {
			m.uidValidity, m.uidNext, m.mails, m.lost = before.uidValidity, before.uidNext, before.mails, false
		}, false},
		{"empty", func(m *model) { m.mails = nil }, func(m, before *model) { m.mails = before.mails }, false},
		{"half of the messages", func(m *model) { m.mails = m.mails[20:] }, func(m, before *model) { m.mails = before.mails }, false},
		{"a backup of before", func(m *model) { m.uidNext, m.mails = 31, m.mails[:30] }, func(m, before *model) {
			m.uidNext, m.mails = before.uidNext, before.mails
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newModel("")
			m.deliver(40)
			cache, record := &memory{}, &memory{}
			events := &recorder{}
			b := &Backend{Name: "main", LogIn: m.dial(t), Cache: cache, Record: record, Brake: NewBrake("main", events)}
			var accounts []string
			want := make(map[string][]string)
			for i := range 15 {
				name := fmt.Sprintf("user%d", i)
				accounts = append(accounts, name)
				ids, err := shownTo(t, b, name)
				if err != nil {
					t.Fatal(err)
				}
				want[name] = ids
			}
			before := &model{uidValidity: m.uidValidity, uidNext: m.uidNext, mails: slices.Clone(m.mails)}
			test.change(m)
			if m.lost {
				cache.values = nil
			}
			for i, name := range accounts {
				cached, recorded := maps.Clone(cache.values), maps.Clone(record.values)
				_, err := shownTo(t, b, name)
				if braked := i >= fewPollsChanges; braked != (err != nil) {
					t.Errorf("account %d: %v, want that it is refused: %v", i, err, braked)
				}
				if err == nil {
					continue
				}
				if r, ok := errors.AsType[*proxy.Refusal](err); !ok || r.Reason != proxy.Unavailable || !r.Verified {
					t.Errorf("account %d: %v, want a temporary refusal after a right password", i, err)
				}
				same := func(a, b []byte) bool { return string(a) == string(b) }
				if !maps.EqualFunc(cached, cache.values, same) || !maps.EqualFunc(recorded, record.values, same) {
					t.Errorf("account %d: something was recorded", i)
				}
			}
			test.back(m, before)
			for i, name := range accounts {
				ids, err := shownTo(t, b, name)
				if i < fewPollsChanges && (err != nil || test.renames) {
					continue // it was let through: it waits for an operator, too, or has new UIDLs
				}
				if err != nil || !slices.Equal(ids, want[name]) {
					t.Errorf("account %d: %q, %v, want %q", i, ids, err, want[name])
				}
			}
		})
	}
}

// A client may come again as soon as QUIT is answered, before the cache knows what
// was removed.
func TestWhatASessionIsRemovingIsNotCounted(t *testing.T) {
	b := NewBrake("main", nil)
	left := b.beginRemoval("alice")
	for _, step := range []struct {
		change  Change
		counted int
	}{{Emptied, 0}, {Shrunk, 0}, {NewUIDValidity, 1}} {
		if err := b.Admit(t.Context(), "alice", step.change); err != nil || b.Status().Counted != step.counted {
			t.Errorf("%v: %v, %d counted, want %d", step.change, err, b.Status().Counted, step.counted)
		}
	}
	if err := b.Admit(t.Context(), "bob", Shrunk); err != nil || b.Status().Counted != 2 {
		t.Errorf("of another account: %v, %d counted, want 2", err, b.Status().Counted)
	}
	left()
	if err := b.Admit(t.Context(), "alice", Shrunk); err != nil || b.Status().Counted != 2 || len(b.removing) > 0 {
		t.Errorf("afterwards: %v, %d counted, want 2", err, b.Status().Counted)
	}
}

// Criterion: what POP3 itself removes does not put the brake on, also when the answer to the removal is lost, Postern is killed, or another session was open.
func TestWhatPOP3RemovesIsNoFault(t *testing.T) {
	for _, test := range []struct {
		name string
		lose bool // the server removes, and is gone before it says so
		kill bool // the session does not come to its end
		two  bool // another session began before and ends after it
	}{{name: "an answer that is lost", lose: true}, {name: "a kill", kill: true}, {name: "two sessions", two: true}} {
		t.Run(test.name, func(t *testing.T) {
			m := newModel("")
			m.deliver(manyMessages)
			lost := false
			m.cutAfter = func(command string) bool {
				lost = lost || test.lose && strings.Contains(command, "EXPUNGE")
				return lost
			}
			b, _, _, _ := m.bases(t)
			b.Name, b.Brake = "main", NewBrake("main", nil)
			shown(t, b)
			var other *session
			if test.two {
				var err error
				if other, err = show1(t, b); err != nil {
					t.Fatal(err)
				}
			}
			s, err := show1(t, b)
			if err != nil {
				t.Fatal(err)
			}
			for i := range s.maildrop.messages {
				s.maildrop.delete(&s.maildrop.messages[i])
			}
			if err := s.update(t.Context()); (err != nil) != test.lose {
				t.Errorf("update: %v", err)
			}
			if test.kill {
				_ = s.inbox.Close()
			} else {
				s.updated = !test.lose
				_ = s.Close()
			}
			if other != nil {
				other.updated, other.maildrop.changed = true, true
				_ = other.Close()
			}
			lost, test.lose = false, false
			if ids := shown(t, b); len(ids) != 0 {
				t.Errorf("%d messages are left", len(ids))
			}
			if n := b.Brake.Status().Counted; n != 0 {
				t.Errorf("%d accounts are counted, want none", n)
			}
		})
	}
}

// Messages that QUIT was refused to remove are none that it has removed.
func TestARefusedRemovalIsNone(t *testing.T) {
	m := newModel("")
	m.deliver(manyMessages)
	m.refused = func(command string) bool { return strings.Contains(command, "EXPUNGE") }
	b, _, _, _ := m.bases(t)
	b.Name, b.Brake = "main", NewBrake("main", nil)
	s, err := show1(t, b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.maildrop.messages {
		s.maildrop.delete(&s.maildrop.messages[i])
	}
	if err := s.update(t.Context()); err == nil {
		t.Error("update: no error")
	}
	_ = s.Close()
	m.mails = nil
	if shown(t, b); b.Brake.Status().Counted != 1 {
		t.Errorf("%d accounts are counted, want 1", b.Brake.Status().Counted)
	}
}
