// Package oldserver is a client of the POP3 server that Postern replaces. It finds out
// what the users of that server have seen, so that they see it again.
//
// A Server opens a Maildrop, which lists messages and reads headers and whole messages by
// TOP. Carry finds the messages of a Maildrop among those of an Inbox, by Match, and
// makes the record of their UIDLs. CarryMaildir makes it from the files of the old server, and
// CarryList from a list. Compare says what two servers show in different ways.
package oldserver

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxReply    = 512     // octets of a line, RFC 2449 section 4; those of a listing are shorter
	maxMessages = 1 << 20 // of a maildrop
	maxSize     = 1 << 40 // octets of a message; maxMessages of them can be added up
	maxShown    = 100     // octets of a unique id, which may have 70, that are kept
	minSpeed    = 1 << 10 // octets a second that an answer has after its first minute
	// flight bounds the commands that are sent before their answers are read, to a server
	// with PIPELINING, RFC 2449 section 6.6.
	flight = 32
	// allLines asks TOP for the whole message. RETR would be remembered by servers that
	// delete what was retrieved.
	allLines = 999999999
	// slack is by how many octets a message may be longer than LIST says.
	slack = 1 << 20
	// aliveEvery is how often NOOP is sent while there is nothing to ask: servers end
	// sessions after a silence of 10 minutes, RFC 1939 section 3, and some sooner.
	aliveEvery = 30 * time.Second
	// saveEvery is how often headers that were read are saved.
	saveEvery = 5 * time.Second
)

// ErrAnswer is in the tree of an error about an answer from which nothing follows.
var ErrAnswer = errors.New("answer of the old server cannot be used")

var (
	errLineEnd  = errors.New("there is a line end in user or password")
	errLongLine = fmt.Errorf("server sends a line of more than %d octets", maxReply)
)

// A Refusal is an answer -ERR.
type Refusal struct {
	Command string // without arguments
	Text    string // as the server wrote it, without -ERR
}

// Error implements error.
func (r *Refusal) Error() string {
	return fmt.Sprintf("%s: the server said -ERR %.200q", r.Command, r.Text)
}

// Code returns the response code, RFC 2449 section 8, such as "IN-USE", or "".
func (r *Refusal) Code() string {
	response, _ := wire.ParsePOP3([]byte(wire.POP3Err + " " + r.Text))
	return response.Code
}

// temporary reports whether the code says that the same command succeeds later.
func (r *Refusal) temporary() bool {
	switch strings.ToUpper(r.Code()) {
	case "SYS/TEMP", "IN-USE", "LOGIN-DELAY":
		return true
	}
	return false
}

// A Server is the POP3 server that Postern replaces.
type Server struct {
	// Dial connects. The connection is TLS, unless StartTLS is set or the server is on
	// this machine: PASS sends the password as it is.
	Dial     func(ctx context.Context) (net.Conn, error)
	StartTLS *tls.Config // TLS by STLS, RFC 2595; nil: none
	// Timeout is the longest silence of the server, and how long an answer may take beside
	// a second for each KiB; 0: a minute.
	Timeout time.Duration

	// Pace is called before n commands for messages are sent, and waits until they may be.
	// nil: at once.
	Pace func(ctx context.Context, n int) error
}

// A Message is a message of a maildrop.
type Message struct {
	Number int
	UIDL   string // as the server shows it, valid or not, up to 100 octets; "": it shows none
	Size   int64  // octets, as LIST says
}

// A Maildrop is a session in the TRANSACTION state, RFC 1939. It sends neither RETR nor
// DELE. Its methods are for one goroutine at a time.
type Maildrop struct {
	Messages []Message // ascending by Number

	server    *Server
	conn      net.Conn
	text      *textproto.Reader
	pipelined bool
	kept      *Headers // nil: none are kept
	shared    map[int]bool
	save      func() // saves kept
	saved     time.Time
	stop      func() bool
	begun     time.Time // of the answer that is read
	octets    int64     // of that answer
}

// Open logs in and lists the maildrop. An error has a *Refusal if the server refused, or
// ErrAnswer. ctx is for the whole session: its end closes the connection.
func (s *Server) Open(ctx context.Context, user string, secret *proxy.Secret) (*Maildrop, error) {
	if strings.ContainsAny(user, "\r\n") || strings.ContainsAny(string(secret.Reveal()), "\r\n") {
		return nil, errLineEnd
	}
	conn, err := s.Dial(ctx)
	if err != nil {
		return nil, err
	}
	d := s.session(ctx, conn)
	return d.begin(ctx, func() error { return d.logIn(ctx, user, secret) })
}

// Attach is Open for a session of which the login is over, such as one of Postern's own.
func (s *Server) Attach(ctx context.Context, conn net.Conn) (*Maildrop, error) {
	d := s.session(ctx, conn)
	return d.begin(ctx, d.capabilities)
}

func (s *Server) session(ctx context.Context, conn net.Conn) *Maildrop {
	d := &Maildrop{server: s, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	d.use(conn)
	return d
}

// begin makes the session one of the maildrop that logIn opens.
func (d *Maildrop) begin(ctx context.Context, logIn func() error) (*Maildrop, error) {
	err := logIn()
	if err == nil {
		err = d.list()
	}
	if err != nil {
		d.Abandon()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return d, nil
}

func (d *Maildrop) use(conn net.Conn) {
	d.conn = conn
	d.text = textproto.NewReader(bufio.NewReaderSize(conn, 16<<10))
}

// Close ends the session with RSET and QUIT, after which the server has deleted and marked
// nothing. An error says that the server did not confirm this.
func (d *Maildrop) Close() error {
	defer d.Abandon()
	_, reset := d.command("RSET", "RSET")
	_, quit := d.command("QUIT", "QUIT")
	return errors.Join(reset, quit)
}

// Abandon closes the connection without QUIT.
func (d *Maildrop) Abandon() {
	d.stop()
	_ = d.conn.Close()
}

func (d *Maildrop) logIn(ctx context.Context, user string, secret *proxy.Secret) error {
	if _, err := d.reply("greeting"); err != nil {
		return err
	}
	if d.server.StartTLS != nil {
		if err := d.startTLS(ctx); err != nil {
			return err
		}
	}
	if _, err := d.command("USER", "USER "+user); err != nil {
		return err
	}
	if _, err := d.command("PASS", "PASS "+string(secret.Reveal())); err != nil {
		return withoutSecret(err, secret)
	}
	return d.capabilities()
}

// withoutSecret returns the error of an answer to PASS without text of the server that has the
// password in it: the error is printed, and kept in files.
func withoutSecret(err error, secret *proxy.Secret) error {
	refusal, refused := errors.AsType[*Refusal](err)
	if !refused {
		if errors.Is(err, ErrAnswer) {
			return fmt.Errorf("%w: PASS", ErrAnswer)
		}
		return err
	}
	password := plain(string(secret.Reveal()))
	if password != "" && !strings.Contains(plain(refusal.Text), password) {
		return err
	}
	text := "its text is left out, because the password is in it"
	if code := refusal.Code(); code != "" && !strings.Contains(plain(code), password) {
		text = "[" + code + "] " + text
	}
	return &Refusal{Command: refusal.Command, Text: text}
}

// plain returns text in lower case, and without white space, controls and backslashes.
func plain(text string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if r == '\\' || unicode.IsSpace(r) || unicode.IsControl(r) {
			return -1
		}
		return r
	}, text))
}

// capabilities learns what the server can do after login.
func (d *Maildrop) capabilities() error {
	const most = 1000
	_, err := d.linesUpTo(most, "CAPA", func(line string) error {
		d.pipelined = d.pipelined || strings.EqualFold(strings.TrimSpace(line), "PIPELINING")
		return nil
	})
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		return nil // a server from before RFC 2449
	}
	return err
}

func (d *Maildrop) startTLS(ctx context.Context) error {
	if _, err := d.command("STLS", "STLS"); err != nil {
		return err
	}
	if n := d.text.R.Buffered(); n > 0 { // injected before TLS, RFC 3207 section 6
		return fmt.Errorf("%w: %d octets came between STLS and TLS", ErrAnswer, n)
	}
	conn := tls.Client(d.conn, d.server.StartTLS)
	if err := d.deadline(); err != nil {
		return err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS after STLS: %w", err)
	}
	d.use(conn)
	return nil
}

// list reads STAT, LIST and UIDL, which must agree about the messages.
func (d *Maildrop) list() error {
	stat, err := d.command("STAT", "STAT")
	if err != nil {
		return err
	}
	word, _, _ := strings.Cut(stat, " ")
	count, err := strconv.Atoi(word)
	if err != nil || count < 0 || count > maxMessages {
		return fmt.Errorf("%w: STAT: %.100q", ErrAnswer, stat)
	}
	d.Messages = make([]Message, count)
	err = d.listing("LIST", func(m *Message, text string) (err error) {
		word, _, _ := strings.Cut(text, " ")
		if m.Size, err = strconv.ParseInt(word, 10, 64); err != nil || m.Size < 0 || m.Size > maxSize {
			return fmt.Errorf("%w: LIST: message %d has the size %.100q", ErrAnswer, m.Number, text)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.listing("UIDL", func(m *Message, text string) error {
		m.UIDL = strings.Clone(text[:min(len(text), maxShown)])
		return nil
	})
}

// listing calls set with what LIST or UIDL says of each message. A session begins with no
// message deleted, so the numbers are those from 1 on, RFC 1939 section 4. A server that
// lists fewer has not answered.
func (d *Maildrop) listing(command string, set func(m *Message, text string) error) error {
	seen := make([]bool, len(d.Messages))
	n, err := d.linesUpTo(len(seen), command, func(line string) error {
		word, text, _ := strings.Cut(line, " ")
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > len(seen) || seen[n-1] {
			return fmt.Errorf("%w: %s: %.100q", ErrAnswer, command, line)
		}
		seen[n-1], d.Messages[n-1].Number = true, n
		return set(&d.Messages[n-1], strings.TrimSpace(text))
	})
	if err == nil && n < len(seen) {
		err = fmt.Errorf("%w: %s shows %d messages, STAT %d", ErrAnswer, command, n, len(seen))
	}
	return err
}

// deadline sets the time until which the server must say something: silence is bounded, and
// so is the time of an answer that comes drop by drop.
func (d *Maildrop) deadline() error {
	timeout := cmp.Or(d.server.Timeout, time.Minute)
	at := time.Now().Add(timeout)
	if end := d.begun.Add(timeout + time.Duration(d.octets/minSpeed)*time.Second); !d.begun.IsZero() && end.Before(at) {
		at = end
	}
	return d.conn.SetDeadline(at)
}

// beginAnswer begins to count the time and the octets of an answer.
func (d *Maildrop) beginAnswer() { d.begun, d.octets = time.Now(), 0 }

func (d *Maildrop) send(lines string) error {
	d.beginAnswer()
	if err := d.deadline(); err != nil {
		return err
	}
	_, err := io.WriteString(d.conn, lines)
	return err
}

// command sends a command and returns the text after +OK. name stands in errors: the
// line may have the password.
func (d *Maildrop) command(name, line string) (string, error) {
	if err := d.send(line + "\r\n"); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return d.reply(name)
}

func (d *Maildrop) reply(name string) (string, error) {
	d.beginAnswer()
	line, err := d.line()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if text, ok := strings.CutPrefix(line, "+OK"); ok {
		return strings.TrimSpace(text), nil
	}
	if text, ok := strings.CutPrefix(line, "-ERR"); ok {
		return "", &Refusal{Command: name, Text: strings.TrimSpace(text)}
	}
	return "", fmt.Errorf("%w: %s: %.100q", ErrAnswer, name, line)
}

// line returns a line of up to maxReply octets.
func (d *Maildrop) line() (string, error) {
	if err := d.deadline(); err != nil {
		return "", err
	}
	line, err := d.text.R.ReadSlice('\n')
	d.octets += int64(len(line))
	switch {
	case errors.Is(err, io.EOF):
		return "", io.ErrUnexpectedEOF
	case errors.Is(err, bufio.ErrBufferFull) || err == nil && len(line) > maxReply:
		return "", errLongLine
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// linesUpTo sends a command, calls each for the lines of its answer, and returns their
// number, which is up to most.
func (d *Maildrop) linesUpTo(most int, command string, each func(line string) error) (n int, err error) {
	if _, err := d.command(command, command); err != nil {
		return 0, err
	}
	for ; ; n++ {
		line, err := d.line()
		if err != nil {
			return n, fmt.Errorf("%s: %w", command, err)
		}
		if line == "." {
			return n, nil
		}
		if n == most {
			return n, fmt.Errorf("%w: %s has more than %d lines", ErrAnswer, command, most)
		}
		if err := each(strings.TrimPrefix(line, ".")); err != nil {
			return n, err
		}
	}
}

// Keep makes Headers take from h what is there, and put there what it reads. save is
// called every 5 seconds in which something was read; what was read since then is in h.
func (d *Maildrop) Keep(h *Headers, save func()) {
	h.Confirm(d.Messages)
	d.kept, d.save, d.saved, d.shared = h, save, time.Now(), sharedUIDLs(d.Messages)
}

// keep keeps the header of a message, unless it shares its UIDL with another one.
func (d *Maildrop) keep(i int, h Header) {
	if d.kept == nil || d.shared[i] || !d.kept.Put(d.Messages[i], h) {
		return
	}
	if time.Since(d.saved) >= saveEvery {
		d.save()
		d.saved = time.Now()
	}
}

// Headers returns the headers of messages by their index in Messages, as a Side does.
func (d *Maildrop) Headers(ctx context.Context, indexes []int) ([]Header, error) {
	all := make([]Header, len(indexes))
	var unread, places []int
	for k, i := range indexes {
		if d.kept != nil && !d.shared[i] {
			all[k] = d.kept.Get(d.Messages[i])
		}
		if !all[k].Known {
			unread, places = append(unread, i), append(places, k)
		}
	}
	err := d.top(ctx, unread, 0, func(k int, body io.Reader) error {
		var hash uidl.HeaderHash
		if _, err := io.Copy(&hash, body); err != nil {
			return err
		}
		hash.End()
		h := Header{Known: true, Hash: hash.Sum(), Distinct: hash.Distinct()}
		all[places[k]] = h
		d.keep(unread[k], h)
		return nil
	})
	return all, err
}

// Meanwhile calls f, which does not use d, and keeps the session alive by NOOP until f
// returns.
func (d *Maildrop) Meanwhile(f func() error) error {
	var alive sync.WaitGroup
	defer alive.Wait()
	done := make(chan struct{})
	defer close(done)
	alive.Go(func() {
		tick := time.NewTicker(aliveEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if _, err := d.command("NOOP", "NOOP"); err != nil {
				_ = d.conn.Close() // a late answer must not be taken for that of the next command
				return
			}
		}
	})
	return f()
}

// Contents returns the hashes of whole messages by their index in Messages, as a Side
// does.
func (d *Maildrop) Contents(ctx context.Context, indexes []int) ([]Sum, error) {
	all := make([]Sum, len(indexes))
	err := d.top(ctx, indexes, allLines, func(k int, body io.Reader) error {
		var hash uidl.ContentHash
		if _, err := io.Copy(&hash, body); err != nil {
			return err
		}
		all[k] = hash.Sum()
		return nil
	})
	return all, err
}

// top sends TOP for messages and calls read for the message of each +OK. A message that
// the server refuses is left out, unless the code says that the refusal is temporary: that is an error.
func (d *Maildrop) top(ctx context.Context, indexes []int, lines int, read func(k int, body io.Reader) error) error {
	most := 1
	if d.pipelined {
		most = flight
	}
	done := 0
	for some := range slices.Chunk(indexes, most) {
		if d.server.Pace != nil {
			if err := d.server.Pace(ctx, len(some)); err != nil {
				return err
			}
		}
		var commands strings.Builder
		for _, i := range some {
			fmt.Fprintf(&commands, "TOP %d %d\r\n", d.Messages[i].Number, lines)
		}
		d.beginAnswer()
		if err := d.deadline(); err != nil {
			return fmt.Errorf("TOP: %w", err)
		}
		// A server may answer the first command before it reads the others.
		sent := make(chan error, 1)
		go func(conn io.Writer) {
			_, err := io.WriteString(conn, commands.String())
			sent <- err
		}(d.conn)
		for _, i := range some {
			if err := d.readTop(i, done, read); err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return err
			}
			done++
		}
		if err := <-sent; err != nil {
			return fmt.Errorf("TOP: %w", err)
		}
	}
	return nil
}

func (d *Maildrop) readTop(i, k int, read func(k int, body io.Reader) error) error {
	_, err := d.reply("TOP")
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) && !refusal.temporary() {
		return nil
	}
	if err != nil {
		return err
	}
	body := &boundedReader{r: d.text.DotReader(), left: d.Messages[i].Size + slack, maildrop: d}
	if err := read(k, body); err != nil {
		return fmt.Errorf("TOP: message %d: %w", d.Messages[i].Number, err)
	}
	return nil
}

// A boundedReader ends with an error after left octets, and before each read sets the
// deadline.
type boundedReader struct {
	r        io.Reader
	left     int64
	maildrop *Maildrop
}

// Read implements io.Reader.
func (b *boundedReader) Read(p []byte) (int, error) {
	if err := b.maildrop.deadline(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.maildrop.octets += int64(n)
	if b.left -= int64(n); b.left < 0 {
		return n, fmt.Errorf("%w: it is longer than LIST says", ErrAnswer)
	}
	return n, err
}

// Side returns the maildrop for Match.
func (d *Maildrop) Side() Side {
	s := Side{Headers: d.Headers, Contents: d.Contents, Sizes: make([]int64, len(d.Messages))}
	for i, m := range d.Messages {
		s.Sizes[i] = m.Size
	}
	return s
}

// Pipelined reports whether the server takes commands before it has answered those
// before.
func (d *Maildrop) Pipelined() bool { return d.pipelined }
