package wire

import (
	"bytes"
	"encoding/base64"
	"errors"
)

// What can be wrong with a SASL message.
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
	// The decoder of the standard library skips line ends.
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

// AppendSASL appends msg in base64.
func AppendSASL(dst, msg []byte) []byte { return base64.StdEncoding.AppendEncode(dst, msg) }
