package proxytest

import (
	"net"
	"testing"
)

func TestDovecotServesManageSieve(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotOptions{
		Users:   map[string]string{"alice": "secret"},
		Sieve:   true,
		Trusted: "127.0.0.1/32",
		Config:  "auth_failure_delay = 0",
	})
	conn := dial(t, d.Sieve)
	Transcript(t, conn, `
		S: "IMPLEMENTATION" *
		S: "SIEVE" "fileinto *"
		S: "NOTIFY" "mailto"
		S: "SASL" "PLAIN LOGIN"
		S: "STARTTLS"
		S: "VERSION" "1.0"
		S: "XCLIENT"
		S: OK *
		C: XCLIENT ADDR=192.0.2.7 PORT=4711
		S: OK "Updated"
		C: STARTTLS
		S: OK *
	`)
	secure := ClientTLS(conn, pool(t, d.CA))
	Transcript(t, secure, `
		S: "IMPLEMENTATION" *
		S: "SIEVE" "fileinto *"
		S: "NOTIFY" "mailto"
		S: "SASL" "PLAIN LOGIN"
		S: "VERSION" "1.0"
		S: "XCLIENT"
		S: OK *
		C: NOOP "STARTTLS-RESYNC-CAPA"
		S: OK (TAG "STARTTLS-RESYNC-CAPA") *
		C: AUTHENTICATE "PLAIN"
		S: ""
		C: "AGFsaWNlAHdyb25n"
		S: NO "Authentication failed."
		C: AUTHENTICATE "PLAIN" {20+}
		C: AGFsaWNlAHNlY3JldA==
		S: OK *
	`)
	editScripts(t, secure)
	Transcript(t, ClientTLS(dial(t, d.SieveS), pool(t, d.CA)), `
		S: "IMPLEMENTATION" *
	`)
}

func TestCyrusServesManageSieve(t *testing.T) {
	t.Parallel()
	c := StartCyrus(t, CyrusOptions{
		Users:  map[string]string{"alice": "secret"},
		Sieve:  true,
		Config: "sieve_allowplaintext: no",
	})
	conn := dial(t, c.Sieve)
	Transcript(t, conn, `
		S: "IMPLEMENTATION" "Cyrus timsieved *"
		S: "VERSION" "1.0"
		S: "SASL" ""
		S: "SIEVE" "*"
		S: "NOTIFY" "mailto"
		S: "EXTLISTS" *
		S: "STARTTLS"
		S: "UNAUTHENTICATE"
		S: OK
		C: STARTTLS
		S: OK *
	`)
	secure := ClientTLS(conn, pool(t, c.CA))
	Transcript(t, secure, `
		S: "IMPLEMENTATION" "Cyrus timsieved *"
		S: "VERSION" "1.0"
		S: "SASL" "PLAIN LOGIN"
		S: "SIEVE" "*"
		S: "NOTIFY" "mailto"
		S: "EXTLISTS" *
		S: "UNAUTHENTICATE"
		S: OK
		C: AUTHENTICATE "PLAIN" "AGFsaWNlAHdyb25n"
		S: NO "Authentication Error"
		C: AUTHENTICATE "PLAIN"
		S: {0}
		S:
		C: "AGFsaWNlAHNlY3JldA=="
		S: OK
		C: NOOP "tag"
		S: OK (TAG {3}
		S: tag) "Done"
	`)
	editScripts(t, secure)
}

// editScripts stores, lists, activates, gets and deletes a script of a user who has none.
func editScripts(t *testing.T, conn net.Conn) {
	t.Helper()
	Transcript(t, conn, `
		C: PUTSCRIPT "first" {20+}
		C- # a comment\r\nkeep;\r\n\r\n
		S: OK*
		C: SETACTIVE "first"
		S: OK*
		C: LISTSCRIPTS
		S: "first" ACTIVE
		S: OK*
		C: GETSCRIPT "first"
		S: {20}
		S: # a comment
		S: keep;
		S:
		S: OK*
		C: SETACTIVE ""
		S: OK*
		C: DELETESCRIPT "first"
		S: OK*
		C: LOGOUT
		S: OK*
		S: <EOF>
	`)
}
