package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"regexp"

	"postern/proxy"
)

// Claims are what a token of Microsoft Entra says of the application that it is for.
// Nothing may depend on them: Entra calls its tokens opaque. They are for who sets the
// application up.
type Claims struct {
	Application string   // the client id
	ObjectID    string   // of the enterprise application: what Exchange calls the service principal
	Permissions []string // of the application that an administrator has consented to
}

var (
	guid       = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	permission = regexp.MustCompile(`^[A-Za-z.]{1,64}$`)
)

// ReadClaims returns the claims of a token, and false if the token is none of an
// application of Entra's. The signature is not checked.
func ReadClaims(token *proxy.Secret) (Claims, bool) {
	const most = 16 // permissions
	parts := bytes.Split(token.Reveal(), []byte("."))
	if len(parts) != 3 {
		return Claims{}, false
	}
	payload := make([]byte, base64.RawURLEncoding.DecodedLen(len(parts[1])))
	defer clear(payload)
	n, err := base64.RawURLEncoding.Decode(payload, parts[1])
	if err != nil {
		return Claims{}, false
	}
	var c struct {
		Application string   `json:"appid"`
		ObjectID    string   `json:"oid"`
		Roles       []string `json:"roles"`
	}
	if json.Unmarshal(payload[:n], &c) != nil || !guid.MatchString(c.Application) || !guid.MatchString(c.ObjectID) {
		return Claims{}, false
	}
	read := Claims{Application: c.Application, ObjectID: c.ObjectID}
	for _, role := range c.Roles {
		if permission.MatchString(role) && len(read.Permissions) < most {
			read.Permissions = append(read.Permissions, role)
		}
	}
	return read, true
}
