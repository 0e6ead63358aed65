package service

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/proxytest"
)

// Criterion: With kind: google DELE moves a message to Trash and never expunges, without a word about pop3.delete in the file; unique ids of messages that Gmail hides (maxFolderSize) are the same when the messages are shown again.
func TestGmailsMessagesGoToTrashAndKeepTheirIDs(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	const address = "postern@project.example"
	h := newTokenHouse(t, map[string]proxytest.OAuthClient{address: {Key: &key.PublicKey}})
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": address, "private_key_id": "k1", "private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	file(t, h.dir, "sa.json", string(account))
	whole, _ := mailServers(t, 5)
	h.behind.SetIMAP(whole)
	h.start(t, fmt.Sprintf(`
backends: {school: {token: school, imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
providers: {school: {kind: google, token_url: %q, key_file: sa.json, domains: [example.org]}}
passwords: {devices: true}
log: {level: debug}
`, h.behind.IMAP, h.behind.Submission, h.oauth.TokenURL))
	password := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "anna@example.org", Name: "old client"}).Password
	session := func(commands ...string) (uidls []string) {
		t.Helper()
		d := h.running.dialogue(t, "pop3")
		d.expect("+OK")
		d.say("USER anna@example.org", "+OK")
		d.say("PASS "+password, "+OK")
		d.say("UIDL", "+OK")
		for {
			line, err := d.in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == ".\r\n" {
				break
			}
			_, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			uidls = append(uidls, id)
		}
		for _, command := range commands {
			d.say(command, "+OK")
		}
		d.say("QUIT", "+OK")
		return uidls
	}
	all := session()
	hiding, _ := mailServers(t, 5)
	hide(t, hiding, 1, 2)
	h.behind.SetIMAP(hiding) // the same UIDVALIDITY and UIDs: as with a limit of three messages
	if got := session(); len(all) != 5 || strings.Join(got, " ") != strings.Join(all[2:], " ") {
		t.Errorf("%d messages shown: %q, want the last three of %q", len(got), got, all)
	}
	h.behind.SetIMAP(whole)
	if got := session("DELE 1", "DELE 4"); strings.Join(got, " ") != strings.Join(all, " ") {
		t.Errorf("shown again: %q, want %q", got, all)
	}
	if got, want := strings.Join(session(), " "), strings.Join([]string{all[1], all[2], all[4]}, " "); got != want {
		t.Errorf("after DELE: %s, want %s", got, want)
	}
	sent := strings.ToUpper(h.behind.Sent())
	if !strings.Contains(sent, `UID MOVE 1,4 "TRASH"`) || strings.Contains(sent, "EXPUNGE") || strings.Contains(sent, "\\DELETED") || strings.Contains(sent, "CLOSE") {
		t.Errorf("the server got:\n%s", h.behind.Sent())
	}
	if got := strings.Join(h.oauth.Requests(), " "); got != "anna@example.org" {
		t.Errorf("tokens were requested for %q, want one for the mailbox", got)
	}
}

// hide removes the messages of anna with these numbers.
func hide(t *testing.T, address string, numbers ...int) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	script := "a LOGIN anna@example.org \"secret of anna@example.org\"\r\nb SELECT INBOX\r\n"
	for _, n := range numbers {
		script += fmt.Sprintf("c STORE %d +FLAGS.SILENT (\\Deleted)\r\n", n)
	}
	if _, err := io.WriteString(c, script+"d EXPUNGE\r\ne LOGOUT\r\n"); err != nil {
		t.Fatal(err)
	}
	if answers, err := io.ReadAll(c); err != nil || strings.Count(string(answers), " EXPUNGE\r\n") != len(numbers) {
		t.Fatalf("%q, %v", answers, err)
	}
}
