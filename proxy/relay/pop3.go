package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxPOP3Command = 255             // octets of a command with its CRLF, RFC 2449 section 4
	maxPOP3Bad     = 20              // invalid commands in a row
	maxPOP3Batch   = 32              // commands that are sent before their responses are read, RFC 2449 section 6.6
	maxPOP3Pending = 16 << 10        // octets for the client that are gathered
	maxPOP3Marks   = 1 << 20         // messages whose state is counted
	lastAnswerTime = 5 * time.Second // for the server, after an operator has ended the session

	// allLines is the number of lines from which TOP downloads a message: clients that
	// keep mail on the server fetch it by TOP with a huge number.
	allLines = 10_000

	// askTime is the time before QUIT in which commands of a POP3Watcher are sent. With the
	// answer to the last one QUIT waits for 50 ms, if the server is not slow.
	askTime = 40 * time.Millisecond
	maxAsk  = 4 << 20 // octets of the response to such a command
)

// A POP3Watcher sees what an old POP3 server shows of a maildrop. Its methods are called in
// the goroutine of the session, and must not wait.
type POP3Watcher interface {
	// Response is called for each response to LIST, UIDL, RETR and TOP. number is 0 if the
	// command was for all messages. The lines that follow a +OK are written to the writer,
	// as they are on the wire, with the "." at their end; nil: they are not needed.
	Response(keyword string, number int, ok bool) io.Writer

	// Ask returns up to most commands that are sent to the server when the client has sent
	// QUIT, and before QUIT is forwarded: LIST or UIDL for all messages, or TOP. It is
	// called again while there is time. A session that has marked messages asks nothing:
	// it must not be lost before the server has deleted them.
	Ask(most int) []string

	// Quit is called when QUIT was answered, or the server is lost. The server has deleted
	// the messages with these numbers, if ok; else nobody knows.
	Quit(ok bool, deleted []int)
}

// POP3 is a proxy.Session with an old POP3 server. It reads commands and responses, because
// only the command says whether the response has one line or many, and forwards the commands
// that it knows, with one space between words. Responses pass as they came. The exception is
// CAPA: what a client can do before a login is left out.
//
// A response is the server's or none: if the server is lost within a response, the
// connection to the client is cut.
type POP3 struct {
	BackendName string         // the backend's name
	Conn        Upstream       // logged in
	Pipelining  bool           // the server takes commands before it has answered: RFC 2449 section 6.6
	Client      proxy.Client   // for the session id in texts
	Idle        time.Duration  // longest silence of the client; 0: proxy.DefaultPOP3Idle
	Timeout     time.Duration  // longest silence of the server within a response; 0: proxy.DefaultReply
	Observer    proxy.Observer // nil: events are dropped
	Watcher     POP3Watcher    // nil: none

	client *proxy.Conn // set by Run
	out    []byte      // for the client
	bad    int         // invalid commands in a row
	quit   bool        // the server has answered QUIT
	totals proxy.Totals
	marks  map[int]pop3Mark // by message number

	in   *[bufferSize]byte // nil: not in use
	r, w int               // in[r:w] is read and not yet consumed
}

// A pop3Mark is what a session has done to a message.
type pop3Mark uint8

const (
	markDownloaded pop3Mark = 1 << iota
	markDeleted
)

// A pop3Request is a command of the client.
type pop3Request struct {
	keyword string // of proxy.POP3Commands or LAST; "": another one
	number  int    // of a message; 0: none
	lines   int    // of the text, for TOP
	line    string // for the server; "": answer is the response
	answer  string
	invalid bool // counts as bad
}

// pop3Arguments has how many arguments a command may have. XTND, whose responses may have
// one line or many, and other commands beyond RFC 1939, RFC 2449 and LAST are not forwarded.
var pop3Arguments = map[string]struct{ least, most int }{
	"STAT": {0, 0}, "LIST": {0, 1}, "RETR": {1, 1}, "DELE": {1, 1}, "NOOP": {0, 0}, "RSET": {0, 0}, "LAST": {0, 0},
	"TOP": {2, 2}, "UIDL": {0, 1}, "CAPA": {0, 0}, "QUIT": {0, 0},
}

// many reports whether +OK is followed by more lines.
func (r *pop3Request) many() bool {
	switch r.keyword {
	case "RETR", "TOP", "CAPA":
		return true
	case "LIST", "UIDL":
		return r.number == 0
	}
	return false
}

// parsePOP3Request reads a command. Servers differ about spaces at the end and about
// numbers that are none: "LIST " is answered with one line or with many. So both never
// reach a server.
func parsePOP3Request(line []byte) pop3Request {
	text, _ := wire.TrimLine(line)
	words := strings.FieldsFunc(string(text), func(r rune) bool { return r == ' ' })
	invalid := func(answer string) pop3Request { return pop3Request{answer: answer, invalid: true} }
	if len(words) == 0 {
		return invalid("Unknown command")
	}
	words[0] = strings.ToUpper(words[0])
	arguments, known := pop3Arguments[words[0]]
	switch n := len(words) - 1; {
	case !known:
		switch words[0] {
		case "USER", "PASS", "APOP", "AUTH", "STLS":
			return invalid("You are already logged in")
		}
		return invalid("Unknown command")
	case n < arguments.least, n > arguments.most:
		return invalid("The number of arguments is wrong")
	}
	r := pop3Request{keyword: words[0], line: strings.Join(words, " ")}
	for i, word := range words[1:] {
		n, err := strconv.ParseUint(word, 10, 31)
		switch {
		case errors.Is(err, strconv.ErrRange), err == nil && n == 0 && i == 0:
			return pop3Request{keyword: r.keyword, answer: "No such message"}
		case err != nil:
			return invalid("That is not a number")
		}
		if i == 0 {
			r.number = int(n)
		} else {
			r.lines = int(n)
		}
	}
	return r
}

// Open implements proxy.Session. STAT counts the messages for the log.
func (s *POP3) Open(ctx context.Context) (welcome string, err error) {
	defer context.AfterFunc(ctx, func() { _ = s.Conn.Close() })()
	defer s.releaseInput()
	s.marks = make(map[int]pop3Mark)
	line, err := []byte(nil), s.send("STAT\r\n")
	if err == nil {
		line, err = s.readLine(s.timeout())
	}
	if err == nil {
		_, err = parsePOP3Response(line)
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		r := proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("backend %s, pop3: STAT: %w", s.BackendName, err))
		r.Verified = true
		return "", r
	}
	if words := strings.Fields(string(line)); len(words) > 1 {
		count, _ := strconv.ParseUint(words[1], 10, 31)
		s.totals.Messages = int(count)
	}
	return "", nil
}

// Backend implements proxy.Reporter.
func (s *POP3) Backend() string { return s.BackendName }

// Totals implements proxy.Reporter.
func (s *POP3) Totals() proxy.Totals {
	t := s.totals
	t.Mode = proxy.ModePassthrough
	for _, m := range s.marks {
		switch {
		case m&markDeleted != 0:
			t.Marked++
		case m&markDownloaded != 0:
			t.Kept++
		}
	}
	return t
}

// Close implements proxy.Session. Without QUIT the server deletes nothing: RFC 1939 section
// 6. After QUIT the server closes first, if it has the time: TIME_WAIT then takes a port
// there and not here.
func (s *POP3) Close() error {
	if s.quit {
		_ = s.Conn.SetReadDeadline(time.Now().Add(closeTime))
		_, _ = s.Conn.Read(make([]byte, 1))
	}
	return s.Conn.Close()
}

// Run implements proxy.Session. It returns nil after QUIT, else the error that has ended
// the session.
func (s *POP3) Run(ctx context.Context, client *proxy.Conn) error {
	s.client = client
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(lastAnswerTime, func() { _ = s.Conn.Close() })
	})()
	defer s.releaseInput()
	for {
		requests, err := s.nextRequests()
		answered := s.answer(requests)
		if answered == nil && err != nil {
			answered = s.clientGone(ctx, err)
		}
		if answered == nil {
			continue
		}
		err = s.flush()
		switch {
		case errors.Is(answered, proxy.ErrQuit):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return answered
	}
}

// clientGone returns the error that ends the session after err of a read from the client.
func (s *POP3) clientGone(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		s.temporary(proxy.Goodbye(proxy.ReasonOf(context.Cause(ctx))))
		return context.Cause(ctx)
	case errors.Is(err, proxy.ErrFlood):
		s.refuse("Line too long")
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return proxy.ErrIdleTimeout // without a response: RFC 1939 section 3
	}
	return fmt.Errorf("%w: %w", proxy.ErrClientClosed, err)
}

// nextRequests waits for the next command. From a client that has sent more and to a server
// with Pipelining, it returns several. The error is that of a read after them.
func (s *POP3) nextRequests() (requests []pop3Request, err error) {
	for len(requests) == 0 || s.client.Buffered() > 0 {
		r, err := s.nextRequest(len(requests) == 0)
		if errors.Is(err, os.ErrDeadlineExceeded) && len(requests) > 0 {
			break
		}
		if err != nil {
			return requests, err
		}
		requests = append(requests, r)
		if !s.Pipelining || len(requests) == maxPOP3Batch || r.keyword == "QUIT" {
			break
		}
	}
	return requests, nil
}

// nextRequest returns the next command. If wait is false, it must have come already.
func (s *POP3) nextRequest(wait bool) (r pop3Request, err error) {
	if s.client.Buffered() > 0 {
		// The buffer may hold only a part of a line.
		if r, err = s.readRequest(time.Unix(1, 0)); !wait || !errors.Is(err, os.ErrDeadlineExceeded) {
			return r, err
		}
	}
	if err := s.flush(); err != nil {
		return r, err
	}
	s.releaseInput()
	return s.readRequest(time.Now().Add(s.idle()))
}

func (s *POP3) readRequest(deadline time.Time) (pop3Request, error) {
	if err := s.client.SetReadDeadline(deadline); err != nil {
		return pop3Request{}, err
	}
	line, err := s.client.ReadLine(maxPOP3Command)
	if errors.Is(err, proxy.ErrLineTooLong) {
		return pop3Request{answer: "Line too long", invalid: true}, nil
	}
	if err != nil {
		return pop3Request{}, err
	}
	return parsePOP3Request(line), nil
}

// answer answers the commands. An error ends the session: proxy.ErrQuit after the response
// to QUIT.
func (s *POP3) answer(requests []pop3Request) error {
	before := len(requests) - 1
	if s.Watcher == nil || before < 0 || requests[before].keyword != "QUIT" || requests[before].line == "" {
		return s.forward(requests)
	}
	if err := s.forward(requests[:before]); err != nil {
		return err
	}
	s.ask()
	return s.forward(requests[before:])
}

// forward sends the commands to the server and passes the responses on.
func (s *POP3) forward(requests []pop3Request) error {
	var lines strings.Builder
	for i := range requests {
		if requests[i].line != "" {
			lines.WriteString(requests[i].line + "\r\n")
		}
	}
	if lines.Len() > 0 {
		if err := s.send(lines.String()); err != nil {
			return s.lost(&requests[0], err)
		}
	}
	for i := range requests {
		if err := s.answerOne(&requests[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *POP3) answerOne(r *pop3Request) error {
	begun := time.Now()
	ok, err := false, error(nil)
	if r.line == "" {
		s.refuse(r.answer)
		if s.bad++; !r.invalid {
			s.bad = 0
		}
		if s.bad == maxPOP3Bad {
			err = errBadPOP3
		}
	} else {
		s.bad = 0
		ok, err = s.pass(r)
	}
	label := r.keyword
	if label == "" || label == "LAST" {
		label = proxy.CommandOther
	}
	s.observe(proxy.POP3Command{Command: label, OK: ok, Duration: time.Since(begun)})
	return err
}

var (
	errBadPOP3    = errors.New("too many bad commands")
	errNoResponse = errors.New("neither +OK nor -ERR")
	errUnasked    = errors.New("the server sent what was not asked for")
	errAsked      = errors.New("the answer to a command before QUIT has no end")
)

// pass passes the response to r on.
func (s *POP3) pass(r *pop3Request) (ok bool, err error) {
	timeout := s.timeout()
	if r.keyword == "QUIT" {
		timeout = s.idle() // an mbox is written anew, and the response says whether that succeeded
	}
	line, err := s.readLine(timeout)
	if err == nil {
		ok, err = parsePOP3Response(line)
	}
	if err != nil {
		return false, s.lost(r, err)
	}
	if r.keyword == "CAPA" && ok {
		return s.passCapabilities(r, line)
	}
	s.out = append(s.out, line...)
	if lines := s.watch(r, ok); r.many() && ok {
		err = s.passLines(r, lines)
	}
	if err == nil {
		err = s.count(r, ok)
	}
	return ok, err
}

// parsePOP3Response reports whether a line, with its CRLF, is +OK.
func parsePOP3Response(line []byte) (ok bool, err error) {
	r, known := wire.ParsePOP3(line[:len(line)-len("\r\n")])
	if !known || r.Name == wire.POP3Continue {
		return false, errNoResponse
	}
	return r.Name == wire.POP3OK, nil
}

// count counts what a command has done. It returns proxy.ErrQuit after QUIT.
func (s *POP3) count(r *pop3Request, ok bool) error {
	switch {
	case r.keyword == "QUIT":
		s.quit = true
		s.watchQuit(ok)
		if ok {
			s.totals.Deleted = len(s.marked())
		} else {
			s.observe(proxy.UpdateFailed{Client: s.Client, Stage: proxy.StageExpunge, Err: errors.New("the server answered QUIT with -ERR")})
		}
		return proxy.ErrQuit
	case ok && r.keyword == "DELE":
		s.mark(r.number, markDeleted)
	case ok && r.keyword == "RSET":
		for n := range s.marks {
			s.marks[n] &^= markDeleted
		}
	}
	return nil
}

// marked returns the numbers of the messages that DELE has marked.
func (s *POP3) marked() (numbers []int) {
	for n, m := range s.marks {
		if m&markDeleted != 0 {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

func (s *POP3) mark(number int, m pop3Mark) {
	if _, known := s.marks[number]; known || len(s.marks) < maxPOP3Marks {
		s.marks[number] |= m
	}
}

// passLines passes the lines behind the first one on, while they come. watcher gets them,
// too, unless it is nil.
func (s *POP3) passLines(r *pop3Request, watcher io.Writer) error {
	octets, err := s.readLines(func(some []byte) error {
		if watcher != nil {
			_, _ = watcher.Write(some)
		}
		return s.write(some)
	})
	if errors.Is(err, proxy.ErrClientClosed) {
		return err
	}
	if err != nil {
		return s.cut(r, err)
	}
	whole := r.keyword == "RETR" || r.keyword == "TOP" && r.lines >= allLines
	if whole && s.marks[r.number]&markDownloaded == 0 {
		s.mark(r.number, markDownloaded)
		s.totals.Downloaded++
		s.totals.Octets += octets
	}
	switch r.keyword {
	case "RETR":
		s.totals.Retrieved++
		fallthrough
	case "TOP":
		s.observe(proxy.MessageSent{Command: r.keyword, Octets: octets})
	}
	return nil
}

// readLines reads the lines behind the first one, gives them to pass while they come, and
// returns the octets of what they carry: without dots that were added, and the ".".
func (s *POP3) readLines(pass func([]byte) error) (octets int64, err error) {
	var end wire.POP3End
	for done := false; !done; {
		if s.r == s.w {
			if err := s.fill(s.timeout()); err != nil {
				return 0, err
			}
		}
		var n int
		n, done = end.Scan(s.in[s.r:s.w])
		if err := pass(s.in[s.r : s.r+n]); err != nil {
			return 0, err
		}
		s.r += n
		octets += int64(n)
	}
	return octets - end.Dots - int64(len(".\r\n")), nil
}

// watch tells the watcher of a response, and returns where its lines go.
func (s *POP3) watch(r *pop3Request, ok bool) io.Writer {
	if s.Watcher == nil {
		return nil
	}
	switch r.keyword {
	case "LIST", "UIDL", "RETR", "TOP":
		return s.Watcher.Response(r.keyword, r.number, ok)
	}
	return nil
}

func (s *POP3) watchQuit(ok bool) {
	if s.Watcher != nil {
		s.Watcher.Quit(ok, s.marked())
	}
}

// ask sends what the watcher asks, for askTime. It begins with one command, so that a slow
// server gets no second one; a fast server with PIPELINING gets more and more together. An
// error shows again at QUIT.
func (s *POP3) ask() {
	if len(s.marked()) > 0 {
		return
	}
	end := time.Now().Add(askTime)
	for most := 1; ; {
		begun := time.Now()
		commands := s.Watcher.Ask(most)
		if len(commands) == 0 || s.askAll(commands) != nil {
			return
		}
		took := time.Since(begun)
		if s.Pipelining {
			took, most = 2*took, min(2*most, maxPOP3Batch)
		}
		if time.Now().Add(took).After(end) {
			return
		}
	}
}

// askAll sends commands and reads the responses, which the client does not get. They must
// not be endless: the client waits for the answer to QUIT.
func (s *POP3) askAll(commands []string) error {
	end := time.Now().Add(s.timeout())
	if err := s.send(strings.Join(commands, "\r\n") + "\r\n"); err != nil {
		return err
	}
	for _, command := range commands {
		r := parsePOP3Request([]byte(command + "\r\n"))
		line, err := s.readLine(s.timeout())
		if err != nil {
			return err
		}
		ok, err := parsePOP3Response(line)
		if err != nil {
			return err
		}
		lines := s.watch(&r, ok)
		if !ok {
			continue
		}
		octets := 0
		_, err = s.readLines(func(some []byte) error {
			if octets += len(some); octets > maxAsk || time.Now().After(end) {
				return errAsked
			}
			if lines != nil {
				_, _ = lines.Write(some)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// passCapabilities passes the response to CAPA on, without what a client can do before a
// login: Postern is the server of that.
func (s *POP3) passCapabilities(r *pop3Request, first []byte) (ok bool, err error) {
	response := append([]byte(nil), first...)
	for range wire.MaxReplyLines {
		line, err := s.readLine(s.timeout())
		if err != nil {
			return false, s.lost(r, err)
		}
		word, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(string(line))), " ")
		switch word {
		case "STLS", "SASL", "USER":
			continue
		}
		if response = append(response, line...); word == "." {
			s.out = append(s.out, response...)
			return true, nil
		}
	}
	return false, s.lost(r, fmt.Errorf("more than %d lines of CAPA", wire.MaxReplyLines))
}

// lost refuses r, because the server is lost before its response, and returns the error
// that ends the session.
func (s *POP3) lost(r *pop3Request, err error) error {
	if errors.Is(err, proxy.ErrClientClosed) {
		return err
	}
	text := "The mail server is lost: try again later"
	if r.keyword == "QUIT" {
		text = "The mail server did not confirm that it has deleted messages"
		s.observe(proxy.UpdateFailed{Client: s.Client, Stage: proxy.StageExpunge, Err: err})
		s.watchQuit(false)
	}
	s.temporary(text)
	return fmt.Errorf("%w: %s: %w", proxy.ErrBackendClosed, r.keyword, err)
}

// cut cuts the connection to the client within a response, so that no client takes what it
// has got for all.
func (s *POP3) cut(r *pop3Request, err error) error {
	s.out = nil
	s.client.Abort()
	if errors.Is(err, proxy.ErrClientClosed) {
		return err
	}
	return fmt.Errorf("%w within a response to %s: %w", proxy.ErrBackendClosed, r.keyword, err)
}

// send sends commands. The server must not have sent anything before them.
func (s *POP3) send(lines string) error {
	if s.r < s.w {
		return errUnasked
	}
	if err := s.Conn.SetWriteDeadline(time.Now().Add(s.timeout())); err != nil {
		return err
	}
	_, err := s.Conn.Write([]byte(lines))
	return err
}

// readLine returns the next line of the server with its CRLF, valid until the next read.
func (s *POP3) readLine(timeout time.Duration) ([]byte, error) {
	for seen := 0; ; {
		if s.in != nil {
			ahead := s.in[s.r:s.w]
			if i := bytes.IndexByte(ahead[seen:], '\n'); i >= 0 {
				line := ahead[:seen+i+1]
				s.r += len(line)
				if len(line) > wire.MaxReplyLine || len(line) < 2 || line[len(line)-2] != '\r' {
					return nil, wire.ErrReply
				}
				return line, nil
			}
			if seen = len(ahead); seen >= wire.MaxReplyLine {
				return nil, wire.ErrReply
			}
		}
		if err := s.fill(timeout); err != nil {
			return nil, err
		}
	}
}

// fill reads once from the server. The client first gets what it has not got yet.
func (s *POP3) fill(timeout time.Duration) error {
	if err := s.flush(); err != nil {
		return err
	}
	if s.in == nil {
		s.in = buffers.Get().(*[bufferSize]byte)
	}
	if s.r > 0 {
		s.w = copy(s.in[:], s.in[s.r:s.w])
		s.r = 0
	}
	if err := s.Conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	n, err := s.Conn.Read(s.in[s.w:])
	s.w += n
	if n > 0 {
		return nil
	}
	return err
}

// releaseInput gives the buffer back while the client sends nothing. Octets that nobody has
// asked for stay, for send.
func (s *POP3) releaseInput() {
	if s.in != nil && s.r == s.w {
		buffers.Put(s.in)
		s.in, s.r, s.w = nil, 0, 0
	}
}

// write writes to the client, small parts together.
func (s *POP3) write(b []byte) error {
	if len(s.out)+len(b) <= maxPOP3Pending {
		s.out = append(s.out, b...)
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	return s.writeNow(b)
}

func (s *POP3) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	out := s.out
	s.out = nil
	return s.writeNow(out)
}

func (s *POP3) writeNow(b []byte) error {
	if _, err := s.client.Write(b); err != nil {
		return fmt.Errorf("%w: %w", proxy.ErrClientClosed, err)
	}
	return nil
}

func (s *POP3) refuse(text string) { s.out = append(s.out, "-ERR "+text+"\r\n"...) }

// temporary refuses with the code of RFC 3206 section 4, and the session id: a screenshot
// leads to the log.
func (s *POP3) temporary(text string) { s.refuse("[SYS/TEMP] " + s.Client.WithSessionID(text)) }

func (s *POP3) idle() time.Duration {
	if s.Idle == 0 {
		return proxy.DefaultPOP3Idle
	}
	return s.Idle
}

func (s *POP3) timeout() time.Duration {
	if s.Timeout == 0 {
		return proxy.DefaultReply
	}
	return s.Timeout
}

func (s *POP3) observe(e proxy.Event) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}
