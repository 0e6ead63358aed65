package wire

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
)

// The SASL mechanisms that Postern knows, by their registered names. LOGIN and
// XOAUTH2 are not registered.
const (
	MechanismPlain       = "PLAIN"       // RFC 4616
	MechanismLogin       = "LOGIN"       // draft-murchison-sasl-login: carries the same as PLAIN
	MechanismXOAuth2     = "XOAUTH2"     // Google's, with a bearer token
	MechanismOAuthBearer = "OAUTHBEARER" // RFC 7628
)

// MaxPassword is the length, in octets, of the longest bearer token that may be a
// password.
const MaxPassword = 256

// IsToken reports whether a credential is a bearer token that cannot be a password.
// Some servers check a bearer token like a password, if it is short enough.
func IsToken(mechanism string, credential []byte) bool {
	bearer := mechanism == MechanismXOAuth2 || mechanism == MechanismOAuthBearer
	return bearer && len(credential) > MaxPassword
}

// The errors of SASL messages.
var (
	ErrBase64 = errors.New("invalid base64")
	ErrSASL   = errors.New("malformed SASL message")
)

// The challenges of SASL LOGIN (draft-murchison-sasl-login), in base64: clients
// compare them octet by octet.
const (
	LoginUsername = "VXNlcm5hbWU6" // "Username:"
	LoginPassword = "UGFzc3dvcmQ6" // "Password:"
)

// DecodeSASL decodes the base64 of a SASL response into memory of its own,
// which is the caller's to wipe. RFC 4648 section 3: no line ends, no missing
// padding.
func DecodeSASL(text []byte) ([]byte, error) {
	// The standard library's decoder skips line ends.
	if bytes.ContainsAny(text, "\r\n") {
		return nil, ErrBase64
	}
	msg := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(msg, text)
	if err != nil {
		clear(msg)
		return nil, ErrBase64
	}
	return msg[:n], nil
}

// DecodeInitial decodes an initial response, in which "=" stands for an empty
// one: RFC 4959 section 3, RFC 4954 section 4, RFC 5034 section 4.
func DecodeInitial(text []byte) ([]byte, error) {
	if string(text) == "=" {
		return []byte{}, nil
	}
	return DecodeSASL(text)
}

// ParsePlain splits the message of SASL PLAIN, RFC 4616 section 2, into parts
// of msg.
func ParsePlain(msg []byte) (authzid, authcid, passwd []byte, err error) {
	authzid, msg, ok := bytes.Cut(msg, []byte{0})
	authcid, passwd, more := bytes.Cut(msg, []byte{0})
	if !ok || !more || bytes.IndexByte(passwd, 0) >= 0 {
		return nil, nil, nil, ErrSASL
	}
	return authzid, authcid, passwd, nil
}

// AppendPlain appends the message of SASL PLAIN in base64. Neither user nor
// password may contain NUL. authzid is left empty: it follows from the user.
func AppendPlain(dst []byte, user string, password []byte) []byte {
	msg := make([]byte, 0, len(user)+len(password)+2)
	msg = append(msg, 0)
	msg = append(msg, user...)
	msg = append(msg, 0)
	msg = append(msg, password...)
	defer clear(msg)
	return AppendSASL(dst, msg)
}

// ParseXOAUTH2 returns parts of msg, a message of SASL XOAUTH2 (Google, "OAuth
// 2.0 Mechanism"): user=<user>^Aauth=Bearer <token>^A^A.
func ParseXOAUTH2(msg []byte) (user, token []byte, err error) {
	values, err := pairValues(msg, "user", "auth")
	if err != nil {
		return nil, nil, err
	}
	token, err = parseBearer(values[1])
	return values[0], token, err
}

// ParseOAuthBearer returns parts of msg, a message of SASL OAUTHBEARER, RFC
// 7628 section 3.1: n,a=<user>,^Aauth=Bearer <token>^A^A. It unescapes the user
// in place. RFC 7628 lets a server insist on one, and this is such a server.
// Other pairs, as host and port, are skipped: what the client calls the server
// is not what a server behind another one is called.
func ParseOAuthBearer(msg []byte) (user, token []byte, err error) {
	header, pairs, _ := bytes.Cut(msg, kvsep)
	values, err := pairValues(pairs, "auth")
	if err != nil {
		return nil, nil, err
	}
	if token, err = parseBearer(values[0]); err != nil {
		return nil, nil, err
	}
	// RFC 5801 section 4. p= means channel binding, which bearer tokens do not have.
	name, ok := bytes.CutPrefix(header, []byte("n,a="))
	if !ok {
		name, ok = bytes.CutPrefix(header, []byte("y,a="))
	}
	name, closed := bytes.CutSuffix(name, []byte(","))
	if !ok || !closed {
		return nil, nil, ErrSASL
	}
	user, err = unescapeName(name)
	return user, token, err
}

// AppendXOAUTH2 appends the message of SASL XOAUTH2 in base64. Neither user nor
// token may contain ^A.
func AppendXOAUTH2(dst []byte, user string, token []byte) []byte {
	return appendBearer(dst, "user="+user, token)
}

// AppendOAuthBearer appends the message of SASL OAUTHBEARER in base64. The
// token may not contain ^A.
func AppendOAuthBearer(dst []byte, user string, token []byte) []byte {
	return appendBearer(dst, "n,a="+strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user)+",", token)
}

func appendBearer(dst []byte, head string, token []byte) []byte {
	const auth, end = "\x01auth=Bearer ", "\x01\x01"
	msg := make([]byte, 0, len(head)+len(auth)+len(token)+len(end))
	msg = append(append(append(append(msg, head...), auth...), token...), end...)
	defer clear(msg)
	return AppendSASL(dst, msg)
}

var kvsep = []byte{1} // RFC 7628 section 3.1

// pairValues returns the values of keys, each of which must occur once. Other
// pairs are skipped: RFC 7628 section 3.1.
func pairValues(pairs []byte, keys ...string) ([][]byte, error) {
	values := make([][]byte, len(keys))
	pairs, ok := bytes.CutSuffix(pairs, []byte{1, 1})
	if !ok {
		return nil, ErrSASL
	}
	for pair := range bytes.SplitSeq(pairs, kvsep) {
		key, value, ok := bytes.Cut(pair, []byte("="))
		if !ok {
			return nil, ErrSASL
		}
		i := slices.Index(keys, string(key))
		if i < 0 {
			continue
		}
		if values[i] != nil { // ambiguous
			return nil, ErrSASL
		}
		values[i] = value
	}
	if slices.ContainsFunc(values, func(v []byte) bool { return v == nil }) {
		return nil, ErrSASL
	}
	return values, nil
}

// parseBearer returns the token of an Authorization header: RFC 6750 section 2.1.
// The scheme is case-insensitive: RFC 9110 section 11.1.
func parseBearer(value []byte) ([]byte, error) {
	scheme, token, _ := bytes.Cut(value, []byte(" "))
	visible := !bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
	if !bytes.EqualFold(scheme, []byte("Bearer")) || len(token) == 0 || !visible {
		return nil, ErrSASL
	}
	return token, nil
}

// unescapeName decodes a saslname in place: RFC 5801 section 4.
func unescapeName(name []byte) ([]byte, error) {
	text := name[:0]
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c != '=':
		case bytes.HasPrefix(name[i:], []byte("=2C")):
			c, i = ',', i+2
		case bytes.HasPrefix(name[i:], []byte("=3D")):
			c, i = '=', i+2
		default:
			return nil, ErrSASL
		}
		text = append(text, c)
	}
	return text, nil
}

// AppendSASL appends msg in base64.
func AppendSASL(dst, msg []byte) []byte { return base64.StdEncoding.AppendEncode(dst, msg) }
