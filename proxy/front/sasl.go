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

// Bounds of credentials, in octets.
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

// via returns the Via of a mechanism.
func via(mechanism string) string {
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
	initial []byte // the initial response while it is not used; nil: none
}

// exchange runs a mechanism. initial may be nil. An error is a *Refusal, and
// then the Login says whose, or errCancelled, errEarly, or one of reading or
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
		login = &proxy.Login{Via: via(mechanism)}
	}
	return login, err
}

// respond returns what the client says to a challenge in base64, decoded into
// memory that the caller wipes. The initial response answers the first one,
// which then is not sent.
func (x *exchange) respond(challenge string) ([]byte, error) {
	if x.initial != nil {
		text := x.initial
		x.initial = nil
		return decoded(wire.DecodeInitial(text))
	}
	// What comes before its challenge was not meant as an answer to it: RFC
	// 4954 section 4 has AUTH end a pipelined group.
	if x.c.Buffered() > 0 {
		return nil, errEarly
	}
	if err := x.say(x.prompt + challenge); err != nil {
		return nil, err
	}
	line, err := x.c.ReadLine(maxResponse)
	if errors.Is(err, proxy.ErrLineTooLong) {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	} else if err != nil {
		return nil, err
	}
	text, _ := wire.TrimLine(line)
	if string(text) == "*" {
		return nil, errCancelled
	}
	return decoded(wire.DecodeSASL(text))
}

func decoded(msg []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	}
	return msg, nil
}

func (x *exchange) plain() (*proxy.Login, error) {
	msg, err := x.respond("")
	defer clear(msg)
	if err != nil {
		return nil, err
	}
	authzid, user, password, err := wire.ParsePlain(msg)
	if err != nil {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	}
	// To act as somebody else is a master user's right, which nobody has here.
	if len(authzid) > 0 && !bytes.Equal(authzid, user) {
		return nil, proxy.NewRefusal(proxy.Malformed, errAuthzid)
	}
	return x.password(proxy.ViaPlain, user, password)
}

func (x *exchange) login() (*proxy.Login, error) {
	user, err := x.respond(wire.LoginUsername)
	if err != nil {
		return nil, err
	}
	password, err := x.respond(wire.LoginPassword)
	defer clear(password)
	if err != nil {
		return nil, err
	}
	return x.password(proxy.ViaLogin, user, password)
}

// bearer runs a mechanism of one message that carries a bearer token. Nothing
// may come behind it: it could be the answer to the challenge of a failure.
func (x *exchange) bearer(mechanism string, parse func(msg []byte) (user, token []byte, err error)) (*proxy.Login, error) {
	msg, err := x.respond("")
	defer clear(msg)
	if err != nil {
		return nil, err
	}
	if x.c.Buffered() > 0 {
		return nil, errEarly
	}
	x.oauth = true
	user, token, err := parse(msg)
	if err != nil {
		return nil, proxy.NewRefusal(proxy.Malformed, err)
	}
	return x.credentials(mechanism, via(mechanism), user, token)
}

// challenge lets the failure of an OAuth mechanism come to its end: RFC 7628
// section 3.2.3. The client has to answer, with what says nothing. There is no
// challenge for what is temporary: OAuth has no word for it, and clients throw
// their token away.
func (d *dialogue) challenge(r *proxy.Refusal) error {
	const most = 2 << 10 // octets of what a server may say to the client
	oauth, text := d.oauth, r.Challenge
	d.oauth = false
	if len(text) == 0 || len(text) > most {
		text = failure(r)
	}
	if !oauth || text == nil {
		return nil
	}
	if d.c.Buffered() > 0 {
		return errEarly
	}
	if err := d.say(string(wire.AppendSASL([]byte(d.prompt), text))); err != nil {
		return err
	}
	if err := d.c.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	_, err := d.c.ReadLine(maxResponse)
	return err
}

// failure is the challenge for r, RFC 7628 section 3.2.2, with an error of RFC
// 6750 section 3.1; nil: none.
func failure(r *proxy.Refusal) []byte {
	switch {
	case errors.Is(r.Err, wire.ErrBase64), errors.Is(r.Err, proxy.ErrLineTooLong): // no message at all
	case r.Reason == proxy.Wrong:
		return []byte(`{"status":"invalid_token"}`)
	case r.Reason == proxy.Malformed:
		return []byte(`{"status":"invalid_request"}`)
	}
	return nil
}

// password makes a Login of a user and a password.
func (d *dialogue) password(via string, user, password []byte) (*proxy.Login, error) {
	return d.credentials(wire.MechanismPlain, via, user, password)
}

// credentials makes a Login of what the client sent, or refuses what no server
// may ever see.
func (d *dialogue) credentials(mechanism, via string, user, secret []byte) (*proxy.Login, error) {
	login := &proxy.Login{Mechanism: mechanism, Via: via}
	if len(user) == 0 || len(user) > maxUser || !plainText(user) {
		return login, proxy.NewRefusal(proxy.Malformed, errUser)
	}
	login.User = string(user)
	most := maxPassword
	if mechanism != wire.MechanismPlain {
		most = maxToken
	}
	// An empty password is no password to some directories, and lets in.
	if len(secret) == 0 || len(secret) > most || bytes.ContainsAny(secret, "\x00\r\n") {
		return login, proxy.NewRefusal(proxy.Malformed, errPassword)
	}
	login.Secret, login.Hello, login.Offer.Mechanisms = proxy.NewSecret(secret), d.hello, d.offer.Mechanisms
	return login, nil
}

// plainText reports whether b is UTF-8 without control characters.
func plainText(b []byte) bool { return utf8.Valid(b) && bytes.IndexFunc(b, unicode.IsControl) < 0 }
