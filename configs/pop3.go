package configs

import (
	"cmp"
	"fmt"
)

// ListenerPOP3 is the part of POP3 that may differ on a listener; "": as for all.
type ListenerPOP3 struct {
	Delete string `yaml:"delete"`
	Lock   string `yaml:"lock"`
}

// At returns the values for a listener.
func (p POP3) At(l Listener) POP3 {
	if own := l.POP3; own != nil {
		p.Delete, p.Lock = cmp.Or(own.Delete, p.Delete), cmp.Or(own.Lock, p.Lock)
	}
	return p
}

func (m *mistakes) checkPOP3() {
	m.checkDelete("pop3.delete", m.cfg.POP3.Delete)
	m.checkLock("pop3.lock", m.cfg.POP3.Lock)
	for i, l := range m.cfg.Listeners {
		key := fmt.Sprintf("listeners[%d].pop3", i)
		switch {
		case !m.cfg.IsSet(key):
		case l.Protocol == "imap" || l.Protocol == "submission":
			m.report(key, "has no meaning for %s; remove it", l.Protocol)
		case l.POP3 != nil:
			if m.cfg.IsSet(key + ".delete") {
				m.checkDelete(key+".delete", l.POP3.Delete)
			}
			if m.cfg.IsSet(key + ".lock") {
				m.checkLock(key+".lock", l.POP3.Lock)
			}
		}
	}
}

func (m *mistakes) checkDelete(key, word string) {
	m.checkWord(key, word, "a meaning of DELE", "expunge", "isolate", "trash", "hide", "keep")
}

func (m *mistakes) checkLock(key, word string) {
	m.checkWord(key, word, "a kind of lock", "allow", "wait", "refuse", "takeover")
}
