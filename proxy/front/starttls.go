package front

import (
	"context"
	"errors"
	"fmt"
	"io"

	"postern/proxy"
	"postern/proxy/wire"
)

var (
	errInClear = errors.New("client sent credentials without TLS")
)

// notYet is for a client that begins with TLS on a port that does not.
const notYet = "This port begins without TLS: choose STARTTLS in the settings of your mail program"

// inClear reports whether TLS has not begun.
func (d *dialogue) inClear() bool { return d.c.Client.TLS == nil }

// startTLS says that it agrees and begins TLS. Then all that the client said
// before is forgotten, for it may not have been the client: RFC 3207 section
// 4.2. What counts against it is kept, but for logins that could not succeed.
func (d *dialogue) startTLS(ctx context.Context, agreed string) error {
	if err := d.say(agreed); err != nil {
		return err
	}
	if err := d.c.StartTLS(ctx); err != nil {
		_ = d.c.CloseWrite() // no word in the clear to somebody who expects TLS
		return fmt.Errorf("TLS handshake: %w", err)
	}
	d.hello = proxy.Hello{}
	d.count.refused = 0
	return nil
}

// readLine reads a line as Conn.ReadLine does. Of the first line in the clear
// it looks at the first octet alone: whoever begins with TLS sends no line.
func (d *dialogue) readLine(limit int) ([]byte, error) {
	clear(d.first)
	d.first = nil
	if d.heard || !d.inClear() {
		return d.c.ReadLonger(limit, d.longer)
	}
	d.heard = true
	const handshake = 0x16 // RFC 8446 section 5.1; no command begins so
	octet := make([]byte, 1)
	if _, err := io.ReadFull(d.c, octet); err != nil {
		return nil, err
	}
	switch octet[0] {
	case handshake:
		return nil, proxy.ErrEarlyTLS
	case '\n':
		return octet, nil
	}
	rest, err := d.c.ReadLine(limit - 1)
	if err != nil {
		return nil, err
	}
	d.first = append(octet, rest...)
	return d.first, nil
}

// inTheClear makes the refusal of credentials that came without TLS, and says
// whose they were: the password is out, and the operator may want to write to
// its owner.
func inTheClear(via string, user []byte) (*proxy.Login, error) {
	login := &proxy.Login{Via: via}
	if len(user) <= maxUser && plainText(user) {
		login.User = string(user)
	}
	return login, proxy.NewRefusal(proxy.Plaintext, errInClear)
}

// saslInTheClear is inTheClear for a SASL mechanism. The password is not looked at.
func saslInTheClear(mechanism string, initial []byte) (*proxy.Login, error) {
	msg, _ := wire.DecodeInitial(initial)
	defer clear(msg)
	var user []byte
	switch mechanism {
	case wire.MechanismPlain:
		_, user, _, _ = wire.ParsePlain(msg)
	case wire.MechanismLogin:
		user = msg
	case wire.MechanismXOAuth2:
		user, _, _ = wire.ParseXOAUTH2(msg)
	case wire.MechanismOAuthBearer:
		user, _, _ = wire.ParseOAuthBearer(msg)
	}
	return inTheClear(via(mechanism), user)
}
