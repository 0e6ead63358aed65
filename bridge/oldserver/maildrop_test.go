package oldserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

const loggedIn = `
	S: +OK old
	C: USER alice
	S: +OK
	C: PASS top secret
	S: +OK in
`

const listed = loggedIn + `
	C: CAPA
	S: -ERR unknown
	C: STAT
	S: +OK 2 300
	C: LIST
	S: +OK 2 messages
	S: 1 100
	S: 2 200
	S: .
	C: UIDL
	S: +OK
	S: 1 a1
	S: 2  b2
	S: .
`

// open opens the maildrop of a server that follows a transcript.
func open(t *testing.T, transcript string) (*Maildrop, error) {
	t.Helper()
	client, server := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, server, transcript)
	s := &Server{Dial: func(context.Context) (net.Conn, error) { return client, nil }}
	return s.Open(t.Context(), "alice", proxy.NewSecret([]byte("top secret")))
}

func TestASessionWithAnOldServer(t *testing.T) {
	d, err := open(t, listed+`
		C: TOP 1 0
		S: +OK
		S: Message-ID: <1@example.org>
		S: Subject: one
		S:
		S: .
		C: TOP 2 0
		S: +OK
		S: Message-ID: <2@example.org>
		S: X-UIDL: of the server
		S: .
		C: TOP 1 999999999
		S: +OK
		S: Message-ID: <1@example.org>
		S: Subject: one
		S:
		S: ..a dot
		S: .
		C: RSET
		S: +OK
		C: QUIT
		S: +OK
	`)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Message{{1, "a1", 100}, {2, "b2", 200}}; len(d.Messages) != 2 || d.Messages[0] != want[0] || d.Messages[1] != want[1] {
		t.Errorf("got %v, want %v", d.Messages, want)
	}
	headers, err := d.Headers(t.Context(), []int{0, 1})
	if err != nil || headers[0] == headers[1] || !headers[0].Known || !headers[1].Known || !headers[1].Distinct {
		t.Errorf("%+v, %v", headers, err)
	}
	if sums, err := d.Contents(t.Context(), []int{0}); err != nil || sums[0] == (Sum{}) {
		t.Errorf("%x, %v", sums, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// A server with PIPELINING gets 32 commands at once.
func TestPipelining(t *testing.T) {
	capable := strings.Replace(listed, "S: -ERR unknown", "S: +OK\n\tS: TOP\n\tS: PIPELINING\n\tS: .", 1)
	d, err := open(t, capable+`
		C: TOP 2 0
		C: TOP 1 0
		S: -ERR no such message
		S: +OK
		S: Subject: one
		S:
		S: .
	`)
	if err != nil {
		t.Fatal(err)
	}
	headers, err := d.Headers(t.Context(), []int{1, 0})
	if err != nil || headers[0].Known || !headers[1].Known || headers[1].Distinct {
		t.Errorf("%+v, %v", headers, err)
	}
}

// A server that answers while commands still come blocks nothing.
func TestPipeliningWithoutABuffer(t *testing.T) {
	client, server := net.Pipe()
	defer func() { _ = server.Close() }()
	go func() {
		serveLines(server, strings.NewReplacer("S: -ERR unknown", "S: +OK\n\tS: PIPELINING\n\tS: .").Replace(listed))
		for range 2 {
			serveLines(server, "\tC: TOP 1 0\n\tS: +OK\n\tS: Subject: one\n\tS: .\n")
		}
	}()
	s := &Server{Timeout: 10 * time.Second, Dial: func(context.Context) (net.Conn, error) { return client, nil }}
	d, err := s.Open(t.Context(), "alice", proxy.NewSecret([]byte("top secret")))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abandon()
	if headers, err := d.Headers(t.Context(), []int{0, 0}); err != nil || !headers[1].Known {
		t.Errorf("%+v, %v", headers, err)
	}
}

// Criterion: From an answer of an old server that is NO, empty, half, twice or of another shape nothing is taken.
func TestAnswersFromWhichNothingFollows(t *testing.T) {
	refused := func(err error) bool { r := (*Refusal)(nil); return errors.As(err, &r) }
	unusable := func(err error) bool { return errors.Is(err, ErrAnswer) }
	lost := func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }
	for name, test := range map[string]struct {
		old, new string // of the transcript
		want     func(error) bool
	}{
		"no password":                    {"S: +OK in", "S: -ERR [AUTH] no", refused},
		"another protocol":               {"S: +OK old", "S: * OK IMAP4rev1", unusable},
		"STAT refused":                   {"S: +OK 2 300", "S: -ERR [SYS/TEMP] later", refused},
		"STAT without numbers":           {"S: +OK 2 300", "S: +OK", unusable},
		"LIST refused":                   {"S: +OK 2 messages", "S: -ERR", refused},
		"LIST is empty":                  {"\tS: 1 100\n\tS: 2 200\n", "", unusable},
		"LIST is short":                  {"\tS: 2 200\n", "", unusable},
		"LIST has one twice":             {"S: 2 200", "S: 1 100", unusable},
		"LIST has more":                  {"\tS: 2 200\n", "\tS: 2 200\n\tS: 3 200\n", unusable},
		"LIST counts from 0":             {"S: 1 100", "S: 0 100", unusable},
		"LIST without sizes":             {"S: 2 200", "S: 2", unusable},
		"LIST has a size that overflows": {"S: 2 200", "S: 2 4611686018427387904", unusable},
		"STAT shows too many":            {"S: +OK 2 300", "S: +OK 1048577 300", unusable},
		"UIDL is short":                  {"\tS: 2  b2\n", "", unusable},
		"UIDL names another":             {"S: 2  b2", "S: 3 b2", unusable},
		"a line without an end":          {"S: +OK old", "S: +OK " + strings.Repeat("x", 20000), func(err error) bool { return errors.Is(err, errLongLine) }},
		"the connection is lost":         {"\tS: 1 100\n\tS: 2 200\n\tS: .\n\tC: UIDL\n\tS: +OK\n\tS: 1 a1\n\tS: 2  b2\n\tS: .\n", "\tS: 1 100\n\tS: EOF\n", lost},
		"lost before UIDL is out":        {"\tS: 2  b2\n\tS: .\n", "\tS: EOF\n", lost},
	} {
		t.Run(name, func(t *testing.T) {
			transcript := strings.Replace(listed, test.old, test.new, 1)
			if transcript == listed {
				t.Fatal("the transcript is as before")
			}
			client, server := proxytest.Pipe(t)
			go func() { serveLines(server, transcript); _ = server.Close() }()
			s := &Server{Dial: func(context.Context) (net.Conn, error) { return client, nil }}
			d, err := s.Open(t.Context(), "alice", proxy.NewSecret([]byte("top secret")))
			if d != nil || !test.want(err) || strings.Contains(err.Error(), "top secret") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// serveLines serves a transcript until the client leaves, or up to the line EOF.
func serveLines(server net.Conn, transcript string) {
	for line := range strings.Lines(transcript) {
		line = strings.TrimSpace(line)
		switch text, ok := strings.CutPrefix(line, "S: "); {
		case text == "EOF":
			return
		case ok:
			if _, err := io.WriteString(server, text+"\r\n"); err != nil {
				return
			}
		case strings.HasPrefix(line, "C: "):
			if _, err := io.ReadFull(server, make([]byte, len(line)-len("C: ")+2)); err != nil {
				return
			}
		}
	}
}

func TestAServerThatIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer func() { _ = server.Close() }()
		s := &Server{Dial: func(context.Context) (net.Conn, error) { return client, nil }}
		_, err := s.Open(t.Context(), "alice", proxy.NewSecret([]byte("secret")))
		if timeout := (net.Error)(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v", err)
		}
	})
}

// A server that says something every 50 seconds is never silent for a minute.
func TestAServerThatDrips(t *testing.T) {
	many := strings.Replace(listed, "S: +OK 2 300", "S: +OK 1000 300", 1)
	for name, test := range map[string]struct{ before, piece string }{
		"a listing": {many[:strings.Index(many, "\tS: 1 100")], "%d 100\r\n"},
		"a message": {listed + "\tC: TOP 1 0\n\tS: +OK\n", "X-%d: x\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				var ended sync.WaitGroup
				ended.Go(func() {
					serveLines(server, test.before)
					for n := 1; ; n++ {
						time.Sleep(50 * time.Second)
						if _, err := fmt.Fprintf(server, test.piece, n); err != nil {
							return
						}
					}
				})
				began := time.Now()
				s := &Server{Dial: func(context.Context) (net.Conn, error) { return client, nil }}
				d, err := s.Open(t.Context(), "alice", proxy.NewSecret([]byte("top secret")))
				if err == nil {
					_, err = d.Headers(t.Context(), []int{0})
					d.Abandon()
				}
				if timeout := (net.Error)(nil); !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(began) > 2*time.Minute {
					t.Errorf("got %v after %v", err, time.Since(began))
				}
				_ = server.Close()
				ended.Wait()
			})
		})
	}
}

// Criterion: the password is not in the error of an old server that repeats it.
func TestAServerThatRepeatsThePassword(t *testing.T) {
	for answer, want := range map[string]string{
		"-ERR [AUTH] wrong password":                 `"[AUTH] wrong password"`,
		"-ERR [AUTH] alice/top secret is wrong":      `"[AUTH] its text is left out, because the password is in it"`,
		"-ERR unknown command \"PASS Top\\ Secret\"": `"its text is left out, because the password is in it"`,
		"-ERR [TOPSECRET] no":                        `"its text is left out, because the password is in it"`,
		"PASS top secret: no such command":           "cannot be used: PASS",
	} {
		_, err := open(t, strings.Replace(loggedIn, "S: +OK in", "S: "+answer, 1))
		if err == nil || strings.Contains(strings.ToLower(err.Error()), "secret") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", answer, err, want)
		}
	}
}

func TestALongUIDLIsCutOff(t *testing.T) {
	d, err := open(t, strings.Replace(listed, "1 a1", "1 "+strings.Repeat("x", 400), 1))
	if err != nil || len(d.Messages[0].UIDL) != maxShown {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestAMessageLongerThanItsSize(t *testing.T) {
	client, server := proxytest.Pipe(t)
	go func() {
		serveLines(server, listed+"\tC: TOP 1 0\n\tS: +OK\n")
		for range 2 << 20 / 64 {
			if _, err := io.WriteString(server, strings.Repeat("x", 62)+"\r\n"); err != nil {
				return
			}
		}
	}()
	s := &Server{Dial: func(context.Context) (net.Conn, error) { return client, nil }}
	d, err := s.Open(t.Context(), "alice", proxy.NewSecret([]byte("top secret")))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abandon()
	if _, err := d.Headers(t.Context(), []int{0}); !errors.Is(err, ErrAnswer) {
		t.Errorf("got %v", err)
	}
}

func TestCodesOfRefusals(t *testing.T) {
	for text, want := range map[string]string{"[in-use] wait": "IN-USE", "no [AUTH]": "", "[AUTH": "", "": ""} {
		if got := (&Refusal{Text: text}).Code(); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
