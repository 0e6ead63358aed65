package service

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"reflect"
	"slices"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/token"
)

// A provider is a token.Provider and what it was made of. A new generation keeps it, and so
// its tokens, if that is the same.
type provider struct {
	*token.Provider
	config configs.Provider
	ca     [sha256.Size]byte // hash of its ca file
}

// source returns the tokens for a backend; nil: the backend takes passwords.
func (g *generation) source(backend string) *token.Source { return g.sources[backend] }

// setSources makes the providers of tokens, and their tokens for each backend. The error has
// a mistake for each file that cannot be used.
func (g *generation) setSources() error {
	g.providers, g.sources = map[string]provider{}, map[string]*token.Source{}
	var mistakes configs.Errors
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Providers)) {
		p, wrong := g.newProvider(name, g.cfg.Providers[name])
		mistakes = append(mistakes, wrong...)
		g.providers[name] = p
	}
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Backends)) {
		b := g.cfg.Backends[name]
		if b.Token == "" {
			continue
		}
		s, err := g.newSource(name, b)
		if err != nil {
			mistakes = append(mistakes, g.cfg.Errorf("backends."+name+".names_file", "%s", configs.Unreadable(b.NamesFile, err)))
		}
		g.sources[name] = s
	}
	g.background = append(g.background, g.watchCredentials)
	if mistakes != nil {
		return mistakes
	}
	return nil
}

func (g *generation) newProvider(name string, c configs.Provider) (p provider, mistakes configs.Errors) {
	key := "providers." + name + "."
	fail := func(at string, err error) { mistakes = append(mistakes, g.cfg.Errorf(key+at, "%v", err)) }
	grant, at, err := newGrant(c)
	if err != nil {
		fail(at, err)
	}
	ca, err := ReadCA(c.CA)
	if err != nil {
		fail("ca", err)
	}
	p = provider{config: c, ca: sha256.Sum256(ca)}
	if before := g.current.Load(); before != nil {
		if last := before.providers[name]; last.Provider != nil && last.ca == p.ca && reflect.DeepEqual(last.config, c) {
			return last, mistakes
		}
	}
	var roots *x509.CertPool // nil: the system's
	if ca != nil {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
	}
	p.Provider = &token.Provider{
		Name: name, Kind: c.Kind, TokenURL: TokenURL(c), Grant: grant, Domains: c.Domains, Transport: token.NewTransport(roots), Observer: g.observer,
		EndsSessions: c.Kind != configs.ProviderOAuth,
	}
	return p, mistakes
}

// TokenURL returns the token endpoint of a provider.
func TokenURL(c configs.Provider) string {
	switch {
	case c.TokenURL != "":
		return c.TokenURL
	case c.Kind == configs.ProviderMicrosoft:
		return token.MicrosoftTokenURL(c.Tenant)
	}
	return token.GoogleTokenURL
}

// newGrant returns the grant of a provider. An error is about the file at the key at.
func newGrant(c configs.Provider) (g token.Grant, at string, err error) {
	scope := c.Scope
	if c.Kind == configs.ProviderGoogle {
		if scope == "" {
			scope = token.GoogleScope
		}
		_, _, _, err = token.ReadServiceAccount(c.KeyFile)
		return &token.ServiceAccount{KeyFile: c.KeyFile, Scope: scope}, "key_file", err
	}
	if scope == "" {
		scope = token.MicrosoftScope // of oauth, the configuration has one
	}
	client := &token.ClientCredentials{ClientID: c.ClientID, Scope: scope, SecretFile: c.ClientSecretFile}
	if c.Certificate == nil {
		_, err = token.ReadSecret(c.ClientSecretFile)
		return client, "client_secret_file", err
	}
	client.CertFile, client.KeyFile = c.Certificate.Cert, c.Certificate.Key
	_, err = token.ReadCertificate(client.CertFile, client.KeyFile)
	return client, "certificate", err
}

// newSource returns the tokens for the backend name: those of the generation before, if
// nothing has changed. A change of names_file counts within two looks, as that of a passwd
// file does.
func (g *generation) newSource(name string, b configs.Backend) (*token.Source, error) {
	s := &token.Source{Provider: g.providers[b.Token].Provider}
	if b.NamesFile != "" {
		var err error
		if s.Names, err = token.OpenNames(b.NamesFile, s.Provider.Serves); err != nil {
			return s, err
		}
	}
	if before := g.current.Load(); before != nil {
		if last := before.sources[name]; last != nil && last.Provider == s.Provider && samePath(last.Names, s.Names) && last.Names.Equal(s.Names) {
			s = last
		}
	}
	if names := s.Names; names != nil {
		g.background = append(g.background, func(ctx context.Context) { names.Watch(ctx, watchEvery/2, g.log) })
	}
	return s, nil
}

// samePath reports whether a and b are of the same file.
func samePath(a, b *token.Names) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Path == b.Path
}

// withToken returns b, behind a check of the client's password if Postern logs in to the
// backend name with tokens.
func (g *generation) withToken(name string, b proxy.Backend) proxy.Backend {
	if s := g.source(name); s != nil {
		return g.withPasswords(b, s.Serves)
	}
	return b
}
