package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

// Criterion: The record of 1,000,000 accounts is migrated to PostgreSQL, and compared, within 10 minutes and 512 MiB of memory.
func TestProofAMillionAccountsAreMigrated(t *testing.T) {
	wantProof(t)
	const accounts, batch = 1_000_000, 10_000
	pg := proxytest.StartPostgres(t, "max_wal_size = 1GB")
	f := newCluster(t, 1).prepare(t, fmt.Sprintf("state: {path: state, record: {postgres: {url: %q, password_file: %q, ca: %q}}}\n", pg.URL(), pg.PasswordFile, pg.CA))
	record, err := state.Open(filepath.Join(filepath.Dir(f.config), "state", stored.RecordFile), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	heads := record.Bucket(stored.UIDLBucket)
	for first := 0; first < accounts; first += batch {
		var keys []string
		for i := range batch {
			keys = append(keys, fmt.Sprintf("user%07d@example.org\x00INBOX", first+i))
		}
		err := heads.UpdateAll(t.Context(), keys, func(key string, _ []byte) ([]byte, error) {
			const head = 43 // octets of a record of computed ids
			return append([]byte(key), make([]byte, head-len(key))...), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	size := record.Size()
	if err := record.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, most := measured(t, os.DevNull, "state", "migrate", "--to", "postgres", "--config", f.config)
	took := time.Since(began)
	t.Logf("%.0f s, at most %d MiB; record.db %d MiB, the table with its index %s\n%s", took.Seconds(), most>>20, size>>20,
		pg.SQL(t, "postern", "SELECT pg_size_pretty(pg_total_relation_size('postern_record'))"), out)
	if want := fmt.Sprintf("%d values are equal in both", accounts); !strings.Contains(out, want) {
		t.Errorf("it prints %s", out)
	}
	if took > 10*time.Minute || most > 512<<20 && !raced() {
		t.Errorf("it takes %v and %d MiB", took, most>>20)
	}
}

// Criterion: A POP3 login with the record in PostgreSQL takes at most 10 ms more at the median than with record.db, in one interleaved run.
func TestProofALoginWithASharedRecord(t *testing.T) {
	wantProof(t)
	const users, rounds = 20, 30
	pg := proxytest.StartPostgres(t)
	c := newCluster(t, users)
	nodes := map[string]*processes{
		"bbolt":    c.prepare(t, "state: {path: state}\n"),
		"postgres": c.prepare(t, fmt.Sprintf("state: {path: state, record: {postgres: {url: %q, password_file: %q, ca: %q}}}\n", pg.URL(), pg.PasswordFile, pg.CA)),
	}
	nodes["postgres"].wantSaid(t, "the record is in PostgreSQL", "state", "migrate", "--to", "postgres")
	took := map[string][]time.Duration{}
	for _, f := range nodes {
		f.serve(t)
	}
	for round := range rounds {
		for user := range users {
			for name, f := range nodes {
				began := time.Now()
				if _, err := c.poll(f, user); err != nil {
					t.Fatal(err)
				}
				if round > 0 { // the first one begins the record
					took[name] = append(took[name], time.Since(began))
				}
			}
		}
	}
	median := func(name string) time.Duration {
		slices.Sort(took[name])
		t.Logf("%s: p50 %v, p95 %v", name, took[name][len(took[name])/2], took[name][len(took[name])*95/100])
		return took[name][len(took[name])/2]
	}
	if more := median("postgres") - median("bbolt"); more > 10*time.Millisecond {
		t.Errorf("PostgreSQL takes %v more", more)
	}
}

// Criterion: 1,000 accounts are polled in turn at two Posterns for more than a minute while both and PostgreSQL are killed ten times each and more: every unique id is as it was first shown, and every import that was confirmed is there.
func TestProofTwoPosternsAreKilledForAMinute(t *testing.T) {
	wantProof(t)
	testTwoPosterns(t, 1000, 54)
}
