// Package oidctest gets tokens from zitadel/oidc, an authorization server that Postern's
// authors have not written.
package oidctest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"postern/proxy/token"
)

// The application that the storage of zitadel's example has.
const clientID, clientSecret = "sid1", "verysecret"

// A server is zitadel's, which gives tokens for a secret by itself. For assertions it has
// the parts: the parser of requests, and what verifies a JWT.
type server struct {
	*op.LegacyServer
	store *storage.Storage
	url   string // of the token endpoint
	keys  keys
}

// keys are the public keys of the clients, by client.
type keys map[string]*rsa.PublicKey

// GetKeyByIDAndClientID implements op.JWTProfileKeyStorage.
func (k keys) GetKeyByIDAndClientID(_ context.Context, keyID, clientID string) (*jose.JSONWebKey, error) {
	key, known := k[clientID]
	if !known {
		return nil, errors.New("unknown client")
	}
	return &jose.JSONWebKey{KeyID: keyID, Key: key, Use: "sig"}, nil
}

// verifier verifies assertions for the token endpoint.
func (s *server) verifier(options ...op.JWTProfileVerifierOption) *op.JWTProfileVerifier {
	return op.NewJWTProfileVerifier(s.keys, s.url, 10*time.Minute, 0, options...)
}

// VerifyClient implements op.Server: RFC 7523 section 2.2 for the grant of client
// credentials, which zitadel's LegacyServer has for secrets alone.
func (s *server) VerifyClient(ctx context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	if r.Data.ClientAssertion == "" {
		client, err := s.LegacyServer.VerifyClient(ctx, r)
		if err != nil {
			err = oidc.ErrInvalidClient().WithParent(err)
		}
		return client, err
	}
	request, err := op.VerifyJWTAssertion(ctx, r.Data.ClientAssertion, s.verifier())
	if err != nil || request.Issuer != r.Data.ClientID {
		return nil, oidc.ErrInvalidClient().WithParent(err)
	}
	return s.store.ClientCredentials(ctx, clientID, clientSecret)
}

// JWTProfile implements op.Server: RFC 7523 section 2.1, with any subject, as for Google's
// delegation.
func (s *server) JWTProfile(ctx context.Context, r *op.Request[oidc.JWTProfileGrantRequest]) (*op.Response, error) {
	anySubject := op.SubjectCheck(func(*oidc.JWTTokenRequest) error { return nil })
	request, err := op.VerifyJWTAssertion(ctx, r.Data.Assertion, s.verifier(anySubject))
	if err != nil {
		return nil, oidc.ErrInvalidGrant().WithParent(err)
	}
	return op.NewResponse(&oidc.AccessTokenResponse{AccessToken: "for-" + request.Subject, TokenType: "Bearer", ExpiresIn: 3599}), nil
}

// start returns the address of a token endpoint.
func start(t *testing.T, k keys) (tokenURL string) {
	t.Helper()
	var handler http.Handler
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(h.Close)
	store := storage.NewStorage(storage.NewUserStore(h.URL))
	provider, err := op.NewProvider(&op.Config{CryptoKey: sha256.Sum256([]byte(rand.Text())), AuthMethodPost: true, AuthMethodPrivateKeyJWT: true}, store, op.StaticIssuer(h.URL), op.WithAllowInsecure())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{LegacyServer: op.NewLegacyServer(provider, provider.Endpoints()), store: store, url: h.URL + provider.TokenEndpoint().Relative(), keys: k}
	handler = op.RegisterLegacyServer(s, op.AuthorizeCallbackHandler(provider))
	return s.url
}

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKey(t *testing.T) (key *rsa.PrivateKey, pkcs8 []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// certified returns client credentials by a certificate of key.
func certified(t *testing.T, key *rsa.PrivateKey, pkcs8 []byte) *token.ClientCredentials {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return &token.ClientCredentials{ClientID: clientID, Scope: "openid", CertFile: cert, KeyFile: write(t, "key.pem", pkcs8)}
}

func serviceAccount(t *testing.T, address string, pkcs8 []byte) *token.ServiceAccount {
	t.Helper()
	octets, err := json.Marshal(map[string]string{"type": "service_account", "client_email": address, "private_key_id": "k1", "private_key": string(pkcs8)})
	if err != nil {
		t.Fatal(err)
	}
	return &token.ServiceAccount{KeyFile: write(t, "sa.json", octets), Scope: "openid"}
}

// Criterion: zitadel/oidc, an authorization server of other authors, gives tokens for client credentials with a secret, with a private-key JWT (PS256), and for a service account's assertion (RS256); a wrong secret or key is a fault of the configuration.
func TestTokensOfAnotherAuthorizationServer(t *testing.T) {
	const account = "postern@project.example"
	key, pkcs8 := newKey(t)
	other, otherPKCS8 := newKey(t)
	url := start(t, keys{clientID: &key.PublicKey, account: &key.PublicKey})
	secret := func(text string) *token.ClientCredentials {
		return &token.ClientCredentials{ClientID: clientID, Scope: "openid", SecretFile: write(t, "secret", []byte(text))}
	}
	provider := func(g token.Grant) *token.Provider {
		return &token.Provider{Name: "test", TokenURL: url, Grant: g, Domains: []string{"example.org"}, Slots: 1, Transport: token.NewTransport(nil)}
	}
	for name, g := range map[string]token.Grant{
		"secret": secret(clientSecret), "certificate": certified(t, key, pkcs8), "service account": serviceAccount(t, account, pkcs8),
	} {
		got, ends, err := provider(g).Token(t.Context(), "anna@example.org", false)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text := string(got.Reveal())
		if left := time.Until(ends); text == "" || left <= 0 || name == "service account" && text != "for-anna@example.org" {
			t.Errorf("%s: a token of %d octets for %v", name, len(text), left)
		}
		got.Clear()
	}
	for name, g := range map[string]token.Grant{
		"wrong secret": secret("other"), "another key": certified(t, other, otherPKCS8), "another account's key": serviceAccount(t, account, otherPKCS8),
		"unknown account": serviceAccount(t, "nobody@project.example", pkcs8),
	} {
		_, _, err := provider(g).Token(t.Context(), "anna@example.org", false)
		fault, ok := errors.AsType[*token.Fault](err)
		if !ok || fault.Class == token.Temporary {
			t.Errorf("%s: %v, want a fault that is not temporary", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "other") || strings.Contains(err.Error(), base64.RawURLEncoding.EncodeToString([]byte(`{"alg"`)))) {
			t.Errorf("%s: the error shows what was sent", name)
		}
	}
}
