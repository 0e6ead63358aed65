package front

import (
	"bytes"
	"errors"
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

// An exchange is one run of a SASL mechanism.
type exchange struct {
	d       *dialogue
	prompt  string // before each challenge
	initial []byte // the initial response while it is not used; nil: none
}

// mechanism returns how a mechanism is run, or nil.
func mechanism(name string) func(*exchange) (*proxy.Login, error) {
	switch name {
	case "PLAIN":
		return (*exchange).plain
	case "LOGIN":
		return (*exchange).login
	}
	return nil
}

// exchange runs the mechanism called name. initial may be nil. An error is a
// *Refusal, errCancelled, errEarly, or one of reading or writing.
func (d *dialogue) exchange(name, prompt string, initial []byte) (*proxy.Login, error) {
	run := mechanism(name)
	if run == nil {
		return nil, proxy.Refuse(proxy.Unsupported, nil)
	}
	return run(&exchange{d, prompt, initial})
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
	if x.d.c.Buffered() > 0 {
		return nil, errEarly
	}
	if err := x.d.say(x.prompt + challenge); err != nil {
		return nil, err
	}
	line, err := x.d.c.ReadLine(maxResponse)
	if errors.Is(err, proxy.ErrLineTooLong) {
		return nil, proxy.Refuse(proxy.Malformed, err)
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
		return nil, proxy.Refuse(proxy.Malformed, err)
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
		return nil, proxy.Refuse(proxy.Malformed, err)
	}
	// To act as somebody else is a master user's right, which nobody has here.
	if len(authzid) > 0 && !bytes.Equal(authzid, user) {
		return nil, proxy.Refuse(proxy.Malformed, errAuthzid)
	}
	return x.d.credentials(proxy.ViaPlain, user, password)
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
	return x.d.credentials(proxy.ViaLogin, user, password)
}

// credentials makes a Login of what the client sent, or refuses what no server
// may ever see.
func (d *dialogue) credentials(via string, user, password []byte) (*proxy.Login, error) {
	switch {
	case len(user) == 0 || len(user) > maxUser || !plainText(user):
		return nil, proxy.Refuse(proxy.Malformed, errUser)
	// An empty password is no password to some directories, and lets in.
	case len(password) == 0 || len(password) > maxPassword || bytes.ContainsAny(password, "\x00\r\n"):
		return nil, proxy.Refuse(proxy.Malformed, errPassword)
	}
	return &proxy.Login{Mechanism: "PLAIN", Via: via, User: string(user), Secret: proxy.NewSecret(password), Hello: d.hello}, nil
}

// plainText reports whether b is UTF-8 without control characters.
func plainText(b []byte) bool { return utf8.Valid(b) && bytes.IndexFunc(b, unicode.IsControl) < 0 }
