package stored

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/proxy/state"
)

// nodes returns two nodes with one record, which is in a file.
func nodes(t *testing.T) (a, b *accountFixture) {
	t.Helper()
	file, err := state.Open(filepath.Join(t.TempDir(), "shared", "record.db"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	node := func() *accountFixture {
		f := newAccountFixture(t)
		shared := &Shared{state.NewShared(state.BoltStore{Bolt: file}, nil), "a file"}
		t.Cleanup(func() { _ = shared.Close() })
		f.Files = newFiles(f.Files.Record, f.Files.Cache, shared)
		f.Record, f.Devices = f.Files.uidls, f.Files.devices
		return f
	}
	return node(), node()
}

// listed gives an account a listing in the cache of a node.
func (a *accountFixture) listed(account string) {
	a.Helper()
	if err := a.Cache.Put(a.Context(), account+"\x00INBOX", []byte("listing")); err != nil {
		a.Fatal(err)
	}
}

func (a *accountFixture) wantListed(want bool, account string) {
	a.Helper()
	if value, err := a.Cache.Get(a.Context(), account+"\x00INBOX"); err != nil || (value != nil) != want {
		a.Errorf("the listing of %s: %q, %v, want one: %v", account, value, err, want)
	}
}

func (a *accountFixture) wantNoted(want bool, account string) {
	a.Helper()
	if got, err := a.Files.Forgotten(a.Context(), account); err != nil || got != want {
		a.Errorf("%s is forgotten: %v, %v, want %v", account, got, err, want)
	}
}

// Criterion: An account that uses one of several Posterns is retired by none of the others, as they share the ledger.
func TestAnAccountOfAnotherNodeIsNotRetired(t *testing.T) {
	a, b := nodes(t)
	a.shown("alice")
	a.login("alice", "pop3", 310)
	b.login("alice", "imap", 2)
	a.wantForgotten(nil, nil)
	a.wantShown("alice")
	b.wantNoted(false, "alice")
}

// Criterion: What one Postern forgets on purpose the others do not take for lost; a listing in the cache of one that was down for up to 30 days goes as well.
func TestWhatOneNodeForgetsTheOthersDoNotMiss(t *testing.T) {
	a, b := nodes(t)
	a.today, b.today = time.Now(), time.Now() // markForgotten notes the present day
	for _, account := range []string{"alice", "bob", "carol"} {
		a.shown(account)
		a.login(account, "pop3", 1)
		b.listed(account)
	}
	if err := ForgetAccount.Answer(t.Context(), a.Storage, "alice", func(struct{}) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := ForgetUIDLs.Answer(t.Context(), a.Storage, Selection{Account: "bob"}, func(int) error { return nil }); err != nil {
		t.Fatal(err)
	}
	b.wantNoted(true, "alice")
	b.wantNoted(true, "bob")
	b.wantNoted(false, "carol")
	b.shown("bob") // bob has come back since
	b.wantForgotten(nil, nil)
	b.wantListed(false, "alice")
	b.wantListed(true, "bob")
	b.wantListed(true, "carol")
	b.wantNoted(true, "alice")
	if err := b.Files.sweepForgotten(t.Context(), time.Now().AddDate(0, 0, forgottenDays+1)); err != nil {
		t.Fatal(err)
	}
	b.wantNoted(false, "alice")
}

// An acceptance of a record by a node.
func TestANodeTakesItsOwnRecordAlone(t *testing.T) {
	name := func(n string) state.Identity { return state.Identity{Name: n} }
	for what, c := range map[string]struct {
		prepare   func(*accountFixture)
		recompute bool
		found     state.Identity
		want      string
	}{
		"a new node":                   {func(a *accountFixture) { a.put(a.Files.Cache, identityKey, nil) }, false, name("one"), ""},
		"the same as before":           {func(a *accountFixture) { a.put(a.Files.Cache, identityKey, []byte("one")); a.listed("alice") }, false, name("one"), ""},
		"another, and nobody has come": {func(a *accountFixture) { a.put(a.Files.Cache, identityKey, []byte("one")) }, false, name("two"), ""},
		"another":                      {func(a *accountFixture) { a.put(a.Files.Cache, identityKey, []byte("one")); a.listed("alice") }, false, name("two"), errOther.Error()},
		"another that is accepted":     {func(a *accountFixture) { a.put(a.Files.Cache, identityKey, []byte("one")); a.listed("alice") }, true, name("two"), ""},
		"not migrated":                 {func(a *accountFixture) { a.shown("alice") }, true, name("two"), errNotMigrated.Error()},
		"migrated":                     {func(a *accountFixture) { a.shown("alice"); a.put(a.Files.Record, state.MovedKey, []byte("there")) }, false, name("two"), ""},
		"none":                         {func(*accountFixture) {}, true, state.Identity{}, state.ErrNoRecord.Error()},
		"moved away":                   {func(*accountFixture) {}, true, state.Identity{Name: "one", Moved: "there"}, "moved away: there"},
	} {
		t.Run(what, func(t *testing.T) {
			a := newAccountFixture(t)
			c.prepare(a)
			accept := acceptRecord(a.Files, c.recompute)
			err := accept(c.found)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if err == nil {
				if kept, err := a.Files.Cache.Bucket(identityBucket).Get(t.Context(), identityKey); err != nil || string(kept) != c.found.Name {
					t.Errorf("the cache has the name %q, %v", kept, err)
				}
			}
		})
	}
}

func (a *accountFixture) put(in *state.Bolt, key string, value []byte) {
	a.Helper()
	if err := in.Bucket(state.MetaBucket).Put(a.Context(), key, value); err != nil {
		a.Fatal(err)
	}
}

// A failing is a Store whose scan ends in the middle.
type failing struct{ state.Store }

var errCut = errors.New("cut off")

func (f failing) Scan(ctx context.Context, bucket, prefix string, each func(string, []byte) error) error {
	n := 0
	return f.Store.Scan(ctx, bucket, prefix, func(key string, value []byte) error {
		if n++; n > 1 {
			return errCut
		}
		return each(key, value)
	})
}

// Criterion: A migration whose source fails in the middle removes nothing at the destination.
func TestASourceThatIsCutOffRemovesNothing(t *testing.T) {
	from, to := newAccountFixture(t), newAccountFixture(t)
	for _, account := range []string{"alice", "bob", "carol"} {
		from.shown(account)
		to.shown(account)
	}
	m := migration{progress: func(string, int) {}}
	err := m.copyAll(t.Context(), failing{boltSide(from.Files.Record)}, boltSide(to.Files.Record))
	if !errors.Is(err, errCut) {
		t.Errorf("copied: %v", err)
	}
	err = m.removeOthers(t.Context(), UIDLBucket, failing{boltSide(from.Files.Record)}, boltSide(to.Files.Record))
	if !errors.Is(err, errCut) {
		t.Errorf("removed: %v", err)
	}
	to.wantShown("alice", "bob", "carol")
}
