package front

import (
	"context"

	"postern/proxy"
)

// closedPort is the text of a Refuser without a text of the operator.
const closedPort = "Nothing is served on this port: choose SSL/TLS, and the port that belongs to it, in the settings of your mail program"

// A Refuser is the dialogue of a port that serves nothing any more: in place of a
// greeting it refuses the connection in the words of its Dialogue, and tells the
// user what to change. Without a text of the operator that is to choose SSL/TLS.
type Refuser struct{ proxy.Dialogue }

// Login implements proxy.Dialogue. It returns at once.
func (Refuser) Login(context.Context) (*proxy.Login, error) {
	return nil, proxy.NewRefusal(proxy.Plaintext, nil)
}

// Refuse implements proxy.Dialogue.
func (f Refuser) Refuse(r *proxy.Refusal) error {
	if r.Reason == proxy.Plaintext && r.Text == "" {
		withText := *r
		withText.Text = closedPort
		r = &withText
	}
	return f.Dialogue.Refuse(r)
}
