package main

import (
	"fmt"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: A rolling restart of a pool of two costs no login: when the first
// is back and the second one is stopped, the first serves at once, whatever was
// last known of it.
func TestRollingRestartOfAPoolCostsNoLogin(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	u := users[0]
	first := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: quick})
	second := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: quick, Share: first})
	p := launch(t, []string{"protocol: imap"}, []string{
		fmt.Sprintf("farm: {imap: {addresses: [%q, %q], tls: none}}", first.IMAP, second.IMAP),
	}, "")
	for _, stopped := range []*proxytest.Dovecot{first, second} {
		stopped.Stop(t)
		for range 8 {
			talk(t, p.imap, p.ca, lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
		}
		stopped.Start(t)
	}
}
