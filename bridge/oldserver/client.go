// Package oldserver is a client of the POP3 server that Postern replaces. Client
// asks it for what its users have seen.
package oldserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
	"time"

	"postern/proxy"
)

const (
	maxReply    = 512         // octets of a line, RFC 2449 section 4; those of a UIDL listing are shorter
	maxMessages = 4 << 20     // of a maildrop
	sessionTime = time.Minute // of a whole session
)

var (
	errLineEnd  = errors.New("there is a line end in user or password")
	errLongLine = fmt.Errorf("server sends a line of more than %d octets", maxReply)
	errTooMany  = fmt.Errorf("more than %d messages", maxMessages)
)

// UIDLs logs in to a POP3 server and returns the UIDLs of a maildrop, in the order of
// its messages. conn is new, and must be TLS: the password is sent with PASS. It ends
// within a minute, and does not close conn, unless ctx ends.
func UIDLs(ctx context.Context, conn net.Conn, user string, secret *proxy.Secret) ([]string, error) {
	if strings.ContainsAny(user, "\r\n") || strings.ContainsAny(string(secret.Reveal()), "\r\n") {
		return nil, errLineEnd
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(sessionTime)); err != nil {
		return nil, err
	}
	c := client{textproto.NewConn(&boundedConn{ReadWriteCloser: conn})}
	ids, err := c.uidls(user, secret)
	if err != nil {
		return nil, fmt.Errorf("UIDLs of the old server: %w", err)
	}
	_ = c.command("QUIT", "QUIT")
	return ids, nil
}

// A client is a session with a POP3 server.
type client struct{ text *textproto.Conn }

func (c client) uidls(user string, secret *proxy.Secret) (ids []string, err error) {
	if err := c.reply("greeting"); err != nil {
		return nil, err
	}
	if err := c.command("USER", "USER %s", user); err != nil {
		return nil, err
	}
	if err := c.command("PASS", "PASS %s", secret.Reveal()); err != nil {
		return nil, err
	}
	if err := c.command("UIDL", "UIDL"); err != nil {
		return nil, err
	}
	for {
		line, err := c.text.ReadLine()
		if err != nil {
			return nil, err
		}
		if line == "." {
			return ids, nil
		}
		if len(ids) == maxMessages {
			return nil, errTooMany
		}
		_, id, _ := strings.Cut(line, " ")
		id, _, _ = strings.Cut(strings.TrimSpace(id), " ")
		ids = append(ids, id)
	}
}

// command sends a line, and wants +OK. The name of the command is for the error: the
// line may have the password.
func (c client) command(name, format string, args ...any) error {
	if err := c.text.PrintfLine(format, args...); err != nil {
		return err
	}
	return c.reply(name)
}

func (c client) reply(to string) error {
	line, err := c.text.ReadLine()
	if err == nil && !strings.HasPrefix(line, "+OK") {
		err = fmt.Errorf("%s: server said %q", to, line)
	}
	return err
}

// A boundedConn is a connection on which no line is longer than maxReply: textproto
// has no limit.
type boundedConn struct {
	io.ReadWriteCloser
	octets int // of the line that is read
}

// Read implements io.Reader.
func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	for line := range bytes.Lines(p[:n]) {
		if c.octets += len(line); c.octets > maxReply {
			return 0, errLongLine
		}
		if line[len(line)-1] == '\n' {
			c.octets = 0
		}
	}
	return n, err
}
