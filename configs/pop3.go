package configs

import (
	"cmp"
	"fmt"
	"time"
)

// The values of POP3.Mode.
const (
	ModeBridge      = "bridge"
	ModePassthrough = "passthrough"
	ModeShadow      = "shadow"
)

// Shadow bounds the comparisons of the mode shadow, for each backend.
type Shadow struct {
	Concurrency int `yaml:"concurrency"` // sessions that are compared at a time
	PerSecond   int `yaml:"per_second"`  // logins to the IMAP server
}

// ListenerPOP3 is the part of POP3 that may differ on a listener; "": as for all.
type ListenerPOP3 struct {
	Mode   string `yaml:"mode"`
	Delete string `yaml:"delete"`
	Lock   string `yaml:"lock"`
}

// At returns the values for a listener.
func (p POP3) At(l Listener) POP3 {
	if own := l.POP3; own != nil {
		p.Mode = cmp.Or(own.Mode, p.Mode)
		p.Delete, p.Lock = cmp.Or(own.Delete, p.Delete), cmp.Or(own.Lock, p.Lock)
	}
	return p
}

// POP3For returns the values of POP3 for sessions of a listener at a backend. Gmail keeps
// what is expunged from INBOX: where the file has no word for DELE, that is trash there.
func (c *Config) POP3For(l Listener, backend string) POP3 {
	p := c.POP3.At(l)
	own := l.POP3 != nil && l.POP3.Delete != ""
	if c.Providers[c.Backends[backend].Token].Kind == ProviderGoogle && !own && !c.IsSet("pop3.delete") {
		p.Delete = "trash"
	}
	return p
}

// OldServer returns the name of the backend whose pop3 server is the old one of a backend:
// its own, or pop3.old_server; "": there is none.
func (c *Config) OldServer(backend string) string {
	if b, known := c.Backends[backend]; known && b.POP3 != nil {
		return backend
	}
	return c.POP3.OldServer
}

// POP3Modes returns the modes in which a backend can serve POP3 clients.
func (c *Config) POP3Modes(backend string) (modes []string) {
	b, known := c.Backends[backend]
	imap, old := known && b.IMAP != nil, c.OldServer(backend) != ""
	if imap {
		modes = append(modes, ModeBridge)
	}
	if old {
		modes = append(modes, ModePassthrough)
	}
	if imap && old && c.State.Path != "" && b.Token == "" { // both servers get the client's password
		modes = append(modes, ModeShadow)
	}
	return modes
}

func (m *mistakes) checkMode(key, mode string) {
	m.checkWord(key, mode, "a mode", ModeBridge, ModePassthrough, ModeShadow)
	if mode == ModeShadow && m.cfg.State.Path == "" {
		m.report(key, "shadow needs state.path, where the unique ids are recorded")
	}
}

// checkOldServer checks the name of a backend with an old pop3 server; "": there is none.
// It reports whether there is one.
func (m *mistakes) checkOldServer(key, name string) bool {
	b, known := m.cfg.Backends[name]
	switch {
	case name == "":
	case !known:
		m.unknownBackend(key, name)
	case b.POP3 == nil && !m.isUnreadable(joinKey("backends", name)+".pop3"):
		m.report(key, "backend %s has no pop3 server: write backends.%s.pop3, or the name of another backend", name, name)
	default:
		return true
	}
	return false
}

func (m *mistakes) checkPOP3() {
	m.checkMode("pop3.mode", m.cfg.POP3.Mode)
	m.checkOldServer("pop3.old_server", m.cfg.POP3.OldServer)
	if m.checkOldServer("pop3.learn_from", m.cfg.POP3.LearnFrom) && m.cfg.State.Path == "" {
		m.report("pop3.learn_from", "needs state.path, where the unique ids are recorded")
	}
	m.checkDuration("pop3.learn_wait", m.cfg.POP3.LearnWait, time.Second, "")
	m.checkNumber("pop3.shadow.concurrency", m.cfg.POP3.Shadow.Concurrency, 1000)
	m.checkNumber("pop3.shadow.per_second", m.cfg.POP3.Shadow.PerSecond, 1000)
	m.checkDelete("pop3.delete", m.cfg.POP3.Delete)
	m.checkLock("pop3.lock", m.cfg.POP3.Lock)
	for i, l := range m.cfg.Listeners {
		key := fmt.Sprintf("listeners[%d].pop3", i)
		switch {
		case !m.cfg.IsSet(key):
		case l.Protocol == "imap" || l.Protocol == "submission" || l.Protocol == "sieve":
			m.report(key, "has no meaning for %s; remove it", l.Protocol)
		case l.POP3 != nil:
			if m.cfg.IsSet(key + ".mode") {
				m.checkMode(key+".mode", l.POP3.Mode)
			}
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
