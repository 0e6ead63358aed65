package listen

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"

	"postern/proxy"
)

// The limits of a PROXY header: v1 is a line, v2 a frame with its length.
const (
	maxV1     = 107                       // octets with the line end: section 2.1 of the specification
	fixedV2   = 16                        // octets before the addresses: section 2.2
	maxV2     = 4 << 10                   // octets after them: the longest contain a client certificate
	v1        = "PROXY "                  // what a header of version 1 begins with
	signature = len(proxy.ProxySignature) // octets that distinguish the versions; shorter than every header
)

// A ProxyListener is a listener behind load balancers. Connections from trusted
// networks begin with a PROXY header, v1 or v2, that names the client. All others
// begin with the client's own octets, and a header in them is not read as one.
type ProxyListener struct {
	net.Listener
	trusted atomic.Pointer[[]netip.Prefix]
}

// Proxied returns a ProxyListener on ln for balancers in the trusted networks.
func Proxied(ln net.Listener, trusted []netip.Prefix) *ProxyListener {
	l := &ProxyListener{Listener: ln}
	l.Trust(trusted)
	return l
}

// Trust replaces the trusted networks for new connections.
func (l *ProxyListener) Trust(networks []netip.Prefix) { l.trusted.Store(&networks) }

// Accept implements net.Listener.
func (l *ProxyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok || !l.trusts(tcp.RemoteAddr()) {
		return c, nil
	}
	return &proxiedConn{tcp}, nil
}

func (l *ProxyListener) trusts(peer net.Addr) bool {
	addr := proxy.AddrPort(peer).Addr()
	for _, network := range *l.trusted.Load() {
		if network.Contains(addr) {
			return true
		}
	}
	return false
}

// A proxiedConn is a connection from a load balancer. Nothing after the header is
// read ahead, so it is otherwise the TCP connection.
type proxiedConn struct{ *net.TCPConn }

// ProxyHeader reads the header and returns the addresses of the client and of the
// server it connected to. An error wraps proxy.ErrProxyHeader; io.EOF means that a
// balancer only checked the port. The deadline stays set: the next read sets its
// own.
func (p *proxiedConn) ProxyHeader(deadline time.Time) (client, local netip.AddrPort, err error) {
	if err := p.SetReadDeadline(deadline); err != nil {
		return client, local, err
	}
	header, err := readHeader(p.TCPConn)
	if errors.Is(err, io.EOF) {
		return client, local, err
	}
	if err == nil {
		client, local, err = parseHeader(header)
	}
	if errors.Is(err, proxy.ErrProxyHeader) {
		return client, local, err
	}
	if err != nil {
		return client, local, fmt.Errorf("%w: %w", proxy.ErrProxyHeader, err)
	}
	if !client.IsValid() { // a health check of the balancer
		client, local = proxy.AddrPort(p.RemoteAddr()), proxy.AddrPort(p.LocalAddr())
	}
	return client, local, nil
}

// readHeader reads a header and no octet more. io.EOF: the connection was closed
// before it.
func readHeader(r io.Reader) ([]byte, error) {
	header := make([]byte, signature, maxV1)
	if n, err := io.ReadFull(r, header); err != nil {
		return nil, noHeader(header[:n], err)
	}
	if string(header) == proxy.ProxySignature {
		return readV2(r, header)
	}
	if !bytes.HasPrefix(header, []byte(v1)) {
		return nil, proxy.ErrNoProxyHeader
	}
	for len(header) < maxV1 {
		header = header[:len(header)+1] // one by one: the octets after the line are the client's
		if err := readRest(r, header[len(header)-1:]); err != nil {
			return nil, err
		}
		if header[len(header)-1] == '\n' {
			return header, nil
		}
	}
	return nil, fmt.Errorf("line of more than %d octets", maxV1)
}

// noHeader returns the error of a connection on which no more than begun came before
// err.
func noHeader(begun []byte, err error) error {
	switch {
	case len(begun) == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)): // checks end so
		return io.EOF
	case len(begun) > 0 && (isPart(begun, v1) || isPart(begun, proxy.ProxySignature)):
		return err
	}
	return fmt.Errorf("%w: %w", proxy.ErrNoProxyHeader, err) // also a client that waits for a greeting
}

// isPart reports whether begun is the start of header, or begins with it.
func isPart(begun []byte, header string) bool {
	n := min(len(begun), len(header))
	return string(begun[:n]) == header[:n]
}

func readV2(r io.Reader, header []byte) ([]byte, error) {
	header = header[:fixedV2]
	if err := readRest(r, header[signature:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint16(header[fixedV2-2:])
	if length > maxV2 {
		return nil, fmt.Errorf("header of %d octets", length)
	}
	header = append(header, make([]byte, length)...)
	return header, readRest(r, header[fixedV2:])
}

// readRest fills b. The end of the connection is io.ErrUnexpectedEOF.
func readRest(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// parseHeader parses a complete header. A LOCAL header, and an UNKNOWN one of v1,
// has no addresses: those of the socket are valid (sections 2.1 and 2.2).
func parseHeader(header []byte) (client, local netip.AddrPort, err error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), len(header)))
	if err != nil {
		return client, local, err
	}
	if h.Command.IsLocal() {
		return client, local, nil
	}
	from, to, ok := h.TCPAddrs()
	if !ok {
		return client, local, errors.New("it is about no TCP connection")
	}
	if client, local = proxy.AddrPort(from), proxy.AddrPort(to); !client.IsValid() {
		return client, local, errors.New("it names no address")
	}
	return client, local, nil
}
