package ledger

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/state"
)

// Criterion: an account counts as safe only by a fact with a date within the period, and of every other the report says why, and what would happen to it.
func TestEveryClassOfAccounts(t *testing.T) {
	now := noon
	yesterday, long := now.AddDate(0, 0, -1), now.AddDate(0, 0, -40)
	usual := &Sessions{Habit: HabitLeaves, Left: new(7)}
	passthrough := func(m Migration) *Migration { m.Mode, m.Since = proxy.ModePassthrough, yesterday; return &m }
	clean := Compared{At: yesterday, Result: proxy.ShadowClean, Messages: 7}
	with := func(c Compared, change func(*Compared)) Compared { change(&c); return c }
	refused := Failure{now, StepLearn, "connection refused"}
	for _, c := range []struct {
		name     string
		entry    Entry
		want     Class
		reason   string
		effect   string
		notLearn bool // pop3.learn_from is not set
	}{
		{name: "off", entry: Entry{Account: "off", Sessions: usual}, want: Off},
		{name: "bridged", entry: Entry{Migration: &Migration{Mode: proxy.ModeBridge}}, want: Bridged},
		{name: "shadow clean", entry: Entry{Migration: passthrough(Migration{Shadow: clean})}, want: Clean},
		{name: "no UIDL", entry: Entry{Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.Result = proxy.ShadowNoUIDLs }), KeptOld: 3})}, want: NoUIDLs},
		{name: "compared, with a record", entry: Entry{Migration: passthrough(Migration{Compare: with(clean, func(c *Compared) { c.Recorded = true })})}, want: Equal},
		{name: "compared, computed, and new mail", entry: Entry{Migration: passthrough(Migration{Compare: clean, KeptOld: 3})}, want: Computed},
		{name: "learnt", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{yesterday, BySession, 7, 7}})}, want: Taken},
		{name: "keeps nothing", entry: Entry{Sessions: &Sessions{Habit: HabitDeletes, Left: new(0)}, Migration: passthrough(Migration{})}, want: KeepsNone},
		{name: "failed long before it was learnt", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{now, BySession, 7, 7}, Failed: Failure{yesterday, StepLearn, "x"}})}, want: Taken},

		{name: "nothing known", entry: Entry{}, want: NotKnown, reason: "no POP3 session has ended", effect: "gets [SYS/TEMP] until pop3.learn_from is removed; may download all its messages again"},
		{name: "never learnt", entry: Entry{Sessions: usual, Migration: passthrough(Migration{})}, want: NotKnown, reason: "never learnt, never compared", effect: "may download 7 messages again", notLearn: true},
		{name: "deletes, and left some", entry: Entry{Sessions: &Sessions{Habit: HabitDeletes, Left: new(2)}, Migration: passthrough(Migration{})}, want: NotKnown, reason: "never", effect: "download 2 messages again"},
		{name: "empty, and leaves", entry: Entry{Sessions: &Sessions{Habit: HabitLeaves, Left: new(0)}, Migration: passthrough(Migration{})}, want: NotKnown, reason: "never", effect: "may miss or download again messages that came since", notLearn: true},
		{name: "failed", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Failed: refused})}, want: NotLearnt, reason: "learning the unique ids failed on 2026-11-20: connection refused", effect: "gets [SYS/TEMP] until"},
		{name: "failed since it was learnt", entry: Entry{Migration: &Migration{Mode: proxy.ModeBridge, Learnt: Learnt{yesterday, BySession, 7, 7}, Failed: refused}}, want: NotLearnt, reason: "connection refused", effect: "all its messages again"},
		{name: "not all found", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{yesterday, ByOld, 7, 5}, KeptOld: 1})}, want: NotLearnt, reason: "5 of 7 unique ids were learnt on 2026-11-19", effect: "may download 3 messages again"},
		{name: "differs", entry: Entry{Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.Result, c.Missing, c.UIDLs, c.Order = proxy.ShadowDiffers, 2, 1, 4 })})},
			want: Differs, reason: "differences on 2026-11-19, after a session: 2 not in INBOX, 1 with another unique id, 4 in another place", effect: "may download 1 message again; no longer reaches 2 messages that only the old server has"},
		{name: "clean before it differs", entry: Entry{Migration: passthrough(Migration{Shadow: clean, Compare: Compared{At: now, Result: proxy.ShadowDiffers, UIDLs: 3}})}, want: Differs, reason: "by uidl compare: 3 with another", effect: "download 3"},
		{name: "learnt, then not copied", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{yesterday, BySession, 7, 7}, Shadow: Compared{At: now, Result: proxy.ShadowNotCopied, Messages: 9}})},
			want: NotCopied, reason: "INBOX had none of the 9 messages", effect: "no longer reaches 9 messages"},
		{name: "late", entry: Entry{Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.Late = 2 })})}, want: NotCopied, reason: "the newest 2 messages were not in INBOX yet", effect: "no longer reaches 2 messages"},
		{name: "unproven", entry: Entry{Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.Result, c.Unproven = proxy.ShadowUnproven, 2 })})}, want: NotCompared, reason: "2 messages could not be matched yet", effect: "download 2"},
		{name: "comparison failed", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Shadow: clean, Failed: Failure{now, StepCompare, "EOF"}})}, want: NotCompared, reason: "the comparison after a session failed on 2026-11-20: EOF", effect: "download 7"},
		{name: "learnt, and new mail", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{yesterday, ByOld, 7, 7}, KeptOld: 3})}, want: Changed, reason: "downloaded 3 messages from the old server since unique ids were learnt on 2026-11-19", effect: "download 3"},
		{name: "compared, and new mail", entry: Entry{Migration: passthrough(Migration{Compare: with(clean, func(c *Compared) { c.Recorded = true }), KeptOld: 3})}, want: Changed, reason: "since the comparison of 2026-11-19", effect: "download 3"},
		{name: "keeps nothing, and INBOX has a copy", entry: Entry{Sessions: &Sessions{Habit: HabitDeletes, Left: new(0)}, Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.Result, c.Extra = proxy.ShadowDiffers, 6 })})},
			want: Differs, reason: "6 only in INBOX", effect: "download 6"},
		{name: "no UIDL, and another client", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.Result = proxy.ShadowNoUIDLs })})}, want: NotCompared, reason: "another client may keep them", effect: "download 7"},
		{name: "learnt, and deleted", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Learnt: Learnt{yesterday, ByOld, 7, 7}, DeletedOld: 2})}, want: Changed, reason: "deleted 2 messages on the old server, which INBOX may still have, since", effect: "download 2"},
		{name: "compared, new mail and deleted", entry: Entry{Migration: passthrough(Migration{Compare: with(clean, func(c *Compared) { c.Recorded = true }), KeptOld: 1, DeletedOld: 2})}, want: Changed, reason: "downloaded 1 message from the old server and deleted 2 there since the comparison", effect: "download 3"},
		{name: "learnt, and deleted in the same store", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{yesterday, ByOld, 7, 7}, DeletedOld: 2, Stores: yesterday})}, want: Taken},
		{name: "learnt when the clock was wrong", entry: Entry{Migration: passthrough(Migration{Learnt: Learnt{now.AddDate(1, 0, 0), BySession, 7, 7}, Shadow: with(clean, func(c *Compared) { c.Result, c.UIDLs = proxy.ShadowDiffers, 3 })})},
			want: Differs, reason: "3 with another unique id", effect: "download 3"},
		{name: "compared when the clock was wrong", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Shadow: with(clean, func(c *Compared) { c.At = now.AddDate(1, 0, 0) })})}, want: NotKnown, reason: "never learnt, never compared", effect: "download 7"},
		{name: "compared long ago", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Compare: with(clean, func(c *Compared) { c.At = long })})}, want: TooOld, reason: "compared on 2026-10-11", effect: "download 7"},
		{name: "learnt long ago", entry: Entry{Sessions: usual, Migration: passthrough(Migration{Learnt: Learnt{long, ByOld, 7, 7}})}, want: TooOld, reason: "learnt on 2026-10-11", effect: "download 7"},
	} {
		conditions := Conditions{Now: now, Since: Day(now.AddDate(0, 0, -30)), Off: func(account string) bool { return account == "off" }, Learn: !c.notLearn}
		_, classes := Classes()
		got := conditions.Judge(c.entry)
		if got.Class != c.want || got.Against != slices.Contains(classes, c.want) || !strings.Contains(got.Reason, c.reason) || !strings.Contains(got.Effect, c.effect) ||
			got.Against != (got.Reason != "") || got.Against != (got.Effect != "") {
			t.Errorf("%s: got %+v", c.name, got)
		}
	}
}

// Criterion: an account whose unique ids cannot be learnt is active, although it cannot log in.
func TestWhoCouldNotLogInIsActive(t *testing.T) {
	c := Conditions{Now: noon, Since: "2026-11-10"}
	for _, e := range []struct {
		Entry
		want bool
	}{
		{Entry{}, false},
		{Entry{Last: "2026-11-09"}, false},
		{Entry{Last: "2026-11-10"}, true},
		{Entry{Migration: &Migration{Learnt: Learnt{At: noon}}}, false},
		{Entry{Migration: &Migration{Failed: Failure{At: noon}}}, true},
		{Entry{Last: "2026-11-09", Migration: &Migration{Failed: Failure{At: noon.AddDate(0, 0, -20)}}}, false},
	} {
		if got := c.Active(e.Entry); got != e.want {
			t.Errorf("%+v: active %v", e, got)
		}
	}
}

// Criterion: an account moves back safely only if a comparison of the last day found it equal and nothing has changed since, or if both servers have the same store.
func TestMovingBack(t *testing.T) {
	c := Conditions{Now: noon, Since: "2026-10-21"}
	hour := noon.Add(-time.Hour)
	equal := Compared{At: hour, Result: proxy.ShadowClean, Messages: 7}
	for name, m := range map[string]struct {
		Migration
		safe bool
		why  string
	}{
		"never compared":     {Migration{}, false, "not compared"},
		"learnt only":        {Migration{Learnt: Learnt{At: hour}}, false, "not compared"},
		"equal":              {Migration{Compare: equal}, true, "compared equal on 2026-11-20 11:00"},
		"equal, before":      {Migration{Compare: equal, Learnt: Learnt{At: noon}}, false, "not compared equal since"},
		"equal, downloaded":  {Migration{Compare: equal, KeptNew: 1}, false, "1 message downloaded and 0 deleted"},
		"equal, deleted":     {Migration{Compare: equal, DeletedNew: 2}, false, "0 messages downloaded and 2 deleted"},
		"equal, more here":   {Migration{Compare: Compared{At: hour, Result: proxy.ShadowClean, Extra: 1}}, false, "1 message was only in INBOX"},
		"equal, yesterday":   {Migration{Compare: Compared{At: hour.AddDate(0, 0, -1), Result: proxy.ShadowClean}}, false, "older than a day"},
		"differs":            {Migration{Compare: Compared{At: hour, Result: proxy.ShadowDiffers, UIDLs: 1}}, false, "not compared equal"},
		"same store":         {Migration{Compare: equal, Stores: hour, KeptNew: 5, DeletedNew: 2}, true, "same store"},
		"equal, wrong clock": {Migration{Compare: Compared{At: noon.AddDate(1, 0, 0), Result: proxy.ShadowClean}}, false, "not compared"},
		"same store, once":   {Migration{Stores: noon.AddDate(0, 0, -60)}, false, "not compared"},
	} {
		safe, why := c.MovesBack(Entry{Migration: &m.Migration})
		if safe != m.safe || !strings.Contains(why, m.why) {
			t.Errorf("%s: %v, %s", name, safe, why)
		}
	}
}

// Criterion: accounts are counted by how far they are on the way from the old POP3 server, and by the day; what was not observed is no day.
func TestStagesAreCountedByTheDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, days := new(state.Memory), new(state.Memory)
		log := slog.New(slog.DiscardHandler)
		clean := Compared{At: time.Now(), Result: proxy.ShadowClean}
		for account, m := range map[string]Migration{
			"p": {Mode: proxy.ModePassthrough}, "s": {Mode: proxy.ModeShadow}, "l": {Mode: proxy.ModePassthrough, Compare: clean}, "b": {Mode: proxy.ModeBridge},
			"o": {Mode: proxy.ModeBridge}, "never": {Compare: clean},
		} {
			m.Since = time.Now()
			if err := Note(t.Context(), s, account, m); err != nil {
				t.Fatal(err)
			}
		}
		l := New(s, log, nil)
		l.Days, l.Off = days, func(account string) bool { return account == "o" }
		for _, account := range []string{"p", "s", "l", "b", "o", "u"} {
			l.Observe(login(account, proxy.POP3, 0))
		}
		write(t, l)
		run := func(d time.Duration) {
			var wait = make(chan struct{})
			ctx, stop := context.WithCancel(t.Context())
			go func() { defer close(wait); l.Run(ctx) }()
			time.Sleep(d)
			stop()
			<-wait
		}
		begun := Day(time.Now()) // synctest begins at midnight
		run(23*time.Hour + 30*time.Minute)
		time.Sleep(6 * time.Hour) // down
		run(26 * time.Hour)
		got, err := ObservedDays(t.Context(), days, begun)
		if err != nil || len(got) != 3 {
			t.Fatalf("got %v, %v", got, err)
		}
		hours := []int64{got[0].Seconds / 3600, got[1].Seconds / 3600, got[2].Seconds / 3600}
		if !slices.Equal(hours, []int64{23, 18, 7}) || !got[0].Enough() || got[1].Enough() {
			t.Errorf("observed %v hours", hours)
		}
		want := map[string]int{StagePassthrough: 1, StageShadow: 1, StageLearnt: 1, StageBridged: 1, StageGone: 1, StageUnknown: 1}
		for _, stage := range Stages() {
			if got[0].Stages[stage] != want[stage] || l.Counts().Stages[stage] != want[stage] {
				t.Errorf("%s: %d, %d, want %d", stage, got[0].Stages[stage], l.Counts().Stages[stage], want[stage])
			}
		}
		time.Sleep(keepDays * 24 * time.Hour)
		run(time.Hour)
		if got, err := ObservedDays(t.Context(), days, ""); err != nil || len(got) != 2 {
			t.Errorf("after %d days: %v, %v", keepDays, got, err)
		}
	})
}
