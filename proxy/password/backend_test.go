package password

import (
	"context"
	"errors"
	"testing"

	"postern/proxy"
	"postern/proxy/state"
	"postern/proxy/wire"
)

// A scripted backend answers each Login with err, or a session.
type scripted struct {
	err    error
	logins []proxy.Login
	opened int
}

func (s *scripted) Login(_ context.Context, l *proxy.Login) (proxy.Session, error) {
	s.logins = append(s.logins, *l)
	if s.err != nil {
		return nil, s.err
	}
	return scriptedSession{s}, nil
}

type scriptedSession struct{ *scripted }

func (s scriptedSession) Open(context.Context) (string, error) { s.opened++; return "welcome", nil }
func (scriptedSession) Run(context.Context, *proxy.Conn) error { return nil }
func (scriptedSession) Close() error                           { return nil }
func (scriptedSession) Backend() string                        { return "m365" }
func (scriptedSession) Totals() proxy.Totals                   { return proxy.Totals{Submitted: 3} }

// Criterion: Without a right password of Postern's own nobody is logged in and the backend is not asked; no configuration accepts any password.
func TestTheBackendIsAskedOnlyAfterARightPassword(t *testing.T) {
	d := &Devices{Bucket: new(state.Memory), Keys: [][]byte{presentKey}}
	_, text := add(t, d, Device{Account: "alice"}, Long)
	f, _ := openFile(t, "bob:"+quick+"\n")
	next := new(scripted)
	b := &Backend{Check: Checks{d, f}, Devices: d, Next: next}
	for account, secret := range map[string]string{
		"alice": "secret of alice", "bob": text, "nobody": text, "": text, "carol": "", "alice ": text,
	} {
		if _, err := b.Login(t.Context(), login(account, secret)); proxy.ReasonOf(err) != proxy.Wrong {
			t.Errorf("Login of %q = %v, want wrong", account, err)
		}
	}
	fenced := &Backend{Serves: func(account string) bool { return account != "alice" }, Check: d, Devices: d, Next: next}
	if _, err := fenced.Login(t.Context(), login("alice", text)); proxy.ReasonOf(err) != proxy.Wrong {
		t.Errorf("Login of an account that the provider does not have = %v, want wrong", err)
	}
	none := &Backend{Check: Checks{}, Next: next}
	if _, err := none.Login(t.Context(), login("alice", text)); proxy.ReasonOf(err) != proxy.Unavailable {
		t.Errorf("Login without any store = %v, want a temporary refusal", err)
	}
	if len(next.logins) != 0 {
		t.Fatalf("the backend was asked %d times", len(next.logins))
	}
	for account, secret := range map[string]string{"alice": text, "bob": "secret of alice"} {
		l := login(account, secret)
		kept := l.Secret
		session, err := b.Login(t.Context(), l)
		if err != nil {
			t.Fatalf("Login of %s = %v", account, err)
		}
		if welcome, err := session.Open(t.Context()); welcome != "welcome" || err != nil {
			t.Errorf("Open = %q, %v", welcome, err)
		}
		if r, ok := session.(proxy.Reporter); !ok || r.Backend() != "m365" || r.Totals().Submitted != 3 {
			t.Error("the session does not report what the backend's does")
		}
		if got := next.logins[len(next.logins)-1]; got.Secret != nil || !got.Verified || kept.Reveal() != nil || got.Account != account {
			t.Error("the backend gets the client's password")
		}
	}
}

// Criterion: A token that a client has sent passes to the backend unchanged, and needs no password of Postern's own.
func TestATokenOfTheClientPasses(t *testing.T) {
	never := Verify(func(context.Context, *proxy.Login) error { t.Error("the token was checked"); return wrong() })
	for _, mechanism := range []string{wire.MechanismXOAuth2, wire.MechanismOAuthBearer} {
		next := &scripted{err: &proxy.Refusal{Reason: proxy.Wrong, Challenge: []byte("{}")}}
		b := &Backend{Check: never, Next: next}
		l := login("alice", "a token")
		l.Mechanism = mechanism
		_, err := b.Login(t.Context(), l)
		r, _ := errors.AsType[*proxy.Refusal](err)
		if string(next.logins[0].Secret.Reveal()) != "a token" || r == nil || r.Reason != proxy.Wrong || r.Challenge == nil {
			t.Errorf("%s: %v", mechanism, err)
		}
	}
}

// Criterion: After a right password nothing that a backend or a token endpoint says is wrong, or costs a guess.
func TestNothingIsWrongAfterARightPassword(t *testing.T) {
	right := Verify(func(context.Context, *proxy.Login) error { return nil })
	for _, reason := range proxy.Reasons() {
		next := &scripted{err: &proxy.Refusal{Reason: reason, Doubtful: true, Challenge: []byte("{}"), Err: proxy.NewRefusal(proxy.Wrong, errors.New("535 5.7.8"))}}
		_, err := (&Backend{Check: right, Next: next}).Login(t.Context(), login("alice", "secret"))
		r, ok := errors.AsType[*proxy.Refusal](err)
		if !ok || !r.Verified || r.Doubtful || r.Challenge != nil {
			t.Errorf("%v became %+v", reason, r)
			continue
		}
		switch want := reason; r.Reason {
		case proxy.Wrong, proxy.Malformed, proxy.Unsupported:
			t.Errorf("%v became %v", reason, r.Reason)
		case proxy.Unavailable:
		default:
			if r.Reason != want {
				t.Errorf("%v became %v", reason, r.Reason)
			}
		}
		if proxy.ResultOf(err) == proxy.ResultWrong {
			t.Errorf("%v counts as a wrong password", reason)
		}
	}
	left := errors.New("the client has left")
	if _, err := (&Backend{Check: right, Next: &scripted{err: left}}).Login(t.Context(), login("alice", "secret")); !errors.Is(err, left) {
		t.Errorf("Login = %v", err)
	}
}

func TestASessionOfARemovedDeviceDoesNotOpen(t *testing.T) {
	d := &Devices{Bucket: new(state.Memory), Keys: [][]byte{presentKey}}
	made, text := add(t, d, Device{Account: "alice"}, Long)
	next := new(scripted)
	b := &Backend{Check: d, Devices: d, Next: next}
	session, err := b.Login(t.Context(), login("alice", text))
	if err != nil {
		t.Fatal(err)
	}
	l := next.logins[0]
	if err := b.Stands(t.Context(), &l); err != nil {
		t.Errorf("Stands = %v", err)
	}
	if _, err := d.Remove(t.Context(), "alice", made.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.Stands(t.Context(), &l); proxy.ReasonOf(err) != proxy.Wrong {
		t.Errorf("Stands after the removal = %v, want wrong", err)
	}
	if _, err := session.Open(t.Context()); proxy.ReasonOf(err) != proxy.Wrong || next.opened != 0 {
		t.Errorf("Open = %v, and the backend's session was opened %d times", err, next.opened)
	}
}

// Criterion: Another backend that verifies passwords is asked with the client's own, which stays for the next check.
func TestAnotherBackendVerifies(t *testing.T) {
	var asked []string
	answer := error(nil)
	old := Verify(func(_ context.Context, l *proxy.Login) error {
		asked = append(asked, l.Account+" "+string(l.Secret.Reveal()))
		l.Secret.Clear()
		return answer
	})
	l := login("alice", "secret of alice")
	expect(t, Checks{old}, l, 0, false)
	for reason, want := range map[proxy.Reason]proxy.Reason{proxy.Wrong: proxy.Wrong, proxy.Unavailable: proxy.Unavailable} {
		answer = proxy.NewRefusal(reason, nil)
		expect(t, Checks{old, old}, l, want, false)
	}
	if len(asked) != 5 || asked[4] != "alice secret of alice" {
		t.Errorf("asked %q", asked)
	}
}
