package main

import (
	"fmt"
	"sync"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: 60 people of one office, or one account on 60 devices, who log in
// at the same moment with the right password are all let in: nobody is told of
// failed logins that nobody had.
func TestManyRightPasswordsAtTheSameTimeAllPass(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprintf("user%02d", i))
	}
	users, passwords := people(names...)
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords})
	p := launch(t, []string{"protocol: imap"}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", dovecot.IMAP)}, "")
	for name, who := range map[string]func(i int) (user, string){
		"one office":  func(i int) (user, string) { return users[i], "127.0.0.2" },
		"one account": func(i int) (user, string) { return users[0], fmt.Sprintf("127.0.0.%d", 2+i) },
	} {
		var logins sync.WaitGroup
		for i := range 60 {
			u, source := who(i)
			conn := p.tlsOn(t, dialFrom(t, source, p.imap))
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			logins.Go(func() {
				if answer, err := ask(conn, "a LOGIN "+u.name+" "+u.password, "a "); err != nil || answer[:4] != "a OK" {
					t.Errorf("%s: %s %v", name, answer, err)
				}
			})
		}
		logins.Wait()
	}
}
