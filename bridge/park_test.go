package bridge

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/textproto"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// openGuard admits everybody.
type openGuard struct{}

func (openGuard) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) {
	return openPermit{}, nil
}

type openPermit struct{}

func (openPermit) Try(context.Context, *proxy.Login) error { return nil }
func (openPermit) Settle(error) time.Duration              { return 0 }
func (openPermit) Leave()                                  {}

// lineDialogue logs in with the first line.
type lineDialogue struct{ c *proxy.Conn }

func (d lineDialogue) Login(context.Context) (*proxy.Login, error) {
	if _, err := d.c.ReadLine(100); err != nil {
		return nil, err
	}
	return &proxy.Login{User: "alice", Secret: proxy.NewSecret([]byte("secret"))}, nil
}
func (d lineDialogue) Refuse(r *proxy.Refusal) error { return r }
func (d lineDialogue) Accept(string) error {
	_, err := io.WriteString(d.c, "+OK\r\n")
	return err
}

// Criterion: A silent POP3 session is parked: it goes on with the client's next command, also after half a line, and another session that takes its maildrop over ends it with a word.
func TestASilentSessionIsParked(t *testing.T) {
	_, b := serve(t, hello)
	b.Lock = Takeover
	s := &proxy.Server{Guard: openGuard{}}
	s.SetParking(time.Millisecond)
	if !s.Parks() {
		t.Skip("sessions park on Linux only")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	err = s.Apply([]proxy.Binding{{Listener: ln, Service: &proxy.Service{
		Name: "pop3", Protocol: proxy.POP3, StartTLS: true, Backend: b,
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return lineDialogue{c} },
		Account:  func(user string) (string, error) { return user, nil },
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx, 0)
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		proxytest.Transcript(t, c, "C: LOGIN\nS: +OK")
		return c
	}
	parked := func() {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); s.Parking().Parked != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%+v: the session does not park", s.Parking())
			}
		}
	}
	first := dial()
	parked()
	proxytest.Transcript(t, first, "C: STAT\nS: +OK 1 35\nC: RETR 1\nS: +OK *")
	if body, err := textproto.NewReader(bufio.NewReader(first)).ReadDotBytes(); len(body) == 0 || err != nil {
		t.Fatalf("RETR gave %q, %v", body, err)
	}
	parked()
	proxytest.Transcript(t, first, `C- NO`)
	time.Sleep(20 * time.Millisecond)
	proxytest.Transcript(t, first, "C: OP\nS: +OK *\nC: DELE 1\nS: +OK *")
	parked()
	second := dial()
	proxytest.Transcript(t, first, `
		S: -ERR \[SYS/TEMP\] Another session has taken the maildrop over*
		S: <EOF>
	`)
	parked()
	proxytest.Transcript(t, second, "C: STAT\nS: +OK 1 35\nC: QUIT\nS: +OK *")
}
