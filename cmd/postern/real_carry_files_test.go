package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

// An oldStore is an old server whose maildirs the new one takes over.
type oldStore struct {
	oldPOP3
	store string
	stop  func()
}

// oldStores start the old servers whose files have their unique ids.
var oldStores = []struct {
	name, ids string // of --ids
	start     func(t *testing.T, u user) oldStore
}{
	{"Courier", "", func(t *testing.T, u user) oldStore {
		c := proxytest.StartCourier(t, proxytest.CourierOptions{Users: map[string]string{u.name: u.password}})
		return oldStore{oldPOP3{addr: c.POP3, deliver: func(raw []byte) { c.Deliver(t, u.name, raw) }}, c.Store, func() { c.Stop(t) }}
	}},
	{"Dovecot %f", "filename", dovecotStore("pop3_uidl_format = %f")},
	{"Dovecot %g", "guid", dovecotStore("pop3_uidl_format = %g")},
	{"Dovecot, saved", "", dovecotStore("pop3_uidl_format = UID%u-%v\npop3_save_uidl = yes")},
	{"Dovecot %f, saved", "", dovecotStore("pop3_uidl_format = %f\npop3_save_uidl = yes")},
}

func dovecotStore(config string) func(*testing.T, user) oldStore {
	return func(t *testing.T, u user) oldStore {
		d := proxytest.StartDovecot(t, proxytest.DovecotOptions{
			Users: map[string]string{u.name: u.password}, POP3: true, Config: quick + config + "\n",
		})
		return oldStore{oldPOP3{addr: d.POP3, deliver: func(raw []byte) { d.Deliver(t, u.name, raw) }}, d.Store, func() { d.Stop(t) }}
	}
}

// Criterion: Clients that leave mail on a Courier or Dovecot with ids that no format gives fetch nothing again from Postern once `uidl import --maildir` has read the files that these servers have left, and the next new message once.
func TestUIDLsAreCarriedOverFromFiles(t *testing.T) {
	messages := 60
	if n, err := strconv.Atoi(os.Getenv("POSTERN_CARRY")); err == nil {
		messages = n
	}
	for _, kind := range oldStores {
		t.Run(kind.name, func(t *testing.T) {
			open(t, "fetchmail", "mpop", "getmail")
			u := user{name: "carried@example.org", password: newSecret()}
			old := kind.start(t, u)
			mail := oldMail(messages)
			for _, m := range mail[:messages/2] {
				old.deliver(m)
			}
			front := newSwitchboard(t)
			front.to(func() (net.Conn, error) { return tryDial(old.addr) })
			clients := keepers(t, front.addr, u)
			fetched := make([]int, len(clients))
			for _, c := range clients {
				c.poll(t)
			}
			for _, m := range mail[messages/2:] { // the lists of both servers are appended to
				old.deliver(m)
			}
			for i, c := range clients {
				if fetched[i] = c.poll(t); fetched[i] == 0 || c.poll(t) != fetched[i] {
					t.Fatalf("%s: %d messages from the old server, and then more", c.name, fetched[i])
				}
			}

			// Another Dovecot takes the store over, and lists INBOX.
			old.stop()
			backend := proxytest.StartDovecot(t, proxytest.DovecotOptions{
				Users: map[string]string{u.name: u.password}, Share: &proxytest.Dovecot{Store: old.store}, Config: quick,
			})
			backend.Doveadm(t, "mailbox", "status", "-u", u.name, "messages", "INBOX")
			dir := t.TempDir()
			state := fmt.Sprintf("state: {path: %q}", filepath.Join(dir, "state"))
			s := &stage{backend: backend}
			config := s.forCommands(t, dir, state)
			p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", backend.IMAPS, backend.CA)}, state+"\n")
			args := []string{"postern", "uidl", "import", "--maildir", filepath.Join(old.store, "{user}", "Maildir"), "--user", u.name, "--config", config}
			if kind.ids != "" {
				args = append(args, "--ids", kind.ids)
			}
			got := run(t, dir, nil, args)
			if want := fmt.Sprintf("unique ids: %d of %d are carried over\n", messages, messages); !strings.Contains(got, want) {
				t.Errorf("import prints %s", hidden(got))
			}

			front.to(func() (net.Conn, error) { return dialTLS(t, p.pop3, p.ca), nil })
			for i, c := range clients {
				if n := c.poll(t); n != fetched[i] {
					t.Errorf("%s fetches %d messages again", c.name, n-fetched[i])
				}
			}
			backend.Deliver(t, u.name, []byte("Message-ID: <new@example.org>\nSubject: new\n\nnew\n"))
			for i, c := range clients {
				n := c.poll(t)
				if c.poll(t) != n || n != fetched[i]+1 {
					t.Errorf("%s fetches %d messages, and not the new one once", c.name, n-fetched[i])
				}
			}
		})
	}
}
