package audit

import "postern/proxy"

// queued writes that accounts have too many connections to a backend. The line about the
// login names the account.
func (l *Log) queued(e proxy.AccountQueued) {
	switch e.Result {
	case proxy.QueueFull:
		if more, ok := l.due(true, e.Backend, e.Protocol, "account queue"); ok {
			l.log.Warn("logins refused: their accounts have all connections to the backend that they may have (too_many_sessions)",
				l.clientFields(e.Client, append(more, "backend", e.Backend, "protocol", e.Protocol, "err", e.Err)...)...)
		}
	case proxy.QueueOK:
		l.log.Debug("login has waited for a connection of its account",
			l.clientFields(e.Client, "backend", e.Backend, "protocol", e.Protocol, "duration", round(e.Duration))...)
	}
}

func (l *Log) probed(e proxy.Probed) {
	key := e.Backend + " " + e.Protocol
	l.mu.Lock()
	was, changed := l.down[key]
	changed = !changed || was == e.Up
	l.down[key] = !e.Up
	l.mu.Unlock()
	switch {
	case !changed:
	case e.Up:
		l.log.Info("backend is up", "backend", e.Backend, "protocol", e.Protocol)
	default:
		l.log.Warn("backend is down", "backend", e.Backend, "protocol", e.Protocol, "err", e.Err)
	}
}

// tokensAgain reports whether e is the first token of a provider that had none for anybody.
func (l *Log) tokensAgain(e proxy.TokenRequested) bool {
	key := "token " + e.Provider
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.down[key]
	switch e.Result {
	case proxy.TokenOK:
		delete(l.down, key)
		return was
	case proxy.TokenTemporary, proxy.TokenConfiguration:
		l.down[key] = true
	}
	return false
}
