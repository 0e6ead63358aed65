package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/password"
	"postern/proxy/route"
)

// Criterion: A session that connects to its backend again asks whether its login still stands once in 30 s; a refusal is asked again each time, because it may be temporary.
func TestALoginIsLookedAtOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s standing
		looks, answer := 0, error(nil)
		try := func(l *proxy.Login, want error, wantLooks int) {
			t.Helper()
			err := s.check(l, func() error { looks++; return answer })
			if !errors.Is(err, want) || looks != wantLooks {
				t.Errorf("check = %v after %d looks, want %v after %d", err, looks, want, wantLooks)
			}
		}
		alice := &proxy.Login{Account: "alice", Device: "phone"}
		away := errors.New("the store is away")
		answer = away
		try(alice, away, 1)
		try(alice, away, 2)
		answer = nil
		try(alice, nil, 3)
		answer = away
		time.Sleep(standsFor - time.Second)
		try(alice, nil, 3)
		try(&proxy.Login{Account: "alice", Device: "copier"}, away, 4)
		try(&proxy.Login{Account: "alice", Device: "phone", Client: proxy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:1")}}, away, 5)
		time.Sleep(time.Second)
		try(alice, away, 6)

		answer, looks = nil, 0
		for i := range 2 * mostStanding {
			try(&proxy.Login{Account: fmt.Sprint("u", i)}, nil, i+1)
		}
		if len(s.until) > mostStanding {
			t.Errorf("%d logins are remembered, want at most %d", len(s.until), mostStanding)
		}
		time.Sleep(standsFor)
		try(alice, nil, 2*mostStanding+1)
		if len(s.until) != 1 {
			t.Errorf("%d logins are remembered, want 1", len(s.until))
		}
	})
}

// An awayBucket cannot be read.
type awayBucket struct{ password.Bucket }

var errAway = errors.New("the store is away")

func (awayBucket) Scan(context.Context, string, func(string, []byte) error) error { return errAway }

// Criterion: A session that connects again is refused once its device is removed or has expired, its account is no more in passwords.file, or its protocol is off; a store that cannot be read refuses it temporarily.
func TestALoginThatStandsNoMoreDoesNotConnectAgain(t *testing.T) {
	dir := t.TempDir()
	r, _, _ := startWithPasswords(t, configs.Passwords{Devices: true})
	phone := one(t, r, stored.AddDevice, stored.NewDevice{Account: "alice", Name: "phone"})
	login := &proxy.Login{Account: "alice", Device: phone.ID, Verified: true, Client: proxy.Client{Protocol: proxy.POP3}}
	try := func(l *proxy.Login, want proxy.Reason) {
		t.Helper()
		r.service.standing.until = nil // 30 s later
		if err := r.service.stands(t.Context(), l); proxy.ReasonOf(err) != want {
			t.Errorf("stands = %v, want %v", err, want)
		}
	}
	try(login, 0)

	there := r.service.Storage.Devices
	r.service.Storage.Devices = awayBucket{there}
	try(login, proxy.Unavailable)
	r.service.Storage.Devices = there
	try(login, 0)

	policy := filepath.Join(dir, "policy")
	if err := os.WriteFile(policy, []byte("alice pop3:off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	protocols, err := route.OpenProtocols(policy)
	if err != nil {
		t.Fatal(err)
	}
	before := r.service.current.Load()
	next := func() *generation { // after a reload
		g := newGeneration(before.cfg, r.service)
		g.passwords, g.routing, g.deviceKeys = before.passwords, before.routing, before.deviceKeys
		return g
	}
	g := next()
	g.routing = &routing{policy: protocols, accounts: before.routing.accounts, rules: before.routing.rules}
	r.service.current.Store(g)
	try(login, proxy.ProtocolOff)
	imap := *login
	imap.Client.Protocol = proxy.IMAP
	try(&imap, 0)
	r.service.current.Store(before)

	passwd := filepath.Join(dir, "passwd")
	const hash = "$6$rounds=1000$E/9dx1OfkQN0nO63$8Vgvf6gp5SXtNcKYXLk6wNQJaVIc4awgaxp.fki/OJ.uR60BkrlE6sS0btHzgHCIMf5Rwm8dmH3W9NimiH6qD0"
	if err := os.WriteFile(passwd, []byte("bob:"+hash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g = next()
	if g.passwords.file, err = password.OpenFile(passwd, r.service.slow); err != nil {
		t.Fatal(err)
	}
	r.service.current.Store(g)
	try(&proxy.Login{Account: "bob", Verified: true}, 0)
	try(&proxy.Login{Account: "carol", Verified: true}, proxy.Suspended)
	try(login, 0) // by a device
	r.service.current.Store(before)

	one(t, r, stored.RemoveDevice, stored.DeviceName{Account: "alice", ID: phone.ID})
	try(login, proxy.Wrong)
	try(&proxy.Login{Account: "alice", Device: phone.ID}, 0) // with a password of the backend
}

// Criterion: The sessions of a device end within a minute after its last day, and after another Postern with the same record has removed it; a record that cannot be read ends none.
func TestSessionsOfADeviceThatStandsNoMoreEnd(t *testing.T) {
	r, _, log := startWithPasswords(t, configs.Passwords{Devices: true})
	today := time.Now().Format(time.DateOnly)
	open := func(d stored.MadeDevice) *deviceDialogue {
		t.Helper()
		imap := r.dialogue(t, "imap")
		imap.expect("* OK")
		imap.say("a LOGIN alice "+d.Password, "a OK")
		return imap
	}
	ended := func(d *deviceDialogue) {
		t.Helper()
		_ = d.conn.SetDeadline(time.Now().Add(5 * time.Second))
		if rest, err := io.ReadAll(d.in); err != nil {
			t.Errorf("the session goes on: %q, %v", rest, err)
		}
	}
	visitor := one(t, r, stored.AddDevice, stored.NewDevice{Account: "alice", Name: "visitor", Expires: today})
	phone := one(t, r, stored.AddDevice, stored.NewDevice{Account: "alice", Name: "phone"})
	first, second := open(visitor), open(phone)
	look := func(bucket password.Bucket, days int) {
		d := &password.Devices{Bucket: bucket, Now: func() time.Time { return time.Now().AddDate(0, 0, days) }}
		r.service.endRemoved(t.Context(), func(l *proxy.Login) error { return (&password.Backend{Devices: d}).Stands(t.Context(), l) })
	}

	bucket := r.service.Storage.Devices
	look(bucket, 0)
	look(awayBucket{bucket}, 1)
	first.say("b NOOP", "b OK")
	second.say("b NOOP", "b OK")
	look(bucket, 1)
	ended(first)
	second.say("c NOOP", "c OK")

	other := &password.Devices{Bucket: bucket} // of another Postern
	if _, err := other.Remove(t.Context(), "alice", phone.ID); err != nil {
		t.Fatal(err)
	}
	look(bucket, 0)
	ended(second)
	for i := range 5 {
		open(one(t, r, stored.AddDevice, stored.NewDevice{Account: "alice", Name: fmt.Sprint("device ", i)}))
	}
	asked := 0
	r.service.endRemoved(t.Context(), func(*proxy.Login) error {
		asked++
		return proxy.NewRefusal(proxy.Unavailable, errAway)
	})
	if asked != 3 {
		t.Errorf("a store that is away was asked %d times in a row, want 3", asked)
	}
	if text := log.String(); strings.Count(text, "the sessions of a device end") != 2 || !strings.Contains(text, "its last day was "+today) {
		t.Errorf("the log has no two lines that sessions end:\n%s", text)
	}
}
