package token

import (
	"testing"
	"testing/synctest"
)

// Criterion: Another script's letter that looks like one of ASCII, or becomes one in lower case, makes another domain, and another mailbox with a token of its own; case of ASCII letters makes none.
func TestSpellingsOfMailboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		p := newProvider(t, e, 1)
		p.Domains = []string{"kontoso.example"}
		p.Grant = eachMailbox{p.Grant}
		const kelvin = "\u212a"
		for mailbox, want := range map[string]bool{
			"kevin@kontoso.example": true, "KEVIN@KONTOSO.example": true, kelvin + "evin@kontoso.example": true,
			"kevin@" + kelvin + "ontoso.example": false, "kevin@k\u043entoso.example": false, "kevin@kontoso.example.": false, "kevin@\uff4bontoso.example": false,
		} {
			if got := p.Serves(mailbox); got != want {
				t.Errorf("Serves(%q) = %v", mailbox, got)
			}
		}
		first := take(t, p, "kevin@kontoso.example", false)
		if got := take(t, p, "Kevin@Kontoso.example", false); got != first {
			t.Errorf("another case has the token %s, want %s", got, first)
		}
		if got := take(t, p, kelvin+"evin@kontoso.example", false); got == first {
			t.Error("another letter has the same token")
		}
	})
}

// An eachMailbox is a Grant whose tokens are for one mailbox each.
type eachMailbox struct{ Grant }

func (eachMailbox) perMailbox() bool { return true }
