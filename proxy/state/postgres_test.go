package state

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

func TestTheURLOfPostgreSQL(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://postern@db.example.org/postern":                             "",
		"postgresql://postern@db1:5433,db2/postern":                             "",
		"postgres://postern@127.0.0.1/postern?sslmode=disable":                  "",
		"postgres:///postern?host=/run/postgresql&user=postern":                 "",
		"postgres://postern:secret@db/postern":                                  "must have no password",
		"postgres://postern@db/postern?password=secret":                         "must have no password",
		"postgres://db/postern":                                                 "has no user",
		"http://postern@db/postern":                                             "this is not postgres://",
		"postgres://postern@db/postern?sslmode=disable":                         "verify-full",
		"postgres://postern@db/postern?sslmode=require":                         "verify-full",
		"postgres://postern@127.0.0.1,db/postern?sslmode=disable":               "verify-full",
		"postgres://postern@db/postern?target_session_attrs=any":                "is not supported",
		"postgres://postern@db:none/postern":                                    "not one of PostgreSQL",
		"postgres://postern@db/postern?connect_timeout=secret-in-a-wrong-place": "not one of PostgreSQL",
	} {
		_, err := NewPostgres(PostgresConfig{URL: url})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") && !strings.Contains(url, "wrong-place") {
			t.Errorf("the error has the password: %v", err)
		}
	}
}

// busyPatience is a second on a machine that runs other tests; TestARecordThatIsAwayKeepsNobodyWaiting
// measures the exact time.
const busyPatience = 2 * time.Second

// Criterion: A record in PostgreSQL is neither read from a standby nor from a table without a complete record, nor from a server whose certificate is another's; a frozen server keeps nobody waiting for a second; after its return, and after a crash, the record is used again within 5 seconds with all that was confirmed.
func TestPostgreSQLThatIsFrozenKilledOrAnother(t *testing.T) {
	p := proxytest.StartPostgres(t)
	store := newPostgres(t, p)
	s := NewShared(store, nil)
	defer func() { _ = s.Close() }()
	b, ctx := s.Bucket("uidl"), t.Context()
	put := func(value string) error { return b.Put(ctx, "a", []byte(value)) }
	want := func(value string) {
		t.Helper()
		within(t, 5*time.Second, func() bool { got, err := b.Get(ctx, "a"); return err == nil && string(got) == value })
	}
	if err := put("one"); err != nil {
		t.Fatal(err)
	}
	p.Freeze(t)
	for range 3 {
		begun := time.Now()
		if _, err := b.Get(ctx, "a"); !errors.Is(err, ErrAway) || time.Since(begun) > busyPatience {
			t.Errorf("frozen: %v after %v", err, time.Since(begun))
		}
	}
	p.Thaw(t)
	want("one")
	if err := put("two"); err != nil {
		t.Fatal(err)
	}
	p.Kill(t)
	if _, err := b.Get(ctx, "a"); !errors.Is(err, ErrAway) {
		t.Errorf("killed: %v", err)
	}
	p.Start(t)
	want("two")

	refused := func(what, want string, c PostgresConfig) {
		t.Helper()
		other, err := NewPostgres(c)
		if err == nil {
			err = other.Probe(ctx)
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), p.Password) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	right := PostgresConfig{URL: p.URL(), PasswordFile: p.PasswordFile, CA: p.CA}
	_, _, foreign := proxytest.CertFiles(t)
	refused("another CA", "certificate", PostgresConfig{URL: p.URL(), PasswordFile: p.PasswordFile, CA: foreign})
	refused("no password", "password", PostgresConfig{URL: p.URL(), CA: p.CA})
	named := right
	named.Accept = func(i Identity) error { return errors.New("another record: " + i.Name) }
	refused("another record", "another record: one", named)
	p.SQL(t, "postern", "INSERT INTO postern_record VALUES ('meta', 'moved', 1, 'elsewhere')")
	refused("a record that was moved", "moved away: elsewhere", right)
	if err := put("three"); !errors.Is(err, ErrAway) {
		t.Errorf("a connection of before writes to a record that was moved: %v", err)
	}
	p.SQL(t, "postern", "DELETE FROM postern_record WHERE key = 'moved'")
	want("two")
	p.SQL(t, "postern", "ALTER USER postern SET default_transaction_read_only = on")
	refused("read-only, as a standby", "only the primary", right)
	p.SQL(t, "postern", "ALTER USER postern RESET default_transaction_read_only")
	p.SQL(t, "postern", "ALTER TABLE postern_record RENAME TO hidden")
	refused("no table", ErrNoRecord.Error(), right)
	if _, err := b.Get(ctx, "a"); !errors.Is(err, ErrAway) {
		t.Errorf("a missing table is no missing value: %v", err)
	}
	p.SQL(t, "postern", "ALTER TABLE hidden RENAME TO postern_record")
	want("two")
	p.SQL(t, "postern", "ALTER USER postern SET synchronous_commit = off")
	store = &Postgres{config: store.config, hosts: store.hosts, slots: make(chan struct{}, 1)}
	d, err := store.Durability(context.Background())
	if err != nil || d.SynchronousCommit != "on" || !d.Fsync || d.Standbys != "" {
		t.Errorf("%+v, %v: sessions of Postern wait for the disk", d, err)
	}
}

// Criterion: Of several hosts of PostgreSQL the one that is the primary is found within 5 seconds, also if another one is silent.
func TestTheHostThatIsThePrimaryIsFound(t *testing.T) {
	p := proxytest.StartPostgres(t)
	_ = newPostgres(t, p)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel answers, nobody else does
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	store, err := NewPostgres(PostgresConfig{
		URL: "postgres://postern@" + proxytest.FreeAddress(t) + "," + silent.Addr().String() + "," + p.Addr + "/postern", PasswordFile: p.PasswordFile, CA: p.CA,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := NewShared(store, nil)
	defer func() { _ = s.Close() }()
	within(t, 5*time.Second, func() bool { _, err := s.Bucket("uidl").Get(t.Context(), "a"); return err == nil })
	begun := time.Now()
	if err := s.Probe(t.Context()); err != nil || time.Since(begun) > postgresHost {
		t.Errorf("the primary is known, and a further connection took %v: %v", time.Since(begun), err)
	}
}

// A slow is a relay to a server, which passes on everything later.
type slow struct {
	address string
	delay   atomic.Int64 // of each direction
}

func startSlow(t *testing.T, server string, delay time.Duration) *slow {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	s := &slow{address: ln.Addr().String()}
	s.delay.Store(int64(delay))
	pass := func(to, from net.Conn) {
		defer func() { _ = to.Close() }()
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			time.Sleep(time.Duration(s.delay.Load()))
			if _, failed := to.Write(b[:n]); err != nil || failed != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			behind, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			go pass(behind, client)
			go pass(client, behind)
		}
	}()
	return s
}

// Criterion: A PostgreSQL that is 80 ms away is used; when it becomes slower than that by ten times, nobody waits for a second, and when it is as before, it is used again within 5 seconds.
func TestASlowPostgreSQL(t *testing.T) {
	p := proxytest.StartPostgres(t)
	_ = newPostgres(t, p)
	const near = 40 * time.Millisecond
	relay := startSlow(t, p.Addr, near)
	store, err := NewPostgres(PostgresConfig{URL: "postgres://postern@" + relay.address + "/postern", PasswordFile: p.PasswordFile, CA: p.CA})
	if err != nil {
		t.Fatal(err)
	}
	s := NewShared(store, nil)
	defer func() { _ = s.Close() }()
	b := s.Bucket("uidl")
	get := func() error { _, err := b.Get(t.Context(), "a"); return err }
	for range 10 { // each uses the connection of the one before
		if err := b.Put(t.Context(), "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	relay.delay.Store(int64(10 * near))
	for range 3 {
		begun := time.Now()
		if err := get(); !errors.Is(err, ErrAway) || time.Since(begun) > busyPatience {
			t.Errorf("slow: %v after %v", err, time.Since(begun))
		}
	}
	relay.delay.Store(int64(near))
	within(t, 5*time.Second, func() bool { return get() == nil })
}
