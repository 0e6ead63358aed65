package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// conn is a client connection to the measured server. It counts the bytes
// received and bounds every read and write in time.
type conn struct {
	raw     net.Conn
	tls     *tls.Conn // nil on a plaintext connection
	r       *bufio.Reader
	timeout time.Duration
	read    int64
}

// dial connects, and completes the TLS handshake unless -plain was given.
func dial(o *options, config *tls.Config, bufferSize int) (*conn, error) {
	d := net.Dialer{Timeout: o.timeout}
	raw, err := d.Dial("tcp", o.addr)
	if err != nil {
		return nil, err
	}
	c := &conn{raw: raw, timeout: o.timeout}
	if !o.plain {
		c.tls = tls.Client(raw, config)
		raw.SetDeadline(time.Now().Add(o.timeout))
		if err := c.tls.Handshake(); err != nil {
			raw.Close()
			return nil, err
		}
		c.raw = c.tls
	}
	c.r = bufio.NewReaderSize(c, bufferSize)
	return c, nil
}

func (c *conn) Read(p []byte) (int, error) {
	c.raw.SetReadDeadline(time.Now().Add(c.timeout))
	n, err := c.raw.Read(p)
	c.read += int64(n)
	return n, err
}

func (c *conn) write(s string) error {
	c.raw.SetWriteDeadline(time.Now().Add(c.timeout))
	_, err := c.raw.Write([]byte(s))
	return err
}

func (c *conn) writeBytes(p []byte) error {
	c.raw.SetWriteDeadline(time.Now().Add(c.timeout))
	_, err := c.raw.Write(p)
	return err
}

// line returns the next line with its line ending. The slice is valid until
// the next read.
func (c *conn) line() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = c.longLine(line)
	}
	return line, err
}

func (c *conn) longLine(start []byte) ([]byte, error) {
	whole := append([]byte(nil), start...)
	rest, err := c.r.ReadBytes('\n')
	return append(whole, rest...), err
}

func (c *conn) close() { c.raw.Close() }

// unexpected describes a reply that is not the one the protocol calls for.
func unexpected(what string, line []byte) error {
	if len(line) > 120 {
		line = line[:120]
	}
	return fmt.Errorf("%s: server said %q", what, line)
}
