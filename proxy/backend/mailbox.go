package backend

import (
	"fmt"
	"sync"
	"time"

	"postern/proxy"
)

// The limits of openedMailboxes.
const (
	mostOpened = 1 << 16
	openedFor  = 24 * time.Hour // then the mailbox is asked for again
)

// openedMailboxes are the mailboxes that a server has opened with a token. The zero value
// has none.
type openedMailboxes struct {
	mu sync.Mutex
	at map[string]time.Time
}

// has reports whether mailbox was opened within openedFor.
func (o *openedMailboxes) has(mailbox string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.at[mailbox]
	return ok && time.Since(at) < openedFor
}

// add remembers mailbox. When there are mostOpened, all are forgotten: each is asked for
// once more.
func (o *openedMailboxes) add(mailbox string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.at == nil || len(o.at) >= mostOpened {
		o.at = make(map[string]time.Time)
	}
	o.at[mailbox] = time.Now()
}

// checkMailbox asks Exchange for the state of INBOX, if l is an IMAP client's and Postern
// has logged in with a token of its own: for a mailbox that it does not open (ErrNoMailbox),
// the client would be told that it is logged in, and then BAD to everything. STATUS opens INBOX and leaves no mailbox
// selected (RFC 9051 section 6.3.11), so the client's session begins as it would without
// it. Only a mailbox that was opened is remembered.
func (d *imap) checkMailbox(l *proxy.Login, s *Server) error {
	if !l.Verified || !carriesToken(l.Mechanism) || l.Client.Protocol != proxy.IMAP ||
		s.knownKind(d.greetingText, d.idResponse) != Exchange || s.opened.has(l.Account) {
		return nil
	}
	begun, offered := time.Now(), d.capabilities
	d.failure = failure{} // that of AUTHENTICATE cannot come any more
	r, err := d.command("STATUS INBOX (UIDVALIDITY)")
	d.capabilities = offered
	switch {
	case err != nil:
		err = fmt.Errorf("STATUS: %w", err)
	case r.Name == "OK":
		s.opened.add(l.Account)
		return nil
	default:
		err = withBackoff(withCause(fmt.Errorf("the server answered STATUS with %s", r.Name), r.Text), r.Text)
	}
	err = verified(s.unavailable(err))
	s.reportLogin(begun, err)
	return err
}
