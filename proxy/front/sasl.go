package front

import (
	"bytes"
	"errors"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/proxy"
	"postern/proxy/wire"
)

// The limits of credentials, in octets.
const (
	maxUser     = 320 // 64 + @ + 255: RFC 5321 section 4.5.3.1
	maxPassword = 1024
)

var (
	errCancelled = errors.New("client cancelled the SASL exchange")

	errUser     = errors.New("user name cannot be one")
	errPassword = errors.New("password cannot be one")
	errAuthzid  = errors.New("authorization identity is not the user")
)

// viaOf returns the Login.Via of a mechanism.
func viaOf(mechanism string) string {
	switch mechanism {
	case wire.MechanismPlain:
		return proxy.ViaPlain
	case wire.MechanismLogin:
		return proxy.ViaLogin
	case wire.MechanismXOAuth2:
		return proxy.ViaXOAuth2
	case wire.MechanismOAuthBearer:
		return proxy.ViaOAuthBearer
	}
	return proxy.ViaOther
}

// An exchange is one run of a SASL mechanism.
type exchange struct {
	*dialogue
	initial []byte // the initial response until it is used; nil: none
}

// exchange runs a mechanism. initial may be nil. An error is a *Refusal, and then
// the Login names the user, or errCancelled, errEarly, or an error of reading or
// writing.
func (d *dialogue) exchange(mechanism string, initial []byte) (*proxy.Login, error) {
	if !slices.Contains(d.mechanisms(), mechanism) {
		return nil, proxy.NewRefusal(proxy.Unsupported, nil)
	}
	x := &exchange{d, initial}
	var login *proxy.Login
	var err error
	switch mechanism {
	case wire.MechanismPlain:
		login, err = x.plain()
	case wire.MechanismLogin:
		login, err = x.login()
	case wire.MechanismXOAuth2:
		login, err = x.bearer(wire.MechanismXOAuth2, wire.ParseXOAUTH2)
	case wire.MechanismOAuthBearer:
		login, err = x.bearer(wire.MechanismOAuthBearer, wire.ParseOAuthBearer)
	}
	if login == nil && proxy.ReasonOf(err) != 0 {
		login = &proxy.Login{Via: viaOf(mechanism)}
	}
	return login, err
}

// roundTrip sends a challenge, given in base64, and returns the client's decoded
// response, which the caller must clear. The initial response answers the first
// challenge, which is not sent then.
func (x *exchange) roundTrip(challenge string) ([]byte, error) {
	if x.initial != nil {
		text := x.initial
		x.initial = nil
		return decoded(wire.DecodeInitial(text))
	}
	// Octets sent before the challenge are no answer to it: RFC 4954 section 4 has
	// AUTH end a pipelined group.
	if x.c.Buffered() > 0 {
		return nil, errEarly
	}
	if err := x.protocol.challenge([]byte(challenge)); err != nil {
		return nil, err
	}
	text, err := x.protocol.response()
	if errors.Is(err, proxy.ErrLineTooLong) {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	} else if err != nil {
		return nil, err
	}
	defer clear(text)
	if string(text) == "*" {
		return nil, errCancelled
	}
	return decoded(wire.DecodeSASL(text))
}

// challenge sends a SASL challenge, given in base64.
func (d *dialogue) challenge(text []byte) error { return d.reply(d.prompt + string(text)) }

// response reads the client's response to a challenge, in base64 or "*". It is valid until
// the next read.
func (d *dialogue) response() ([]byte, error) {
	line, err := d.c.ReadLine(maxResponse)
	text, _ := wire.TrimLine(line)
	return text, err
}

func decoded(msg []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	}
	return msg, nil
}

func (x *exchange) plain() (*proxy.Login, error) {
	msg, err := x.roundTrip("")
	defer clear(msg)
	if err != nil {
		return nil, err
	}
	authzid, user, password, err := wire.ParsePlain(msg)
	if err != nil {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	}
	// Acting as another user needs a master user, and Postern has none.
	if len(authzid) > 0 && !bytes.Equal(authzid, user) {
		return nil, proxy.NewRefusal(proxy.Malformed, errAuthzid)
	}
	return x.passwordLogin(proxy.ViaPlain, user, password)
}

func (x *exchange) login() (*proxy.Login, error) {
	user, err := x.roundTrip(wire.LoginUsername)
	if err != nil {
		return nil, err
	}
	password, err := x.roundTrip(wire.LoginPassword)
	defer clear(password)
	if err != nil {
		return nil, err
	}
	return x.passwordLogin(proxy.ViaLogin, user, password)
}

// bearer runs a mechanism with one message that carries a bearer token. Nothing
// may follow the message: it could be the answer to the challenge of a failure.
func (x *exchange) bearer(mechanism string, parse func(msg []byte) (user, token []byte, err error)) (*proxy.Login, error) {
	msg, err := x.roundTrip("")
	defer clear(msg)
	if err != nil {
		return nil, err
	}
	if x.c.Buffered() > 0 {
		return nil, errEarly
	}
	x.oauthPending = true
	user, token, err := parse(msg)
	if err != nil {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	}
	return x.newLogin(mechanism, viaOf(mechanism), user, token)
}

// sendFailure sends the failure of an OAuth mechanism as a challenge and reads
// the client's empty response: RFC 7628 section 3.2.3. A temporary refusal gets
// no challenge: OAuth has no error for it, and clients would discard their token.
func (d *dialogue) sendFailure(r *proxy.Refusal) error {
	const most = 2 << 10 // octets of a server's challenge
	oauth, text := d.oauthPending, r.Challenge
	d.oauthPending = false
	if len(text) == 0 || len(text) > most {
		text = failureMessage(r)
	}
	if !oauth || text == nil {
		return nil
	}
	if d.c.Buffered() > 0 {
		return errEarly
	}
	if err := d.protocol.challenge(wire.AppendSASL(nil, text)); err != nil {
		return err
	}
	if err := d.c.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	_, err := d.protocol.response()
	return err
}

// failureMessage returns the challenge for r, RFC 7628 section 3.2.2, with an
// error of RFC 6750 section 3.1; nil: there is none.
func failureMessage(r *proxy.Refusal) []byte {
	switch {
	case errors.Is(r.Err, wire.ErrBase64), errors.Is(r.Err, proxy.ErrLineTooLong): // there was no message
	case r.Reason == proxy.Wrong:
		return []byte(`{"status":"invalid_token"}`)
	case r.Reason == proxy.Malformed:
		return []byte(`{"status":"invalid_request"}`)
	}
	return nil
}

// passwordLogin returns a Login with a password.
func (d *dialogue) passwordLogin(via string, user, password []byte) (*proxy.Login, error) {
	return d.newLogin(wire.MechanismPlain, via, user, password)
}

// newLogin returns a Login with what the client sent. It refuses what no server
// may see.
func (d *dialogue) newLogin(mechanism, via string, user, secret []byte) (*proxy.Login, error) {
	login := &proxy.Login{Mechanism: mechanism, Via: via}
	if len(user) == 0 || len(user) > maxUser || !isText(user) {
		return login, proxy.NewRefusal(proxy.Malformed, errUser)
	}
	login.User = string(user)
	most := maxPassword
	if mechanism != wire.MechanismPlain {
		most = maxToken
	}
	// Some directories take an empty password for an anonymous bind that succeeds.
	if len(secret) == 0 || len(secret) > most || bytes.ContainsAny(secret, "\x00\r\n") {
		return login, proxy.NewRefusal(proxy.Malformed, errPassword)
	}
	login.Secret, login.Hello, login.Offer.Mechanisms = proxy.NewSecret(secret), d.hello, d.offer.Mechanisms
	return login, nil
}

// isText reports whether b is UTF-8 without control characters.
func isText(b []byte) bool { return utf8.Valid(b) && bytes.IndexFunc(b, unicode.IsControl) < 0 }
