package proxytest

import (
	"bufio"
	"bytes"
	"crypto/md5" //nolint:gosec // as popa3d and others make their UIDLs
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A POP3Message is a message of a POP3Server.
type POP3Message struct {
	UIDL string // "": the MD5 sum of the message
	Raw  string // with CRLF, and without dot-stuffing
	Size int64  // that LIST shows; 0: the octets of Raw
}

// A POP3Server is an old POP3 server in memory, on 127.0.0.1 without TLS. Its fields must
// not change after the first session.
type POP3Server struct {
	Addr       string
	Password   string // of all users
	Pipelining bool   // CAPA has PIPELINING; else a command that comes before the answer to the one before ends the session
	NoTop      bool   // TOP is refused

	rtt       atomic.Int64 // nanoseconds before each answer
	mu        sync.Mutex
	maildrops map[string][]POP3Message
	commands  map[string]int
}

// StartPOP3Server starts a server; the end of the test stops it.
func StartPOP3Server(t testing.TB) *POP3Server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &POP3Server{Addr: ln.Addr().String(), Password: "secret", maildrops: make(map[string][]POP3Message), commands: make(map[string]int)}
	var sessions sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		sessions.Wait()
	})
	sessions.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() {
				defer func() { _ = conn.Close() }()
				s.serve(conn)
			})
		}
	})
	return s
}

// SetMaildrop sets the messages of a user, for the next session.
func (s *POP3Server) SetMaildrop(user string, messages []POP3Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maildrops[user] = messages
}

// Remove removes the maildrop of a user: the user cannot log in any more.
func (s *POP3Server) Remove(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.maildrops, user)
}

// Commands returns how often a command came.
func (s *POP3Server) Commands(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commands[name]
}

// SetRTT sets the time before each answer, also of sessions that are open.
func (s *POP3Server) SetRTT(d time.Duration) { s.rtt.Store(int64(d)) }

func (s *POP3Server) serve(conn net.Conn) {
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	_, _ = out.WriteString("+OK old server\r\n")
	user, messages, loggedIn := "", []POP3Message(nil), false
	deleted := make(map[int]bool)
	for {
		if in.Buffered() == 0 {
			time.Sleep(time.Duration(s.rtt.Load()))
			if out.Flush() != nil {
				return
			}
		} else if !s.Pipelining {
			return
		}
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		words := append(strings.Fields(line), "", "", "")
		name := strings.ToUpper(words[0])
		s.mu.Lock()
		s.commands[name]++
		s.mu.Unlock()
		switch {
		case name == "QUIT":
			s.remove(user, messages, deleted)
			_, _ = out.WriteString("+OK\r\n")
			_ = out.Flush()
			return
		case name == "USER":
			user = words[1]
			_, _ = out.WriteString("+OK\r\n")
		case name == "PASS":
			s.mu.Lock()
			messages, loggedIn = s.maildrops[user]
			s.mu.Unlock()
			_, password, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ") // spaces belong to it: RFC 1939 section 7
			if loggedIn = loggedIn && password == s.Password; loggedIn {
				_, _ = out.WriteString("+OK\r\n")
			} else {
				_, _ = out.WriteString("-ERR wrong\r\n")
			}
		case name == "CAPA":
			_, _ = out.WriteString("+OK\r\nTOP\r\nUIDL\r\n")
			if s.Pipelining {
				_, _ = out.WriteString("PIPELINING\r\n")
			}
			_, _ = out.WriteString(".\r\n")
		case !loggedIn:
			_, _ = out.WriteString("-ERR log in first\r\n")
		case name == "RSET":
			clear(deleted)
			_, _ = out.WriteString("+OK\r\n")
		case name == "DELE":
			n, _ := strconv.Atoi(words[1])
			if n < 1 || n > len(messages) || deleted[n] {
				_, _ = out.WriteString("-ERR\r\n")
				break
			}
			deleted[n] = true
			_, _ = out.WriteString("+OK\r\n")
		default:
			s.answer(out, name, words, messages, deleted)
		}
	}
}

// remove removes what a session has deleted.
func (s *POP3Server) remove(user string, messages []POP3Message, deleted map[int]bool) {
	if len(deleted) == 0 {
		return
	}
	var left []POP3Message
	for i, m := range messages {
		if !deleted[i+1] {
			left = append(left, m)
		}
	}
	s.SetMaildrop(user, left)
}

// answer answers a command of the TRANSACTION state.
func (s *POP3Server) answer(out *bufio.Writer, name string, words []string, messages []POP3Message, deleted map[int]bool) {
	n, _ := strconv.Atoi(words[1])
	switch {
	case name == "STAT":
		total := int64(0)
		for _, m := range messages {
			total += m.size()
		}
		_, _ = fmt.Fprintf(out, "+OK %d %d\r\n", len(messages), total)
	case (name == "LIST" || name == "UIDL") && n > 0 && n <= len(messages) && !deleted[n]:
		_, _ = fmt.Fprintf(out, "+OK %d %s\r\n", n, messages[n-1].shown(name))
	case (name == "LIST" || name == "UIDL") && words[1] == "":
		_, _ = out.WriteString("+OK\r\n")
		for i, m := range messages {
			if deleted[i+1] {
				continue
			}
			_, _ = fmt.Fprintf(out, "%d %s\r\n", i+1, m.shown(name))
		}
		_, _ = out.WriteString(".\r\n")
	case name == "NOOP":
		_, _ = out.WriteString("+OK\r\n")
	case n < 1 || n > len(messages) || deleted[n] || name != "TOP" && name != "RETR" || name == "TOP" && s.NoTop:
		_, _ = out.WriteString("-ERR\r\n")
	default:
		lines := -1
		if name == "TOP" {
			lines, _ = strconv.Atoi(words[2])
		}
		writeTop(out, messages[n-1].Raw, lines)
	}
}

// writeTop writes the header and some lines of a message; -1: all lines.
func writeTop(out *bufio.Writer, raw string, lines int) {
	_, _ = out.WriteString("+OK\r\n")
	body := false
	for line := range bytes.Lines([]byte(raw)) {
		if body {
			if lines == 0 {
				break
			}
			lines--
		}
		line = bytes.TrimRight(line, "\r\n")
		body = body || len(line) == 0
		if bytes.HasPrefix(line, []byte(".")) {
			_ = out.WriteByte('.')
		}
		_, _ = out.Write(append(line, "\r\n"...))
	}
	_, _ = out.WriteString(".\r\n")
}

// shown returns what LIST or UIDL shows of the message.
func (m POP3Message) shown(command string) string {
	if command == "UIDL" {
		return m.uidl()
	}
	return strconv.FormatInt(m.size(), 10)
}

func (m POP3Message) size() int64 {
	if m.Size != 0 {
		return m.Size
	}
	return int64(len(m.Raw))
}

func (m POP3Message) uidl() string {
	if m.UIDL != "" {
		return m.UIDL
	}
	return fmt.Sprintf("%x", md5.Sum([]byte(m.Raw))) //nolint:gosec // no secret depends on it
}
