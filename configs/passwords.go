package configs

// Passwords are the passwords that Postern checks itself, for backends that it logs in to
// with tokens. They are asked in this order, until one says that the password is right.
type Passwords struct {
	Devices bool   `yaml:"devices"` // those that postern password has made; needs State.KeyFile
	File    string `yaml:"file"`    // lines of account:hash as in Dovecot's passwd-file or of htpasswd: bcrypt, argon2id, SHA512-CRYPT; read again when it changes
	Backend string `yaml:"backend"` // the backend whose imap server is asked; "": none
	Memory  Size   `yaml:"memory"`  // of the hashes of File that are computed at once
}

// Any reports whether there is a password that Postern could check.
func (p Passwords) Any() bool { return p.Devices || p.File != "" || p.Backend != "" }

func (m *mistakes) checkPasswords() {
	const key = "passwords"
	c := m.cfg
	p := c.Passwords
	m.checkSize(key+".memory", p.Memory, 1<<20, 1<<40)
	if p.Any() && !c.usesTokens() {
		m.report(key, "are used by no backend: all servers get the client's own password, and check it; remove them")
	}
	if p.Devices && (c.State.KeyFile == "" || c.State.Path == "") {
		m.report(key+".devices", "needs state.path, where devices are kept, and state.key_file, the key of their hashes")
	}
	if p.Backend == "" {
		return
	}
	switch b, known := c.Backends[p.Backend]; {
	case !known:
		m.unknownBackend(key+".backend", p.Backend)
	case b.Token != "":
		m.report(key+".backend", "backend %s takes tokens, and no passwords; write the name of another backend", p.Backend)
	case b.IMAP == nil:
		m.report(key+".backend", "backend %s has no imap server, which would check passwords", p.Backend)
	}
}

// usesTokens reports whether Postern logs in to a backend with tokens.
func (c *Config) usesTokens() bool {
	for _, b := range c.Backends {
		if b.Token != "" {
			return true
		}
	}
	return false
}
