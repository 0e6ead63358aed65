package ledger

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/state"
)

// BenchmarkCount is what the hourly count, and a statement, cost with 100,000 accounts.
func BenchmarkCount(b *testing.B) {
	store, err := state.Open(b.TempDir()+"/record.db", state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	bucket := store.Bucket("ledger")
	l := New(bucket, slog.New(slog.DiscardHandler), nil)
	now := time.Now()
	octets := 0
	for i := range 100_000 {
		account := fmt.Sprintf("firstname.lastname%06d@example.org", i)
		m := Migration{Backend: "main", Mode: proxy.ModeShadow, Since: now, Learnt: Learnt{now, BySession, 40, 40}, Shadow: Compared{At: now, Result: proxy.ShadowClean, Messages: 40}}
		octets += len((&Usage{Migration: m}).encode())
		l.Observe(login(account, proxy.POP3, 0))
		l.addMigration(account, m)
	}
	if err := l.Write(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.count(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(octets)/100_000, "octets/account")
	if n := l.Counts().Stages[StageLearnt]; n != 100_000 {
		b.Errorf("learnt: %d", n)
	}
}
