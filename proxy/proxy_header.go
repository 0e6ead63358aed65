package proxy

import "bytes"

// ProxySignature is what a PROXY header of version 2 begins with.
const ProxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// BeginsProxyHeader reports whether read, and what is buffered after it, are the
// first octets of a PROXY header. A header that follows one of a trusted balancer
// is the client's own and is not recognised: nobody should learn from it whom to
// trust.
func (c *Conn) BeginsProxyHeader(read []byte) bool {
	return c.beginsProxyHeader(append(bytes.Clone(read), c.buf[c.r:c.w]...))
}

// beginsProxyHeader needs 5 octets, as many as the header of a TLS record has.
func (c *Conn) beginsProxyHeader(b []byte) bool {
	const least = 5
	if _, ok := c.transport.Conn.(proxyHeaderReader); ok || len(b) < least {
		return false
	}
	if n := min(len(b), len(ProxySignature)); string(b[:n]) == ProxySignature[:n] {
		return true
	}
	for _, line := range []string{"PROXY TCP4 ", "PROXY TCP6 ", "PROXY UNKNOWN"} {
		if n := min(len(b), len(line)); string(b[:n]) == line[:n] {
			return true
		}
	}
	return false
}
