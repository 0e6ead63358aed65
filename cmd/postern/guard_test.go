package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"postern/configs"
	"postern/proxy/guard"
	"postern/proxy/proxytest"
)

const guarded = frame + `
listeners: [{protocol: imap, address: "127.0.0.1:0", guard: {pair: {burst: 2}, strict_nist: true, account_sessions: 7}}, {protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}}}
`

func TestTheGuardsDefaultsAreThoseOfTheConfiguration(t *testing.T) {
	cfg, err := configs.Parse("test.yaml", []byte(guarded))
	if err != nil {
		t.Fatal(err)
	}
	got, want := guardConfig(cfg), guard.DefaultConfig()
	if s := got.Services["imap"]; len(got.Services) != 1 || s.Pair != (guard.Rate{Burst: 2}) || s.Sessions != 7 || !s.StrictNIST || s.Delay != 0 {
		t.Errorf("the services have %+v", got.Services)
	}
	want.Now, want.Reserve, got.Services = nil, want.Connections/5, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the guard gets %+v, want %+v", got, want)
	}
	cfg, err = configs.Parse("test.yaml", []byte(guarded+"limits: {reserve: 0, max_connections: 5}\nguard: {learning: 0s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := guardConfig(cfg); got.Reserve >= 0 || got.Learning >= 0 { // 0 would be the guard's default
		t.Errorf("reserve is %d and learning is %s, want less than nothing", got.Reserve, got.Learning)
	}
}

// Criterion: what the login guard has learnt outlives Postern: whoever was
// refused is so after a restart, and who is known is so, too.
func TestTheGuardOutlivesPostern(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	config := frame + fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
state: {path: %q}
guard: {known: {burst: 1, every: 1h}, delay: 100ms}
`, imap, t.TempDir()+"/state")
	t.Run("first", func(t *testing.T) {
		r := inhabit(t, config)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice "secret of alice"
			S: a OK *
			C: b LOGOUT
			S: \* BYE *
			S: b OK *
		`)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice wrong
			S: a NO [AUTHENTICATIONFAILED] *
			C: b LOGIN alice other
			S: b NO [UNAVAILABLE] *
		`)
	})
	t.Run("second", func(t *testing.T) {
		r := inhabit(t, config)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice third
			S: a NO [UNAVAILABLE] *
		`)
		if got := r.metrics("guard_known_networks"); !strings.Contains(got, "guard_known_networks 1\n") {
			t.Errorf("nobody is known any more:\n%s", got)
		}
		if got := r.metrics("guard_attempts_total"); !strings.Contains(got, `{decision="refused",tier="known_good"} 1`) {
			t.Errorf("the attempt is not counted as one of a known network:\n%s", got)
		}
	})
}
