package token

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// A Grant makes requests for tokens. Files are read for each request: a key or a secret
// that was replaced counts from the next one on.
type Grant interface {
	// form returns the parameters of a request. subject is a mailbox; "": none.
	form(tokenURL, subject string, now time.Time) (url.Values, error)
	// perMailbox reports whether a token is for one mailbox.
	perMailbox() bool
	// signs reports whether a request has an assertion, which has times in it.
	signs() bool
	// fill returns the advice of an advisory for this grant.
	fill(advisory) string
}

// ClientCredentials are the grant of RFC 6749 section 4.4: the token is the application's.
// The client authenticates with a secret, or with a certificate by an assertion (RFC 7523
// section 2.2) in the form that Entra demands.
type ClientCredentials struct {
	ClientID   string
	Scope      string
	SecretFile string // "": the client has a certificate
	CertFile   string // PEM
	KeyFile    string // PEM, of RSA
}

// MicrosoftScope is the scope of applications for IMAP, POP and SMTP at Exchange Online.
const MicrosoftScope = "https://outlook.office365.com/.default"

// MicrosoftTokenURL returns the token endpoint of a tenant of Entra.
func MicrosoftTokenURL(tenant string) string {
	return "https://login.microsoftonline.com/" + url.PathEscape(tenant) + "/oauth2/v2.0/token"
}

// The values for Google's mail servers.
const (
	GoogleScope    = "https://mail.google.com/"
	GoogleTokenURL = "https://oauth2.googleapis.com/token"
)

func (g *ClientCredentials) perMailbox() bool { return false }

func (g *ClientCredentials) signs() bool { return g.SecretFile == "" }

func (g *ClientCredentials) fill(a advisory) string {
	if a.code == 7000215 && g.SecretFile != "" {
		if secret, err := ReadSecret(g.SecretFile); err == nil && guid.MatchString(secret) {
			return secretIDAdvice
		}
	}
	return strings.ReplaceAll(a.advice, "CLIENT_ID", g.ClientID)
}

func (g *ClientCredentials) form(tokenURL, _ string, now time.Time) (url.Values, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {g.ClientID}, "scope": {g.Scope}}
	if g.SecretFile != "" {
		secret, err := ReadSecret(g.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("client_secret_file: %w", err)
		}
		form.Set("client_secret", secret)
		return form, nil
	}
	pair, err := ReadCertificate(g.CertFile, g.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	key, _ := pair.PrivateKey.(*rsa.PrivateKey) // ReadCertificate takes no other
	thumbprint := sha256.Sum256(pair.Certificate[0])
	assertion, err := sign(true, key, map[string]string{"x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:])}, claims{
		Issuer: g.ClientID, Subject: g.ClientID, Audience: tokenURL, ID: rand.Text(),
		NotBefore: now.Add(-clockSkew).Unix(), IssuedAt: now.Add(-clockSkew).Unix(), Expires: now.Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		return nil, err
	}
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", assertion)
	return form, nil
}

// clockSkew is how much this machine's clock may be ahead.
const clockSkew = time.Minute

// A ServiceAccount is Google's grant: the token is that of a user of a Workspace, who is
// the subject of the assertion.
type ServiceAccount struct {
	KeyFile string // JSON, as Google's console writes it
	Scope   string
}

func (g *ServiceAccount) perMailbox() bool { return true }

func (g *ServiceAccount) signs() bool { return true }

func (g *ServiceAccount) fill(a advisory) string { return a.advice }

func (g *ServiceAccount) form(tokenURL, subject string, now time.Time) (url.Values, error) {
	email, id, key, err := ReadServiceAccount(g.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("key_file: %w", err)
	}
	issued := now.Add(-clockSkew)
	assertion, err := sign(false, key, map[string]string{"kid": id}, claims{
		Issuer: email, Subject: subject, Scope: g.Scope, Audience: tokenURL, IssuedAt: issued.Unix(), Expires: issued.Add(time.Hour).Unix(),
	})
	if err != nil {
		return nil, err
	}
	return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}, nil
}

// claims are those of an assertion: RFC 7519 section 4.1.
type claims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"`
	Audience  string `json:"aud"`
	Scope     string `json:"scope,omitempty"`
	ID        string `json:"jti,omitempty"`
	NotBefore int64  `json:"nbf,omitempty"`
	IssuedAt  int64  `json:"iat"`
	Expires   int64  `json:"exp"`
}

// sign returns a signed JWT: RFC 7515 section 7.1, with PS256 (pss) or RS256 of RFC 7518.
func sign(pss bool, key *rsa.PrivateKey, header map[string]string, c claims) (string, error) {
	header["typ"], header["alg"] = "JWT", "RS256"
	var options crypto.SignerOpts = crypto.SHA256
	if pss {
		header["alg"], options = "PS256", &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	head, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	digest := sha256.Sum256([]byte(text))
	signature, err := key.Sign(rand.Reader, digest[:], options)
	if err != nil {
		return "", fmt.Errorf("sign an assertion: %w", err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

const mostFile = 1 << 20 // octets of a file

// ReadSecret returns the secret in the file at path, without white space around it.
func ReadSecret(path string) (string, error) {
	octets, err := readFile(path)
	if err != nil {
		return "", err
	}
	secret := bytes.TrimSpace(octets)
	switch {
	case len(secret) == 0:
		return "", fmt.Errorf("%s is empty", path)
	case !utf8.Valid(secret) || bytes.ContainsAny(secret, "\r\n"):
		return "", fmt.Errorf("%s has more than one line, or octets that are no text", path)
	}
	return string(secret), nil
}

// ReadCertificate returns a certificate and its key, which is one of RSA. Errors show
// nothing of the files.
func ReadCertificate(cert, key string) (tls.Certificate, error) {
	certPEM, err := readFile(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyPEM, err := readFile(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	defer clear(keyPEM)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return pair, fmt.Errorf("%s and %s are no pair: %w", cert, key, err)
	}
	if _, ok := pair.PrivateKey.(*rsa.PrivateKey); !ok {
		return pair, fmt.Errorf("%s is no key of RSA, which the assertion's algorithm PS256 needs", key)
	}
	return pair, nil
}

// ReadServiceAccount returns the address, the key id and the key in a file of Google's
// console.
func ReadServiceAccount(path string) (email, id string, key *rsa.PrivateKey, err error) {
	octets, err := readFile(path)
	if err != nil {
		return "", "", nil, err
	}
	defer clear(octets)
	var file struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
		ID    string `json:"private_key_id"`
		Key   string `json:"private_key"`
	}
	if json.Unmarshal(octets, &file) != nil || file.Type != "service_account" || file.Email == "" {
		return "", "", nil, fmt.Errorf(`%s is no key of a service account: JSON with "type": "service_account"`, path)
	}
	block, _ := pem.Decode([]byte(file.Key))
	if block == nil {
		return "", "", nil, fmt.Errorf("%s has no private_key in PEM form", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", "", nil, fmt.Errorf("%s has a private_key that cannot be read", path)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return "", "", nil, fmt.Errorf("%s has a private_key that is none of RSA", path)
	}
	return file.Email, file.ID, key, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	octets, err := io.ReadAll(io.LimitReader(f, mostFile+1))
	if err == nil && len(octets) > mostFile {
		err = errors.New("the file is too large")
	}
	return octets, err
}
