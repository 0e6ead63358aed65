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

// earlyTLSText is for a client that begins with TLS on a port that does not.
const earlyTLSText = "This port begins without TLS: choose STARTTLS in the settings of your mail program"

// inClear reports whether the connection has no TLS.
func (d *dialogue) inClear() bool { return d.c.Client.TLS == nil }

// startTLS sends agreed and begins TLS. Everything that was sent before is
// forgotten, because an attacker may have sent it: RFC 3207 section 4.2. The
// counts stay, but for that of refusals: these logins could not succeed.
func (d *dialogue) startTLS(ctx context.Context, agreed string) error {
	if err := d.reply(agreed); err != nil {
		return err
	}
	if err := d.c.StartTLS(ctx); err != nil {
		_ = d.c.CloseWrite() // no plain text to a client that expects TLS
		return fmt.Errorf("TLS handshake: %w", err)
	}
	d.hello = proxy.Hello{}
	d.count.refused = 0
	return nil
}

// readLine reads a line as Conn.ReadLine does. Before TLS, it reads the first
// octet of the first line alone: a client that begins with TLS sends no line.
func (d *dialogue) readLine(limit int) ([]byte, error) {
	clear(d.firstLine)
	d.firstLine = nil
	if d.lineRead || !d.inClear() {
		return d.c.ReadLonger(limit, d.extendLimit)
	}
	d.lineRead = true
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
	d.firstLine = append(octet, rest...)
	if d.c.BeginsProxyHeader(d.firstLine) {
		return nil, proxy.ErrUnexpectedProxyHeader
	}
	return d.firstLine, nil
}

// plaintextRefusal refuses credentials that came without TLS. The Login names
// their user: the password is exposed, and the operator may want to inform its
// owner.
func plaintextRefusal(via string, user []byte) (*proxy.Login, error) {
	login := &proxy.Login{Via: via}
	if len(user) <= maxUser && isText(user) {
		login.User = string(user)
	}
	return login, proxy.NewRefusal(proxy.Plaintext, errInClear)
}

// plaintextSASLRefusal is plaintextRefusal for a SASL mechanism. It does not look
// at the password.
func plaintextSASLRefusal(mechanism string, initial []byte) (*proxy.Login, error) {
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
	return plaintextRefusal(viaOf(mechanism), user)
}
