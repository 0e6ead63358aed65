package service

import (
	"context"
	"crypto/tls"
	"net"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/listen"
)

// addressChangesUse is the mistake of an address that is open for another part of
// the configuration, which would close it.
const addressChangesUse = "%s is still open for another part of the configuration: free it there and reload, then use it here"

// An opening has the listeners of a generation before they are served.
type opening struct {
	sockets  *listen.Sockets
	cfg      *configs.Config
	fresh    []net.Listener // listeners that were not open before
	mistakes configs.Errors

	listeners map[string]*listen.ProxyListener // all, by listen.Key
	bindings  []proxy.Binding                  // all
	endpoints map[string]net.Listener          // the new HTTP listeners, by key of the configuration
}

// open opens the listeners of g that are not open yet, all or none. The error names all
// listeners that cannot be opened. The current generation does not change.
func (s *Service) open(ctx context.Context, g *generation) (*opening, error) {
	o := &opening{
		sockets: s.sockets, cfg: g.cfg,
		listeners: make(map[string]*listen.ProxyListener), endpoints: make(map[string]net.Listener),
	}
	for _, l := range g.listeners {
		o.addListener(ctx, l, s.listeners)
	}
	for _, e := range g.endpoints() {
		if e.address != "" && e.address != s.endpoints[e.key].address {
			o.addEndpoint(ctx, e)
		}
	}
	if o.mistakes != nil {
		o.close()
		return nil, o.mistakes
	}
	return o, nil
}

// listen returns the socket of an address, nil after a mistake, and whether it was
// not open before.
func (o *opening) listen(ctx context.Context, key, name, address string) (net.Listener, bool) {
	ln, fresh, err := o.sockets.Listen(ctx, name, address)
	if err != nil {
		o.mistakes = append(o.mistakes, o.cfg.Errorf(key, "%v", err))
		return nil, false
	}
	if fresh {
		o.fresh = append(o.fresh, ln)
	}
	return ln, fresh
}

// addListener opens the listener of l, unless the listener is in open.
func (o *opening) addListener(ctx context.Context, l listenerSpec, open map[string]*listen.ProxyListener) {
	ln, fresh := o.listen(ctx, l.key, l.name(), l.address)
	if ln == nil {
		return
	}
	key := listen.Key(l.name(), l.address)
	one := open[key]
	switch {
	case fresh:
		one = listen.Proxied(ln, l.proxyFrom)
	case one == nil:
		o.mistakes = append(o.mistakes, o.cfg.Errorf(l.key, addressChangesUse, l.address))
	}
	o.listeners[key] = one
	for _, service := range l.services {
		o.bindings = append(o.bindings, proxy.Binding{Listener: one, Service: service})
	}
}

// addEndpoint opens the listener of e.
func (o *opening) addEndpoint(ctx context.Context, e httpEndpoint) {
	ln, fresh := o.listen(ctx, e.key, e.key, e.address)
	if ln != nil && !fresh {
		o.mistakes = append(o.mistakes, o.cfg.Errorf(e.key, addressChangesUse, e.address))
	}
	o.endpoints[e.key] = ln
}

// close closes the listeners in fresh.
func (o *opening) close() {
	for _, ln := range o.fresh {
		_ = ln.Close()
	}
}

// setListeners makes the listeners of o, which are those of g, the open listeners of s.
func (s *Service) setListeners(g *generation, o *opening) {
	for _, l := range g.listeners {
		o.listeners[listen.Key(l.name(), l.address)].Trust(l.proxyFrom)
	}
	s.listeners = o.listeners
}

// tlsConfig returns the tls.Config of a listener: the one of an earlier generation, if
// name, protocol and profile are the same.
func (s *Service) tlsConfig(name, protocol string, profile proxy.Profile) *tls.Config {
	key := tlsKey{name, protocol, profile}
	if s.tlsConfigs[key] == nil {
		s.tlsConfigs[key] = s.store.TLS(protocol, profile)
	}
	return s.tlsConfigs[key]
}
