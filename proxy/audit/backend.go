package audit

import "postern/proxy"

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
