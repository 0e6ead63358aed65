package proxytest

import (
	"bytes"
	"fmt"
	"testing"
)

func TestNastyMessagesAreAlwaysTheSame(t *testing.T) {
	names := make(map[string]bool)
	first, second := HostileMessages(), HostileMessages()
	for i, m := range first {
		if names[m.Name] {
			t.Errorf("two messages are called %q", m.Name)
		}
		names[m.Name] = true
		if !bytes.Equal(m.Raw, second[i].Raw) {
			t.Errorf("%s differs from call to call", m.Name)
		}
	}
	if got := len(first[len(first)-1].Raw); got < attachment {
		t.Errorf("the attachment has %d bytes, want %d or more", got, attachment)
	}
}

func TestDovecotTakesTheNastyMessages(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotOptions{Users: map[string]string{"alice": "secret"}})
	var sizes string
	messages := HostileMessages()
	for i, m := range messages {
		d.Deliver(t, "alice", m.Raw)
		sizes += fmt.Sprintf("S: \\* %d FETCH (RFC822.SIZE %d)\n", i+1, len(withCRLF(m.Raw)))
	}
	Transcript(t, dial(t, d.IMAP), `
		S: \* OK *
		C: a LOGIN alice secret
		S: a OK *
		C: b SELECT INBOX
		S: \* FLAGS *
		S: \* OK *
		S: \* `+fmt.Sprint(len(messages))+` EXISTS
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: b OK *
		C: c FETCH 1:* (RFC822.SIZE)
		`+sizes+`
		S: c OK *
	`)
}

// withCRLF makes every line end CRLF, as Dovecot does.
func withCRLF(raw []byte) []byte {
	raw = bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
}
