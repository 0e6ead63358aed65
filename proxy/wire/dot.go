package wire

import (
	"bytes"
	"io"
)

// A DotWriter writes the body of a multi-line response: RFC 1939 section 3. It
// changes only what the protocol requires: a dot at the begin of a line is
// doubled, and a body without CRLF at its end gets one.
//
// A line begins at the first octet, after CRLF, and after a bare LF: clients that
// read LF as a line end would take "\n.\r\n" for the end of the response.
type DotWriter struct {
	w      io.Writer
	octets int64
	inLine bool // the last octet was not LF
	cr     bool // the last octet was CR
	crlf   bool // the last two octets were CRLF
}

// NewDotWriter returns a DotWriter that writes to w.
func NewDotWriter(w io.Writer) *DotWriter { return &DotWriter{w: w} }

var dot = []byte(".")

// Write writes a part of the body, which may end anywhere.
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
		d.record(rest[:written])
		n += written
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// record updates the state after p was written.
func (d *DotWriter) record(p []byte) {
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

// Close ends the body and the response. It does not close the underlying writer.
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

// Octets returns the size of the body so far, as RFC 1939 section 11 counts it:
// without the added dots; after Close with an added CRLF.
func (d *DotWriter) Octets() int64 { return d.octets }
