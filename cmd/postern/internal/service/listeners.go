package service

import (
	"context"
	"crypto/tls"
	"net"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/listen"
)

// addressChangesUse is said of an address that is open for something else: who has it
// would close it.
const addressChangesUse = "%s is still open for another part of the configuration: free it there and reload, then use it here"

// open opens the listeners of h that are not open yet, all or none, and tells
// the others what is new. webs are those of webs, by key, that are new. The error
// names all that cannot be.
func (s *Service) open(ctx context.Context, h *generation) (bindings []proxy.Binding, webs map[string]net.Listener, err error) {
	var mistakes configs.Errors
	var opened []net.Listener
	listenAt := func(key, name, address string) (net.Listener, bool) {
		ln, fresh, err := s.sockets.Listen(ctx, name, address)
		if err != nil {
			mistakes = append(mistakes, h.cfg.Errorf(key, "%v", err))
		} else if fresh {
			opened = append(opened, ln)
		}
		return ln, fresh
	}
	listeners := make(map[string]*listen.ProxyListener)
	for _, d := range h.listeners {
		ln, fresh := listenAt(d.key, d.name(), d.address)
		if ln == nil {
			continue
		}
		key := listen.Key(d.name(), d.address)
		listeners[key] = s.listeners[key]
		if fresh {
			listeners[key] = listen.Proxied(ln, d.proxyFrom)
		} else if listeners[key] == nil {
			mistakes = append(mistakes, h.cfg.Errorf(d.key, addressChangesUse, d.address))
		}
		for _, service := range d.services {
			bindings = append(bindings, proxy.Binding{Listener: listeners[key], Service: service})
		}
	}
	webs = make(map[string]net.Listener)
	for _, w := range h.endpoints() {
		if w.address != "" && w.address != s.endpoints[w.key].address {
			ln, fresh := listenAt(w.key, w.key, w.address)
			if ln != nil && !fresh {
				mistakes = append(mistakes, h.cfg.Errorf(w.key, addressChangesUse, w.address))
			}
			webs[w.key] = ln
		}
	}
	if mistakes != nil {
		for _, ln := range opened {
			_ = ln.Close()
		}
		return nil, nil, mistakes
	}
	for _, d := range h.listeners {
		listeners[listen.Key(d.name(), d.address)].Trust(d.proxyFrom)
	}
	s.listeners = listeners
	return bindings, webs, nil
}

// tlsConfig returns that of a listener: the one it had before, if it may.
func (s *Service) tlsConfig(name, protocol string, profile proxy.Profile) *tls.Config {
	key := tlsKey{name, protocol, profile}
	if s.tlsConfigs[key] == nil {
		s.tlsConfigs[key] = s.store.TLS(protocol, profile)
	}
	return s.tlsConfigs[key]
}
