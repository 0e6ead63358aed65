package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

// A literalServer reads IMAP as RFC 3501 defines it and answers at once. It
// refuses the synchronizing literals and the IDLE and AUTHENTICATE commands for
// which refuse returns true. A strict one takes a non-synchronizing literal for
// text where the grammar allows no literal.
type literalServer struct {
	w       *commandWatch
	strict  bool
	refuse  func(n int) bool
	waits   int
	in      []byte
	command []byte // with the literals that have come
	literal int64
	mode    string // IDLE, AUTHENTICATE: its lines are no commands
	tag     string
	names   []string
}

func (s *literalServer) send(format string, args ...any) {
	_, _ = fromServer{s.w, io.Discard}.Write(fmt.Appendf(nil, format+"\r\n", args...))
}

func (s *literalServer) Write(p []byte) (int, error) {
	s.in = append(s.in, p...)
	for s.step() {
	}
	if s.w.waiting != "" && s.w.verdict == undecided { // this server sends nothing more
		s.w.close()
	}
	return len(p), nil
}

// step reads a line or a literal.
func (s *literalServer) step() bool {
	if s.literal > 0 {
		k := min(s.literal, int64(len(s.in)))
		s.literal -= k
		s.in = s.in[k:]
		return k > 0
	}
	end := bytes.IndexByte(s.in, '\n') + 1
	if end == 0 {
		return false
	}
	line := bytes.Clone(s.in[:end])
	s.in = s.in[end:]
	if s.mode != "" {
		s.send("* 1 FETCH (BODY[] {19}\r\n%.2s OK {5}\r\n+ trap\r\n)", s.tag+" ")
		s.send("%s OK over", s.tag)
		s.mode = ""
		return true
	}
	fields := strings.Fields(string(line))
	if len(s.command) == 0 {
		if len(fields) < 2 {
			s.send("* BAD what")
			return true
		}
		s.tag = fields[0]
		s.names = append(s.names, strings.ToUpper(fields[1]))
	}
	s.command = append(s.command, line...)
	literal, more := wire.TrailingLiteral(line)
	if s.strict && !literal.Sync && misplaced.Match(line) {
		more = false
	}
	name := s.names[len(s.names)-1]
	no := false
	if more && literal.Sync || name == "IDLE" || name == "AUTHENTICATE" {
		no = s.refuse(s.waits)
		s.waits++
	}
	switch {
	case no:
		s.send("%s BAD no {5}", s.tag)
		s.command = nil
	case name == "IDLE" || name == "AUTHENTICATE":
		s.send("+ go on")
		s.mode, s.command = name, nil
	case more && literal.Sync:
		s.send("+ go on")
		s.literal = literal.Size
	case more:
		s.literal = literal.Size
	default:
		s.send("* LIST () \"/\" {7}\r\n%s OK\r\n", "x")
		s.send("%s OK done", s.tag)
		s.command = nil
	}
	return true
}

// misplaced matches a literal where a strict server allows none: as the first or
// second word of a line, after an octet that cannot precede an argument, or
// within a quoted string.
var misplaced = regexp.MustCompile(`(?s)^\s*(\S+\s+)?\S*\{\d+\+}\r?\n$|[^ (~]~?\{\d+\+}\r?\n$|` +
	`^([^"]|"([^"\\]|\\.)*")*"([^"\\]|\\.)*\r?\n$`)

// watchCommands sends in to a literalServer in parts, and returns the names of
// the commands that it got.
func watchCommands(in string, size int, refuse func(int) bool) (names []string, err error) {
	return watchCommandsOf(in, size, &literalServer{refuse: refuse})
}

func watchCommandsOf(in string, size int, s *literalServer) (names []string, err error) {
	w := newWatch("IMAP4rev1 LITERAL+ UNAUTHENTICATE")
	s.w = w
	for in != "" && err == nil {
		n := min(size, len(in))
		_, err = fromClient{w, s}.Write([]byte(in[:n]))
		in = in[n:]
	}
	return s.names, err
}

func never(int) bool  { return false }
func always(int) bool { return true }

// Criterion: where a server offers UNAUTHENTICATE (RFC 8437) to users, neither that
// command nor COMPRESS reaches it, however the client splits it, and whatever
// literals, IDLE and AUTHENTICATE stand before it; octets of a literal are no
// command.
func TestWatchFindsForbiddenCommands(t *testing.T) {
	for _, test := range []struct {
		name, in string
		refuse   func(int) bool
		want     string // the commands that reach the server; then: how it ends
	}{
		{"alone", "a UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"in small letters, with spaces, and LF", "a NOOP\n  b   unAuthenticate  \n", never, "NOOP|forbidden"},
		{"COMPRESS", "a NOOP\r\nb COMPRESS DEFLATE\r\n", never, "NOOP|forbidden"},
		{"what begins so", "a UNAUTHENTICATED\r\n", never, "|forbidden"},
		{"other words", "UNAUTHENTICATE NOOP\r\na SELECT UNAUTHENTICATE\r\nb NOOP COMPRESS\r\nc UNAUTH\r\n", never, "NOOP SELECT NOOP UNAUTH|"},
		{"in a literal", "a APPEND x {19}\r\nb UNAUTHENTICATE\r\n\r\n\r\nc NOOP\r\n", never, "APPEND NOOP|"},
		{"in one that does not wait", "a APPEND x {18+}\r\nb UNAUTHENTICATE\r\n\r\nc NOOP\r\n", never, "APPEND NOOP|"},
		{"in a binary one", "a APPEND x ~{18+}\r\nb UNAUTHENTICATE\r\n\r\nc NOOP\r\n", never, "APPEND NOOP|"},
		{"behind a literal", "a APPEND x {2+}\r\nxx {3}\r\nyyy\r\nb UNAUTHENTICATE\r\n", never, "APPEND|forbidden"},
		{"in a literal that was refused", "a APPEND x {18}\r\nb UNAUTHENTICATE\r\n", always, "APPEND|forbidden"},
		{"within the line of the literal", "a SEARCH {1}\r\nx UNAUTHENTICATE {1+}\r\nx\r\nb NOOP\r\n", never, "SEARCH NOOP|"},
		{"after IDLE", "a IDLE\r\nDONE\r\nb UNAUTHENTICATE\r\n", never, "IDLE|forbidden"},
		{"for DONE", "a IDLE\r\nb UNAUTHENTICATE\r\n", never, "IDLE|forbidden"},
		{"after an IDLE that was refused", "a IDLE\r\nb UNAUTHENTICATE\r\n", always, "IDLE|forbidden"},
		{"within AUTHENTICATE", "a AUTHENTICATE PLAIN\r\nb UNAUTHENTICATE\r\nc NOOP\r\n", never, "AUTHENTICATE NOOP|"},
		{"after an AUTHENTICATE that was refused", "a AUTHENTICATE PLAIN\r\nb UNAUTHENTICATE\r\n", always, "AUTHENTICATE|forbidden"},
		{"after a literal in AUTHENTICATE that is none", "a AUTHENTICATE PLAIN\r\nx {50}\r\nb UNAUTHENTICATE\r\n", never, "AUTHENTICATE|forbidden"},
		{"behind a bare CR", "a NOOP\rb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"a literal of a size that is none", "a NOOP {99999999999999999999+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"in a quoted string", "a SELECT \"x {18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"in one with an escaped quote", "a LOGIN \"x\\\" {18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"behind a quoted string", "a LOGIN \"x\\\\\" {2+}\r\nxx\r\nb NOOP\r\n", never, "LOGIN NOOP|"},
		{"behind an atom", "a LIST \"\" x{18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"behind another brace", "a NOOP {5}{18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"as a command", "a {18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"behind a command", "a NOOP{18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"behind a parenthesis", "a STORE 1 FLAGS ({18+}\r\nb UNAUTHENTICATE)\r\nc NOOP\r\n", never, "STORE NOOP|"},
		{"of many digits", "a SELECT {" + strings.Repeat("0", 40) + "18+}\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"of as many as are kept", "a SELECT {" + strings.Repeat("0", watchedTailSize-2) + "+}\r\nb NOOP\r\n", never, "|forbidden"},
		{"behind a tag with a tab", "a\tb UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"behind a tag with NUL", "a\x00b UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"behind one with an octet that is not ASCII", "a\xa0b UNAUTHENTICATE\r\n", never, "|forbidden"},
		{"blank lines", "\r\n\r\na\r\nb UNAUTHENTICATE\r\n", never, "|forbidden"},
	} {
		for size := 1; size <= len(test.in); size++ {
			names, err := watchCommands(test.in, size, test.refuse)
			end := ""
			if errors.Is(err, proxy.ErrForbidden) {
				end = "forbidden"
			} else if err != nil {
				end = err.Error()
			}
			if got := strings.Join(names, " ") + "|" + end; got != test.want {
				t.Errorf("%s, in pieces of %d: %s, want %s", test.name, size, got, test.want)
			}
		}
	}
}

func TestWatchAllowsNonSynchronizingLiteralsThatTheServerOffers(t *testing.T) {
	for _, test := range []struct {
		capabilities string
		size         int
		fine         bool
	}{
		{"LITERAL+", 5000, true}, {"literal-", 4096, true}, {"LITERAL-", 4097, false}, {"IMAP4rev2", 4096, true}, {"IMAP4rev1", 1, false},
	} {
		w := newWatch(test.capabilities)
		_, err := fromClient{w, io.Discard}.Write(fmt.Appendf(nil, "a APPEND x {%d+}\r\n", test.size))
		if (err == nil) != test.fine {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func TestWatchBoundsOpenCommands(t *testing.T) {
	w := newWatch("")
	var err error
	n := 0
	for ; err == nil && n < 2*maxOpenCommands; n++ {
		_, err = fromClient{w, io.Discard}.Write(fmt.Appendf(nil, "a%d NOOP\r\n", n))
	}
	if !errors.Is(err, proxy.ErrForbidden) || n != maxOpenCommands+1 {
		t.Errorf("%v after %d commands", err, n)
	}
	w = newWatch("")
	_, err = fromClient{w, io.Discard}.Write([]byte("a NOOP\r\na IDLE\r\n"))
	if !errors.Is(err, proxy.ErrForbidden) {
		t.Errorf("IDLE with a tag in use: %v", err)
	}
}

// FuzzWatch checks that a server that reads IMAP as RFC 3501 defines it gets no
// forbidden command, whatever a client sends, and in whatever parts.
func FuzzWatch(f *testing.F) {
	f.Add("a APPEND x {18}\r\nb UNAUTHENTICATE\r\nc IDLE\r\nd UNAUTHENTICATE\r\n", uint8(3), uint8(1))
	f.Add("a AUTHENTICATE X\r\nb {5+}\r\nc COMPRESS DEFLATE\r\nd SEARCH ~{3+}\r\nxxx {1}\r\n", uint8(5), uint8(2))
	f.Add("a IDLE\r\nb NOOP {10}\r\nc UNAUTHENTICATE\r\n", uint8(50), uint8(0))
	f.Add("a LOGIN \"x {18+}\r\nb UNAUTHENTICATE\r\nc LIST \"\" x{18+}\r\nd UNAUTHENTICATE\r\n", uint8(50), uint8(0))
	f.Fuzz(func(t *testing.T, in string, size, refuse uint8) {
		for _, strict := range []bool{false, true} {
			names, _ := watchCommandsOf(in, int(size)+1, &literalServer{strict: strict, refuse: func(n int) bool { return refuse>>(n%8)&1 == 1 }})
			for _, name := range names {
				if name == "UNAUTHENTICATE" || name == "COMPRESS" {
					t.Fatalf("%q in pieces of %d: the server (strict: %t) got %q", in, int(size)+1, strict, names)
				}
			}
		}
	})
}

// Criterion: a session in which UNAUTHENTICATE is tried ends with BYE, and its end
// says so.
func TestWatchedSessionEndsWithBYE(t *testing.T) {
	for _, secure := range []bool{false, true} {
		client, near := proxytest.Pipe(t)
		backend, server := proxytest.Pipe(t)
		s := &spliceFixture{client: client, server: server, done: make(chan error, 1)}
		if secure {
			cert, pool := proxytest.Cert(t)
			s.client = proxytest.ClientTLS(client, pool)
			s.conn = proxy.NewConn(near, proxy.Client{ID: "7"}, proxytest.ServerTLS(cert), 0)
			go func() { _, _ = s.client.Write(nil) }()
			if err := s.conn.StartTLS(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			s.conn = proxy.NewConn(near, proxy.Client{ID: "7"}, nil, 0)
		}
		session := &IMAP{BackendName: "main", Conn: backend.(Upstream), Watched: "IMAP4rev1 LITERAL+ UNAUTHENTICATE"}
		go func() {
			s.done <- session.Run(t.Context(), s.conn)
			_, _ = session.Close(), s.conn.Close()
		}()
		proxytest.ServeTranscript(t, server, `
			C: a IDLE
			S: + idling
			C: DONE
			S: a OK
			C- b APPEND x {16}\r\n
			S: + go on
			C- c COMPRESS x\r\n!\r\n
			S: b OK`)
		proxytest.Transcript(t, s.client, `
			C: a IDLE
			S: + idling
			C: DONE
			S: a OK
			C- b APPEND x {16}\r\n
			S: + go on
			C- c COMPRESS x\r\n!\r\n
			S: b OK
			C: d UNAUTHENTICATE
			S: \* BYE This command is not permitted here (session 7)
			S: <EOF>`)
		s.waitEnd(t, proxy.ErrForbidden)
	}
}

// A command that waits for the server ends when the server closes.
func TestWatchEndsWithTheServer(t *testing.T) {
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	s := &spliceFixture{client: client, server: server, done: make(chan error, 1), conn: proxy.NewConn(near, proxy.Client{}, nil, 0)}
	session := &IMAP{BackendName: "main", Conn: backend.(Upstream), Watched: "UNAUTHENTICATE"}
	go func() {
		s.done <- session.Run(t.Context(), s.conn)
		_, _ = session.Close(), s.conn.Close()
	}()
	proxytest.Transcript(t, client, `C- a IDLE\r\nDONE\r\n`)
	proxytest.Transcript(t, server, "S: a IDLE\n")
	_ = server.Close()
	s.waitEnd(t, proxy.ErrBackendClosed)
}
