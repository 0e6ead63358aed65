package guard

import (
	"errors"
	"testing"
	"time"

	"postern/proxy"
)

func TestDecision(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{})
	p := mustAdmit(t, s.Guard, "192.0.2.1")
	defer p.Leave()
	for i, step := range []struct {
		password string
		want     finding
	}{
		{"stale", finding{tier: StrangerFresh}},
		{"stale", finding{tier: StrangerFresh, repeat: true, rejected: true}},
		{"right", finding{tier: StrangerFresh, first: true}},
		{"right", finding{tier: KnownGood}},
		{"stale", finding{tier: KnownGood, repeat: true}},
	} {
		err := p.Try(t.Context(), loginWith("alice", step.password))
		if err == nil {
			err = s.check("alice", step.password)
		}
		p.Settle(err)
		if got := p.found; got != step.want {
			t.Errorf("attempt %d: %+v, want %+v", i, got, step.want)
		}
	}
	err := proxy.NewRefusal(proxy.Throttled, &proxy.Decision{Tier: "stranger_used", Bucket: "pair", RetryAfter: 90 * time.Second})
	if d, ok := errors.AsType[*proxy.Decision](error(err)); !ok || d.Bucket != "pair" || err.Error() != "throttled: guard: no token of pair (stranger_used) for 1m30s" {
		t.Errorf("%v", err)
	}
}
