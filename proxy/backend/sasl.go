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

// equivalentMechanisms are the mechanisms that can carry the Secret of another one, the best
// first. XOAUTH2 and OAUTHBEARER carry a bearer token.
var equivalentMechanisms = map[string][]string{
	"":                        {wire.MechanismPlain},
	wire.MechanismPlain:       {wire.MechanismPlain},
	wire.MechanismXOAuth2:     {wire.MechanismXOAuth2, wire.MechanismOAuthBearer},
	wire.MechanismOAuthBearer: {wire.MechanismOAuthBearer, wire.MechanismXOAuth2},
}

// chooseMechanism returns the mechanism to log l in with, or "" if none is
// offered.
func chooseMechanism(l *proxy.Login, offered func(string) bool) string {
	for _, name := range equivalentMechanisms[l.Mechanism] {
		if offered(name) {
			return name
		}
	}
	return ""
}

// appendMessage appends the mechanism's message in base64.
func appendMessage(dst []byte, mechanism string, l *proxy.Login) []byte {
	secret := l.Secret.Reveal()
	switch mechanism {
	case wire.MechanismXOAuth2:
		return wire.AppendXOAUTH2(dst, l.Account, secret)
	case wire.MechanismOAuthBearer:
		return wire.AppendOAuthBearer(dst, l.Account, secret)
	}
	return wire.AppendPlain(dst, l.Account, secret)
}

// messageLength is a capacity at which appendMessage does not reallocate, which
// would leave a copy of the secret behind.
func messageLength(l *proxy.Login) int {
	const around = 64                                               // of user and secret
	return (3*len(l.Account)+len(l.Secret.Reveal())+around)*4/3 + 4 // each octet of the user may be escaped
}

// A failure is a server's error message about a token, sent before it refuses the
// login: RFC 7628 section 3.2.2.
type failure struct {
	answer []byte // what the server expects next; nil: the mechanism has no failure message
	json   []byte // the message; nil: none came
}

// newFailure returns the failure of a mechanism before a message has come.
func newFailure(mechanism string) failure {
	switch mechanism {
	case wire.MechanismXOAuth2:
		return failure{answer: []byte("\r\n")}
	case wire.MechanismOAuthBearer:
		return failure{answer: []byte("AQ==\r\n")} // RFC 7628 section 3.2.3
	}
	return failure{}
}

// expected reports whether the server may send a failure message.
func (f *failure) expected() bool { return f.answer != nil && f.json == nil }

// unknownFailure is the message for the client if the server's cannot be passed
// on.
const unknownFailure = `{"status":"invalid_token"}`

// record keeps the server's message, given in base64. Only the fields of RFC 7628
// are passed on, in printable ASCII.
func (f *failure) record(text string) {
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
	if known.Status == "" || slices.ContainsFunc([]string{known.Status, known.Schemes, known.Scope, known.OpenID}, notShortPrintable) {
		return
	}
	if msg, err = json.Marshal(known); err == nil {
		f.json = msg
	}
}

// withChallenge adds the failure message to a verdict against the token.
func withChallenge(verdict error, f failure) error {
	if r, ok := errors.AsType[*proxy.Refusal](verdict); ok {
		r.Challenge = f.json
	}
	return verdict
}

// notShortPrintable reports whether s is anything but short printable ASCII.
func notShortPrintable(s string) bool {
	const most = 256
	return len(s) > most || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
