package proxytest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// An OAuthClient is an application that an OAuth server knows.
type OAuthClient struct {
	Secret string         // "": the client has a Key
	Key    *rsa.PublicKey // verifies the client's assertions: RFC 7523 section 2.2
	X5T    string         // the parameter x5t#S256 that they must have; "": any
}

// An OAuth is an authorization server with the grants that need no user: client
// credentials (RFC 6749 section 4.4) and JWT bearer (RFC 7523 section 2.1). It is also
// the introspection endpoint (RFC 7662) of the mail servers that take its tokens.
type OAuth struct {
	TokenURL string
	Lifetime time.Duration // of tokens; it must not change while the server is in use

	server   *httptest.Server
	password string // of the mail servers at the introspection endpoint
	clients  map[string]OAuthClient
	silent   bool

	mu       sync.Mutex
	tokens   map[string]oauthToken
	jtis     map[string]bool
	requests []string // to the token endpoint: the subject or the client
	fault    http.HandlerFunc
}

type oauthToken struct {
	user string // the only user whom it lets in; "": any
	ends time.Time
}

// StartOAuth starts an authorization server that lives as long as the test. Clients are
// its applications by id.
func StartOAuth(t testing.TB, clients map[string]OAuthClient) *OAuth {
	t.Helper()
	o := &OAuth{Lifetime: time.Hour, password: rand.Text(), clients: clients, tokens: map[string]oauthToken{}, jtis: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", o.serveToken)
	mux.HandleFunc("POST /introspect", o.introspect)
	o.server = httptest.NewServer(mux)
	o.TokenURL = o.server.URL + "/token"
	t.Cleanup(o.server.Close)
	return o
}

// Issue returns a new token that lets user in; "": any user.
func (o *OAuth) Issue(user string) string {
	// Those of Entra have such a length: no line of SMTP has room for one.
	token := rand.Text() + strings.Repeat("x", 1400)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tokens[token] = oauthToken{user: user, ends: time.Now().Add(o.Lifetime)}
	return token
}

// Revoke makes all tokens invalid that were issued so far.
func (o *OAuth) Revoke() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.tokens)
}

// Fail lets h answer requests for tokens; nil: the server itself does.
func (o *OAuth) Fail(h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault = h
}

// BreakIntrospection lets the introspection endpoint answer with status 500.
func (o *OAuth) BreakIntrospection(broken bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.silent = broken
}

// Requests returns for each request for a token the subject of the assertion, or the id
// of the client.
func (o *OAuth) Requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.requests)
}

func (o *OAuth) serveToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
	if err := r.ParseForm(); err != nil {
		oauthError(w, "invalid_request", err)
		return
	}
	user, name, err := o.grant(r)
	o.mu.Lock()
	o.requests = append(o.requests, name)
	fault := o.fault
	o.mu.Unlock()
	if fault != nil {
		fault(w, r)
		return
	}
	if err != nil {
		oauthError(w, "invalid_client", err)
		return
	}
	answerJSON(w, map[string]any{"token_type": "Bearer", "expires_in": int(o.Lifetime.Seconds()), "access_token": o.Issue(user)})
}

// grant checks a request. It returns the user whom the token lets in ("": any), and who
// asks.
func (o *OAuth) grant(r *http.Request) (user, name string, err error) {
	id := r.PostForm.Get("client_id")
	switch r.PostForm.Get("grant_type") {
	case "client_credentials":
		client, known := o.clients[id]
		assertion := r.PostForm.Get("client_assertion")
		switch {
		case !known:
			return "", id, errors.New("unknown client")
		case r.PostForm.Get("scope") == "":
			return "", id, errors.New("no scope")
		case assertion == "" && (client.Secret == "" || r.PostForm.Get("client_secret") != client.Secret):
			return "", id, errors.New("AADSTS7000215: invalid client secret")
		case assertion == "":
			return "", id, nil
		case r.PostForm.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer":
			return "", id, errors.New("client_assertion_type")
		}
		claims, err := o.verifyJWT(assertion, client, "PS256", 10*time.Minute)
		if err == nil && (claims.Issuer != id || claims.Subject != id || claims.ID == "") {
			err = errors.New("iss, sub or jti")
		}
		return "", id, err
	case "urn:ietf:params:oauth:grant-type:jwt-bearer":
		assertion := r.PostForm.Get("assertion")
		claims, err := peekJWT(assertion)
		if err != nil {
			return "", "", err
		}
		_, err = o.verifyJWT(assertion, o.clients[claims.Issuer], "RS256", time.Hour)
		if err == nil && (claims.Subject == "" || claims.Scope == "") {
			err = errors.New("sub or scope")
		}
		return claims.Subject, claims.Subject, err
	}
	return "", id, errors.New("unsupported_grant_type")
}

type oauthClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	Scope    string `json:"scope"`
	ID       string `json:"jti"`
	Issued   int64  `json:"iat"`
	Before   int64  `json:"nbf"`
	Expires  int64  `json:"exp"`
}

func peekJWT(assertion string) (claims oauthClaims, err error) {
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		return claims, errors.New("no JWT")
	}
	octets, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims, err
	}
	return claims, json.Unmarshal(octets, &claims)
}

// verifyJWT checks everything that Entra and Google check of an assertion.
func (o *OAuth) verifyJWT(assertion string, client OAuthClient, algorithm string, longest time.Duration) (oauthClaims, error) {
	claims, err := peekJWT(assertion)
	if err != nil {
		return claims, err
	}
	parts := strings.Split(assertion, ".")
	var header struct {
		Algorithm string `json:"alg"`
		X5T       string `json:"x5t#S256"`
	}
	octets, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err == nil {
		err = json.Unmarshal(octets, &header)
	}
	if err != nil {
		return claims, err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return claims, err
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	switch {
	case client.Key == nil:
		return claims, errors.New("unknown client")
	case header.Algorithm != algorithm:
		return claims, fmt.Errorf("alg is %q", header.Algorithm)
	case client.X5T != "" && header.X5T != client.X5T:
		return claims, fmt.Errorf("x5t#S256 is %q", header.X5T)
	case algorithm == "PS256":
		err = rsa.VerifyPSS(client.Key, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	default:
		err = rsa.VerifyPKCS1v15(client.Key, crypto.SHA256, digest[:], signature)
	}
	if err != nil {
		return claims, err
	}
	now, begins := time.Now().Unix(), max(claims.Before, claims.Issued)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case claims.Audience != o.TokenURL:
		return claims, fmt.Errorf("aud is %q", claims.Audience)
	case begins > now || claims.Expires <= now:
		return claims, errors.New("nbf, iat or exp")
	case claims.Expires-begins > int64(longest/time.Second):
		return claims, errors.New("exp is too late")
	case claims.ID != "" && o.jtis[claims.ID]:
		return claims, errors.New("jti is not new")
	}
	o.jtis[claims.ID] = true
	return claims, nil
}

// introspect answers the mail servers: RFC 7662 section 2.2.
func (o *OAuth) introspect(w http.ResponseWriter, r *http.Request) {
	_, password, _ := r.BasicAuth()
	o.mu.Lock()
	token, ok := o.tokens[r.PostFormValue("token")]
	broken := o.silent
	o.mu.Unlock()
	switch {
	case broken:
		http.Error(w, "broken", http.StatusInternalServerError)
	case password != o.password:
		http.Error(w, "who are you?", http.StatusUnauthorized)
	case !ok || time.Now().After(token.ends):
		answerJSON(w, map[string]any{"active": false})
	default:
		answerJSON(w, map[string]any{"active": true, "username": token.user, "any": "any"})
	}
}

// passdb returns the configuration of Dovecot's passdb for tokens, and the content of
// the file at path, which it names. anybody takes tokens that let any user in.
func (o *OAuth) passdb(path string, anybody bool) (passdb, file string) {
	attribute, format := "username", "%u"
	if anybody {
		attribute, format = "any", "any" // both sides of the comparison
	}
	passdb = "auth_mechanisms = xoauth2 oauthbearer\nauth_failure_delay = 0\n" +
		"passdb {\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = " + path + "\n}\n"
	file = "introspection_mode = post\nintrospection_url = http://dovecot:" + o.password + "@" + strings.TrimPrefix(o.server.URL, "http://") + "/introspect\n" +
		"username_attribute = " + attribute + "\nusername_format = " + format + "\nactive_attribute = active\nactive_value = true\ntimeout_msecs = 3000\n"
	return passdb, file
}

func oauthError(w http.ResponseWriter, name string, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": name, "error_description": err.Error()})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
