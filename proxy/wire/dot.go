package wire

import (
	"bytes"
	"io"
)

// A DotWriter writes the body of a multi-line reply, RFC 1939 section 3. It
// changes nothing but what the protocol demands: a dot is doubled where a line
// begins with it, and a body that does not end in CRLF gets one.
//
// A line begins at the first octet, after CRLF, and after a bare LF: clients
// that take LF for a line end would see the end of the reply in "\n.\r\n".
type DotWriter struct {
	w      io.Writer
	octets int64
	inLine bool // the last octet written is no LF
	cr     bool // the last octet written is CR
	crlf   bool // the last two octets written are CRLF
}

// NewDotWriter returns a DotWriter that writes to w.
func NewDotWriter(w io.Writer) *DotWriter { return &DotWriter{w: w} }

var dot = []byte(".")

// Write writes a part of the body. The parts may be cut anywhere.
func (d *DotWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		rest := p[n:]
		if !d.inLine && rest[0] == '.' {
			if _, err := d.w.Write(dot); err != nil {
				return n, err
			}
		}
		if i := bytes.Index(rest, []byte("\n.")); i >= 0 {
			rest = rest[:i+1]
		}
		written, err := d.w.Write(rest)
		d.passed(rest[:written])
		n += written
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (d *DotWriter) passed(p []byte) {
	if len(p) == 0 {
		return
	}
	d.octets += int64(len(p))
	last := p[len(p)-1]
	if len(p) > 1 {
		d.cr = p[len(p)-2] == '\r'
	}
	d.crlf = last == '\n' && d.cr
	d.cr = last == '\r'
	d.inLine = last != '\n'
}

// Close ends the body and the reply. It does not close the writer below.
func (d *DotWriter) Close() error {
	end := []byte("\r\n.\r\n")
	if d.crlf {
		end = end[2:]
	} else {
		d.octets += 2
	}
	_, err := d.w.Write(end)
	return err
}

// Octets returns how many octets the body has so far, as RFC 1939 section 11
// counts them: without the doubled dots; after Close with the CRLF it added.
func (d *DotWriter) Octets() int64 { return d.octets }
