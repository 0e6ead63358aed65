package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/state"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// full has all fields of a Migration.
var full = Migration{
	Backend: "main", Mode: proxy.ModeShadow, Since: noon,
	Learnt:  Learnt{noon.Add(time.Second), ByMaildir, 12, 11},
	Compare: Compared{noon.Add(2 * time.Second), proxy.ShadowClean, true, 1, 2, 3, 4, 5, 6, 7, 8},
	Shadow:  Compared{noon.Add(3 * time.Second), proxy.ShadowNotCopied, false, 8, 7, 6, 5, 4, 3, 2, 1<<31 - 1},
	Failed:  Failure{noon.Add(4 * time.Second), StepCompare, strings.Repeat("x", maxFailure)},
	Stores:  noon.Add(5 * time.Second), KeptOld: 1, DeletedOld: 3, KeptNew: 2, DeletedNew: 1<<31 - 1,
}

// migrationOf returns what a ledger has of alice after events, an hour apart, each written
// at once or all together.
func migrationOf(t *testing.T, atOnce bool, events ...any) Migration {
	t.Helper()
	now, s := noon, new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return now })
	for _, e := range events {
		switch e := e.(type) {
		case proxy.Event:
			l.Observe(e)
		case Migration: // a command has noted it
			write(t, l)
			if err := Note(t.Context(), s, "alice", e); err != nil {
				t.Fatal(err)
			}
		}
		if atOnce {
			write(t, l)
		}
		now = now.Add(time.Hour)
	}
	write(t, l)
	got := entries(t, s, "alice")
	if len(got) != 1 || got[0].Migration == nil {
		t.Fatalf("got %+v", got)
	}
	return *got[0].Migration
}

func in(mode string, c proxy.Closed) proxy.Closed {
	c.Totals.Mode, c.Backend = mode, "main"
	return c
}

// Criterion: a client that asks for no unique ids takes back nothing that a comparison has found for another client of the account.
func TestAClientWithoutUIDLsSaysNothingOfOthers(t *testing.T) {
	alice := proxy.Client{Protocol: proxy.POP3}
	compared := func(result string) proxy.ShadowCompared {
		return proxy.ShadowCompared{Client: alice, Account: "alice", Result: result, Messages: 7, UIDLs: 3}
	}
	for _, before := range []proxy.Event{
		compared(proxy.ShadowDiffers), compared(proxy.ShadowNotCopied), compared(proxy.ShadowUnproven),
		proxy.ShadowCompared{Client: alice, Account: "alice", Result: proxy.ShadowFailed, Err: errors.New("EOF")},
		proxy.UIDLsLearnt{Client: alice, Account: "alice", Err: errors.New("connection refused")},
	} {
		for _, atOnce := range []bool{true, false} {
			want := migrationOf(t, atOnce, before, in(proxy.ModeShadow, closed(7, 2, 2, 1)))
			got := migrationOf(t, atOnce, before, in(proxy.ModeShadow, closed(7, 2, 2, 1)), compared(proxy.ShadowNoUIDLs))
			if got != want {
				t.Errorf("%+v, at once %v:\n got %+v\nwant %+v", before, atOnce, got, want)
			}
		}
	}
}

// An entry that an earlier version has written has no DeletedOld.
func TestAnEntryWithoutDeletedOldIsRead(t *testing.T) {
	want := full
	want.DeletedOld = 0
	u := Usage{Migration: want}
	c := coder{}
	c.migration(&want)
	stored := u.encode()
	if !bytes.HasSuffix(stored, c.b) || c.b[len(c.b)-1] != 7 { // the last octet of DeletedNew
		t.Fatalf("%x does not end with DeletedNew", stored)
	}
	var got Usage
	if err := got.decode(stored); err != nil || got.Migration != want {
		t.Errorf("got %+v, %v", got.Migration, err)
	}
}

// Criterion: what served an account and since when, what was learnt and what a comparison found is recorded with its time; a later failure
// takes nothing of it away, and what was not compared is no outcome.
func TestTheWayOfAnAccountIsRecorded(t *testing.T) {
	hour := func(n int) time.Time { return noon.Add(time.Duration(n) * time.Hour) }
	old, new := in(proxy.ModePassthrough, closed(5, 2, 2, 0)), in(proxy.ModeBridge, closed(7, 3, 3, 2))
	shadow := in(proxy.ModeShadow, closed(5, 2, 1, 1))
	alice := proxy.Client{Protocol: proxy.POP3}
	learnt := proxy.UIDLsLearnt{Client: alice, Account: "alice", Backend: "main", Messages: 9, Found: 8}
	failed := proxy.UIDLsLearnt{Client: alice, Account: "alice", Backend: "main", Err: errors.New("dial old:110: \x1b[2Jconnection refused")}
	clean := proxy.ShadowCompared{Client: alice, Account: "alice", Backend: "main", Result: proxy.ShadowClean, Messages: 5}
	differs := proxy.ShadowCompared{Client: alice, Account: "alice", Result: proxy.ShadowDiffers, Messages: 5, Missing: 2, Extra: 1, UIDLs: 1, Sizes: 3, Order: 4, Late: 1}
	notCompared := proxy.ShadowCompared{Client: alice, Account: "alice", Result: proxy.ShadowFailed, Err: errors.New("EOF")}
	equal := Compared{At: hour(2), Result: proxy.ShadowClean, Messages: 5}
	for _, c := range []struct {
		name   string
		want   Migration
		events []any
	}{
		{"two sessions on the old server", Migration{Backend: "main", Mode: proxy.ModePassthrough, Since: hour(0), KeptOld: 4}, []any{old, old}},
		{"moved to the bridge", Migration{Backend: "main", Mode: proxy.ModeBridge, Since: hour(1), KeptOld: 2, KeptNew: 6, DeletedNew: 4}, []any{old, new, new}},
		{"moved back", Migration{Backend: "main", Mode: proxy.ModePassthrough, Since: hour(2), KeptOld: 4, KeptNew: 3, DeletedNew: 2}, []any{old, new, old}},
		{"learnt", Migration{Backend: "main", Mode: proxy.ModeBridge, Since: hour(2), Learnt: Learnt{hour(1), BySession, 9, 8}, KeptNew: 3, DeletedNew: 2}, []any{old, learnt, new}},
		{"learning has failed", Migration{Backend: "main", Mode: proxy.ModePassthrough, Since: hour(0), KeptOld: 2,
			Failed: Failure{hour(1), StepLearn, "dial old:110: ?[2Jconnection refused"}}, []any{old, failed}},
		{"failed, then learnt", Migration{Learnt: Learnt{hour(1), BySession, 9, 8}}, []any{failed, learnt}},
		{"failed, then served", Migration{Backend: "main", Mode: proxy.ModeBridge, Since: hour(1), KeptNew: 3, DeletedNew: 2}, []any{failed, new}},
		{"learnt, then failed", Migration{Learnt: Learnt{hour(0), BySession, 9, 8}, Failed: Failure{hour(1), StepLearn, "dial old:110: ?[2Jconnection refused"}}, []any{learnt, failed}},
		{"shadow, clean", Migration{Backend: "main", Mode: proxy.ModeShadow, Since: hour(0), Shadow: Compared{At: hour(1), Result: proxy.ShadowClean, Messages: 5}}, []any{shadow, clean}},
		{"shadow, differs", Migration{Shadow: Compared{At: hour(1), Result: proxy.ShadowDiffers, Messages: 5, Late: 1, Missing: 2, Extra: 1, UIDLs: 1, Sizes: 3, Order: 4}}, []any{clean, differs}},
		{"shadow, failed", Migration{Shadow: Compared{At: hour(0), Result: proxy.ShadowClean, Messages: 5}, Failed: Failure{hour(1), StepCompare, "EOF"}}, []any{clean, notCompared}},
		{"shadow, skipped", Migration{Shadow: Compared{At: hour(0), Result: proxy.ShadowClean, Messages: 5}},
			[]any{clean, proxy.ShadowCompared{Client: alice, Account: "alice", Result: proxy.ShadowSkipped, Err: errors.New("busy")}}},
		{"uidl compare", Migration{Backend: "main", Mode: proxy.ModePassthrough, Since: hour(0), Compare: equal}, []any{old, Migration{Compare: equal}}},
		{"deleted here, and gone there", Migration{Backend: "main", Mode: proxy.ModeBridge, Since: hour(0), Compare: equal, Stores: hour(2)}, []any{new, Migration{Compare: equal}}},
		{"deleted here, and a message is only here", Migration{Backend: "main", Mode: proxy.ModeBridge, Since: hour(0),
			Compare: Compared{At: hour(2), Result: proxy.ShadowClean, Extra: 1}}, []any{new, Migration{Compare: Compared{At: hour(2), Result: proxy.ShadowClean, Extra: 1}}}},
	} {
		for _, atOnce := range []bool{false, true} {
			if got := migrationOf(t, atOnce, c.events...); got != c.want {
				t.Errorf("%s (written at once: %v):\n got %+v\nwant %+v", c.name, atOnce, got, c.want)
			}
		}
	}
}

func TestWhatAServerSaysOfAFailureIsBounded(t *testing.T) {
	for _, text := range []string{strings.Repeat("ü", 1000), "\xff\xfe", "a\u202eb\nc"} {
		got := NewFailure(noon, StepLearn, errors.New(text)).Text
		if len(got) > maxFailure || strings.ContainsAny(got, "\n\u202e") {
			t.Errorf("%q is recorded as %q", text, got)
		}
		u := Usage{Migration: Migration{Failed: Failure{noon, StepLearn, got}}}
		if err := new(Usage).decode(u.encode()); err != nil {
			t.Errorf("%q is not read again: %v", text, err)
		}
	}
}

// Criterion: when the unique ids of an account are forgotten, it does not count as learnt or compared any more.
func TestForgottenUniqueIDsAreNotLearnt(t *testing.T) {
	s := new(state.Memory)
	for _, account := range []string{"alice", "bob", "carol"} {
		if err := Note(t.Context(), s, account, full); err != nil {
			t.Fatal(err)
		}
	}
	if err := Note(t.Context(), s, "dave", Migration{Learnt: full.Learnt}); err != nil {
		t.Fatal(err)
	}
	if err := Disprove(t.Context(), s, func(account string) bool { return account != "bob" }); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries(t, s, "") {
		got = append(got, fmt.Sprint(e.Account, " ", *e.Migration == full, " ", *e.Migration == Migration{Backend: "main", Mode: proxy.ModeShadow, Since: noon}))
	}
	if want := "[alice false true bob true false carol false true]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// Criterion: what is known of an account's way is forgotten with the account, and as long after its last fact as a login is.
func TestTheWayOfAnAccountIsForgotten(t *testing.T) {
	s := new(state.Memory)
	for account, at := range map[string]time.Time{"old": noon.AddDate(0, 0, -10), "young": noon} {
		if err := Note(t.Context(), s, account, Migration{Compare: Compared{At: at, Result: proxy.ShadowClean}}); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := Expire(t.Context(), s, noon.AddDate(0, 0, -5))
	if err != nil || fmt.Sprint(gone) != "[old]" {
		t.Errorf("expired %v, %v", gone, err)
	}
	if n, err := Forget(t.Context(), s, "young"); n != 1 || err != nil || len(entries(t, s, "")) != 0 {
		t.Errorf("forgot %d, %v", n, err)
	}
}
