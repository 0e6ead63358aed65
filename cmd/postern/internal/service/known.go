package service

// known reports whether an account has logged in before, or is listed in a file of the
// current configuration: then its name is no password in the wrong field, and may be
// written to the log. What cannot be read is not known.
func (s *Service) known(account string) bool {
	if g := s.current.Load(); g != nil && (g.routing.known(account) || g.passwords.file != nil && g.passwords.file.Known(account)) {
		return true
	}
	if l := s.ledger.Load(); l != nil && l.Known(account) {
		return true
	}
	return s.guard.Known(account) > 0
}

// knownDomain reports whether accounts of a domain have logged in before, or the current
// configuration names it.
func (s *Service) knownDomain(domain string) bool {
	if g := s.current.Load(); g != nil && g.routing.knownDomain(domain) {
		return true
	}
	l := s.ledger.Load()
	return l != nil && l.KnownDomain(domain)
}

// forget makes an account unknown whose stored data was removed.
func (s *Service) forget(account string) {
	if l := s.ledger.Load(); l != nil {
		l.Forget(account)
	}
	s.audit.Forget(account)
	s.outcomes.Forget(account)
}
