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
	"time"

	"github.com/pires/go-proxyproto"

	"postern/proxy"
)

// Bounds of a PROXY header: v1 is one line, v2 a frame with its length in it.
const (
	maxV1     = 107        // octets, with the line end: section 2.1 of the specification
	fixedV2   = 16         // octets before the addresses: section 2.2
	maxV2     = 4 << 10    // octets behind them: the client certificate of a balancer's TLS is the longest there is
	signature = len(magic) // octets that tell the versions apart, and less than the shortest header
	magic     = "\r\n\r\n\x00\r\nQUIT\n"
)

// A ProxyListener is a listener behind load balancers. Connections from their
// networks begin with a PROXY header, v1 or v2, that says whom they are from;
// all others with the client's own words, of which a header is none.
type ProxyListener struct {
	net.Listener
	trusted atomic.Pointer[[]netip.Prefix]
}

// Proxied returns a ProxyListener on ln for balancers in the networks trusted.
func Proxied(ln net.Listener, trusted []netip.Prefix) *ProxyListener {
	l := &ProxyListener{Listener: ln}
	l.Trust(trusted)
	return l
}

// Trust replaces the networks, for connections that come from now on.
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
	return &proxied{tcp}, nil
}

func (l *ProxyListener) trusts(peer net.Addr) bool {
	addr := addrPort(peer).Addr()
	for _, network := range *l.trusted.Load() {
		if network.Contains(addr) {
			return true
		}
	}
	return false
}

// proxied is a connection from a load balancer. Nothing behind the header is
// read, so it is in all other ways the TCP connection.
type proxied struct{ *net.TCPConn }

// Preface reads the header and returns whom the connection is from and whom it
// was meant for. An error wraps proxy.ErrPreface, but for io.EOF of a balancer
// that only looks whether somebody listens. The deadline stays set: the next
// who reads has one of its own.
func (p *proxied) Preface(deadline time.Time) (client, local netip.AddrPort, err error) {
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
	if err != nil {
		return client, local, fmt.Errorf("%w: %w", proxy.ErrPreface, err)
	}
	if !client.IsValid() { // the balancer speaks for itself, to see how we are
		client, local = addrPort(p.RemoteAddr()), addrPort(p.LocalAddr())
	}
	return client, local, nil
}

// readHeader reads a header and no octet more. io.EOF: there was none at all.
func readHeader(r io.Reader) ([]byte, error) {
	header := make([]byte, signature, maxV1)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	if string(header) == magic {
		return readV2(r, header)
	}
	if !bytes.HasPrefix(header, []byte("PROXY ")) {
		return nil, errors.New("it does not begin with one")
	}
	for len(header) < maxV1 {
		header = header[:len(header)+1] // one by one: where the line ends, others' octets begin
		if err := readRest(r, header[len(header)-1:]); err != nil {
			return nil, err
		}
		if header[len(header)-1] == '\n' {
			return header, nil
		}
	}
	return nil, fmt.Errorf("line of more than %d octets", maxV1)
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

// readRest fills b. An end is not one between headers.
func readRest(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// parseHeader reads a complete header. No addresses: it is a LOCAL one, or the
// UNKNOWN of v1, sections 2.1 and 2.2: those of the socket hold.
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
	if client, local = addrPort(from), addrPort(to); !client.IsValid() {
		return client, local, errors.New("it names no address")
	}
	return client, local, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
