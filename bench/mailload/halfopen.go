package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"time"
)

// runHalfOpen opens -k connections that send a whole ClientHello and then nothing,
// and prints the server's memory for each.
func runHalfOpen(o *options) error {
	server, err := findProcesses(o.pids)
	if err != nil {
		return err
	}
	want, err := strconv.Atoi(o.sessions)
	if err != nil {
		return err
	}
	hello := clientHello(o.tls)
	before, _ := server.memory()
	step := *o
	step.count, step.duration = want, 0
	var open connList
	defer open.closeAll()
	res, err := measure(&step, func(int) (int64, int, error) {
		c, err := net.DialTimeout("tcp", o.addr, o.timeout)
		if err != nil {
			return 0, 0, err
		}
		open.add(c)
		_, err = c.Write(hello)
		return int64(len(hello)), 0, err
	})
	if err != nil {
		return err
	}
	time.Sleep(o.settle)
	res.PSSBefore = before
	res.PSS, res.Processes = server.memory()
	res.KBPerSess = round(float64(res.PSS-before) / float64(max(res.Ops, 1)))
	return res.print()
}

// clientHello returns the first flight of a handshake.
func clientHello(config *tls.Config) []byte {
	var c recordingConn
	_ = tls.Client(&c, config).Handshake() // fails: nobody answers
	return c.Bytes()
}

// A recordingConn keeps what is written and has nothing to read.
type recordingConn struct {
	net.Conn
	bytes.Buffer
}

var errRecorded = errors.New("recorded")

func (c *recordingConn) Read([]byte) (int, error)         { return 0, errRecorded }
func (c *recordingConn) Write(p []byte) (int, error)      { return c.Buffer.Write(p) }
func (c *recordingConn) Close() error                     { return nil }
func (c *recordingConn) SetDeadline(time.Time) error      { return nil }
func (c *recordingConn) SetReadDeadline(time.Time) error  { return nil }
func (c *recordingConn) SetWriteDeadline(time.Time) error { return nil }

// connList is the set of connections held open.
type connList struct{ sessionList }

func (l *connList) add(c net.Conn) { l.sessionList.add(plainConn{c}) }

// plainConn is a connection on which nobody has logged in.
type plainConn struct{ net.Conn }

func (c plainConn) logout() error { return c.Close() }
func (c plainConn) close()        { _ = c.Close() }
