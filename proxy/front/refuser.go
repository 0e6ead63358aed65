package front

import (
	"context"

	"postern/proxy"
)

// closedPort is what a Refuser says on its own.
const closedPort = "Nothing is served on this port: choose SSL/TLS, and the port that belongs to it, in the settings of your mail program"

// A Refuser is the dialogue of a port on which nothing is served any more: in
// place of a greeting it says, in the words of the Dialogue that it has, what
// the client's user has to change. Unless the operator has a text for it, that
// is to choose SSL/TLS.
type Refuser struct{ proxy.Dialogue }

// Login implements proxy.Dialogue. It waits for nothing.
func (Refuser) Login(context.Context) (*proxy.Login, error) {
	return nil, proxy.NewRefusal(proxy.Plaintext, nil)
}

// Refuse implements proxy.Dialogue.
func (f Refuser) Refuse(r *proxy.Refusal) error {
	if r.Reason == proxy.Plaintext && r.Text == "" {
		told := *r
		told.Text = closedPort
		r = &told
	}
	return f.Dialogue.Refuse(r)
}
