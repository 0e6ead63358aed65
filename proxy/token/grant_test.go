package token

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

func writeTestFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newRSAKey(t *testing.T) (key *rsa.PrivateKey, pkcs8 []byte) {
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

// newCertificate returns files with a certificate of key, and the parameter x5t#S256.
func newCertificate(t *testing.T, key *rsa.PrivateKey, pkcs8 []byte) (cert, keyFile, x5t string) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return writeTestFile(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		writeTestFile(t, "key.pem", pkcs8), base64.RawURLEncoding.EncodeToString(sum[:])
}

func serviceAccount(t *testing.T, email string, pkcs8 []byte) string {
	t.Helper()
	octets, err := json.Marshal(map[string]string{"type": "service_account", "client_email": email, "private_key_id": "k1", "private_key": string(pkcs8)})
	if err != nil {
		t.Fatal(err)
	}
	return writeTestFile(t, "sa.json", octets)
}

// Criterion: Client credentials work with a secret and with a certificate: an authorization server accepts the assertion (PS256, x5t#S256, aud, at most 10 minutes, a new jti each). A Google assertion has the mailbox as sub, RS256, and is a new one for each token.
func TestEveryGrantAtAnAuthorizationServer(t *testing.T) {
	key, pkcs8 := newRSAKey(t)
	cert, keyFile, x5t := newCertificate(t, key, pkcs8)
	o := proxytest.StartOAuth(t, map[string]proxytest.OAuthClient{
		"copier":     {Secret: "sec ret&="},
		"app":        {Key: &key.PublicKey, X5T: x5t},
		"sa@example": {Key: &key.PublicKey},
	})
	provide := func(g Grant) *Provider {
		p := &Provider{Name: "test", TokenURL: o.TokenURL, Grant: g, Domains: []string{"example.org"}, Slots: 1, Transport: NewTransport(nil)}
		return p
	}
	for name, g := range map[string]Grant{
		"secret":          &ClientCredentials{ClientID: "copier", Scope: "mail", SecretFile: writeTestFile(t, "secret", []byte("sec ret&=\n"))},
		"certificate":     &ClientCredentials{ClientID: "app", Scope: MicrosoftScope, CertFile: cert, KeyFile: keyFile},
		"service account": &ServiceAccount{KeyFile: serviceAccount(t, "sa@example", pkcs8), Scope: GoogleScope},
	} {
		p := provide(g)
		for range 2 { // the second assertion must not be the first one again
			if _, err := p.ask(t.Context(), "anna@example.org"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	p := provide(&ServiceAccount{KeyFile: serviceAccount(t, "sa@example", pkcs8), Scope: GoogleScope})
	before := len(o.Requests())
	for _, mailbox := range []string{"anna@example.org", "bob@example.org", "anna@example.org"} {
		token, _, err := p.Token(t.Context(), mailbox, false)
		if err != nil {
			t.Fatal(err)
		}
		token.Clear()
	}
	if got := strings.Join(o.Requests()[before:], " "); got != "anna@example.org bob@example.org" {
		t.Errorf("requests for %s: want one for each mailbox", got)
	}

	other, otherPEM := newRSAKey(t)
	otherCert, otherKey, _ := newCertificate(t, other, otherPEM)
	for name, g := range map[string]Grant{
		"wrong secret":          &ClientCredentials{ClientID: "copier", Scope: "mail", SecretFile: writeTestFile(t, "secret", []byte(planted))},
		"another certificate":   &ClientCredentials{ClientID: "app", Scope: "mail", CertFile: otherCert, KeyFile: otherKey},
		"another key":           &ServiceAccount{KeyFile: serviceAccount(t, "sa@example", otherPEM), Scope: GoogleScope},
		"no secret":             &ClientCredentials{ClientID: "copier", Scope: "mail", SecretFile: filepath.Join(t.TempDir(), "none")},
		"two lines":             &ClientCredentials{ClientID: "copier", Scope: "mail", SecretFile: writeTestFile(t, "secret", []byte(planted+"\nx"))},
		"no certificate":        &ClientCredentials{ClientID: "app", Scope: "mail", CertFile: keyFile, KeyFile: keyFile},
		"no pair":               &ClientCredentials{ClientID: "app", Scope: "mail", CertFile: otherCert, KeyFile: keyFile},
		"no service account":    &ServiceAccount{KeyFile: writeTestFile(t, "sa.json", []byte(`{"private_key":"`+planted+`"}`))},
		"a key that is no key":  &ServiceAccount{KeyFile: serviceAccount(t, "sa@example", []byte(planted))},
		"a key that is garbage": &ServiceAccount{KeyFile: serviceAccount(t, "sa@example", []byte("-----BEGIN PRIVATE KEY-----\ncGxhbnRlZA==\n-----END PRIVATE KEY-----\n"))},
	} {
		_, err := provide(g).ask(t.Context(), "anna@example.org")
		fault, ok := errors.AsType[*Fault](err)
		if !ok || fault.Class != Configuration {
			t.Errorf("%s: %v, want a fault of the configuration", name, err)
		} else if strings.Contains(err.Error(), planted) || strings.Contains(err.Error(), "MII") {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

func TestAssertionsAreSignedAsEntraDemands(t *testing.T) {
	key, _ := newRSAKey(t)
	jwt, err := sign(true, key, map[string]string{"x5t#S256": "x"}, claims{Issuer: "a", Expires: 1})
	if err != nil {
		t.Fatal(err)
	}
	head, _ := base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[0])
	if got, want := string(head), `{"alg":"PS256","typ":"JWT","x5t#S256":"x"}`; got != want {
		t.Errorf("header %s, want %s", got, want)
	}
}
