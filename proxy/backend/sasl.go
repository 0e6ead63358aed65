package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// The mechanisms that Postern speaks with a server.
const (
	mechPlain       = "PLAIN"
	mechLogin       = "LOGIN" // of submission alone: it carries what PLAIN does
	mechXOAuth2     = "XOAUTH2"
	mechOAuthBearer = "OAUTHBEARER"
)

// carriers are the mechanisms that can carry the Secret of another one, the
// best first. Both of OAuth's carry a bearer token.
var carriers = map[string][]string{
	"":              {mechPlain},
	mechPlain:       {mechPlain},
	mechXOAuth2:     {mechXOAuth2, mechOAuthBearer},
	mechOAuthBearer: {mechOAuthBearer, mechXOAuth2},
}

// mechanism returns the one to log l in with, or "" if none is offered.
func mechanism(l *proxy.Login, offered func(string) bool) string {
	for _, name := range carriers[l.Mechanism] {
		if offered(name) {
			return name
		}
	}
	return ""
}

// appendMessage appends the message of a mechanism in base64.
func appendMessage(dst []byte, mechanism string, l *proxy.Login) []byte {
	secret := l.Secret.Reveal()
	switch mechanism {
	case mechXOAuth2:
		return wire.AppendXOAUTH2(dst, l.Account, secret)
	case mechOAuthBearer:
		return wire.AppendOAuthBearer(dst, l.Account, secret)
	}
	return wire.AppendPlain(dst, l.Account, secret)
}

// messageLength is enough for appendMessage to allocate nothing of which a
// copy would stay behind.
func messageLength(l *proxy.Login) int {
	const around = 64                                               // of user and secret
	return (3*len(l.Account)+len(l.Secret.Reveal())+around)*4/3 + 4 // each octet of the user may be escaped
}

// A failure is what a server says about a token, before it says no: RFC 7628
// section 3.2.2.
type failure struct {
	answer []byte // what it wants to hear; nil: the mechanism has no such thing
	json   []byte // what it has said; nil: nothing
}

// failureOf returns the failure of a mechanism, before it has come.
func failureOf(mechanism string) failure {
	switch mechanism {
	case mechXOAuth2:
		return failure{answer: []byte("\r\n")}
	case mechOAuthBearer:
		return failure{answer: []byte("AQ==\r\n")} // RFC 7628 section 3.2.3
	}
	return failure{}
}

// expected reports whether the server may ask once more.
func (f *failure) expected() bool { return f.answer != nil && f.json == nil }

// unknownFailure is what the client is told if the server's reason is not fit
// to be passed on.
const unknownFailure = `{"status":"invalid_token"}`

// note keeps what the server has said, in base64. Only what RFC 7628 knows is
// passed on, in words of one line.
func (f *failure) note(text string) {
	f.json = []byte(unknownFailure)
	msg, err := wire.DecodeSASL([]byte(text))
	if err != nil {
		return
	}
	var known struct {
		Status  string `json:"status"`
		Schemes string `json:"schemes,omitempty"` // of XOAUTH2
		Scope   string `json:"scope,omitempty"`
		OpenID  string `json:"openid-configuration,omitempty"`
	}
	if json.Unmarshal(bytes.TrimSpace(msg), &known) != nil {
		return
	}
	if known.Status == "" || slices.ContainsFunc([]string{known.Status, known.Schemes, known.Scope, known.OpenID}, unspeakable) {
		return
	}
	if msg, err = json.Marshal(known); err == nil {
		f.json = msg
	}
}

// challenged adds what the server has said to a verdict against the token.
func challenged(verdict error, f failure) error {
	if r, ok := errors.AsType[*proxy.Refusal](verdict); ok {
		r.Challenge = f.json
	}
	return verdict
}

// unspeakable reports whether s is no short printable ASCII.
func unspeakable(s string) bool {
	const most = 256
	return len(s) > most || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
