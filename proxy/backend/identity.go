package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/listen"
	"postern/proxy/wire"
)

// An Identity is how Postern tells a server who the client is: without it, all
// connections come from Postern.
type Identity uint8

// The values of Identity. If the server does not offer it, it is left out and
// Identified is called with false. PROXY cannot be offered: the server must be
// configured to expect it.
const (
	Anonymous    Identity = iota // not at all
	ID                           // IMAP: x-originating-ip and more in ID (RFC 2971), as Dovecot's login_trusted_networks expects
	XCLIENT                      // submission: Postfix' XCLIENT; ManageSieve: Dovecot's; the server checks the password
	XCLIENTLogin                 // submission: XCLIENT with LOGIN, once Verify has checked the password
	ProxyV1                      // a PROXY header of version 1 on each connection
	ProxyV2                      // version 2, with the client's TLS server name
)

var identities = [...]string{
	Anonymous: "none", ID: "id", XCLIENT: "xclient", XCLIENTLogin: "xclient-login", ProxyV1: "proxy-v1", ProxyV2: "proxy-v2",
}

// String returns the identity's name in the configuration.
func (i Identity) String() string { return identities[i] }

// proxyHeader returns the PROXY header for client, or nil.
func (i Identity) proxyHeader(client proxy.Client) ([]byte, error) {
	switch i {
	case ProxyV1:
		return listen.Header(1, client)
	case ProxyV2:
		return listen.Header(2, client)
	}
	return nil, nil
}

// reportIdentified records whether the server offers Identity, and calls Identified.
func (s *Server) reportIdentified(ok bool) {
	s.identityRefused.Store(!ok)
	if s.Identified != nil {
		s.Identified(ok)
	}
}

// canIdentify reports whether the server can be told about l's client, and calls
// Identified. A client without an address is not identified.
func (s *Server) canIdentify(l *proxy.Login, offered bool) bool {
	if !l.Client.Addr.IsValid() {
		return false
	}
	s.reportIdentified(offered)
	return offered
}

// idFor returns the ID command for l's client, or nil if none is to be sent.
func (d *imap) idFor(tag string, l *proxy.Login, s *Server) []byte {
	if s.Identity != ID || !s.canIdentify(l, d.capabilities.has("ID")) {
		return nil
	}
	return idCommand(tag, l)
}

func idCommand(tag string, l *proxy.Login) []byte {
	line := append([]byte(tag), " ID ("...)
	for i, value := range idValues(l) {
		if i > 0 {
			line = append(line, ' ')
		}
		line = append(append(append(line, '"'), value...), '"')
	}
	return append(line, ")\r\n"...)
}

// sendProbeID sends the ID of a probe's client, and asks for the capabilities
// again. A server without ID gets none at a login either.
func (d *imap) sendProbeID(client proxy.Client, s *Server) error {
	if s.Identity != ID || !d.capabilities.has("ID") {
		return nil
	}
	tag := d.nextTag()
	if _, err := d.exchange(tag, nil, idCommand(tag, &proxy.Login{Client: client})); err != nil {
		return fmt.Errorf("ID: %w", err)
	}
	d.capabilities = nil
	return d.fetchCapabilities()
}

// clientKeys are the ID keys that a client may set: those of RFC 2971 section 3.3
// for its program. Others are dropped: servers trust some that begin with x-.
var clientKeys = []string{"name", "version", "os", "os-version", "vendor", "support-url"}

// idValues returns keys and values in turn, valid in quoted strings. The first
// ones are those that Dovecot's proxies send and its servers trust.
func idValues(l *proxy.Login) []string {
	const (
		mostValue = 128 // octets of a client's value; RFC 2971 allows 30 pairs of 1024 octets
		hops      = "5" // proxies until a loop is assumed: Dovecot's number
	)
	client, local := l.Client.Addr, l.Client.Local
	all := []string{
		"x-session-id", l.Client.ID,
		"x-originating-ip", addrString(client), "x-originating-port", portString(client),
		"x-connected-ip", addrString(local), "x-connected-port", portString(local),
		"x-proxy-ttl", hops,
	}
	for _, key := range clientKeys {
		if value := l.Hello.ID[key]; value != "" && len(value) <= mostValue && quotable([]byte(value)) {
			all = append(all, key, value)
		}
	}
	return all
}

func addrString(a netip.AddrPort) string { return a.Addr().Unmap().WithZone("").String() }
func portString(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }

// XCLIENT: https://www.postfix.org/XCLIENT_README.html
const (
	maxXCLIENT       = 512 // octets of a command
	maxAttribute     = 255 // octets of a value
	unavailableValue = "[UNAVAILABLE]"
	attributeLogin   = "LOGIN"
	attributeAddr    = "ADDR"
)

// xclientOffer returns the attributes that a server accepts, in upper case.
func xclientOffer(extensions []string) []string {
	params, _ := extension(extensions, "XCLIENT")
	return strings.Fields(strings.ToUpper(params))
}

// sendXCLIENT tells the server about l's client, which resets the session, and
// sends EHLO again: the client may be offered less.
func (d *smtp) sendXCLIENT(l *proxy.Login, s *Server) error {
	offered := xclientOffer(d.extensions)
	if s.Identity != XCLIENT || !s.canIdentify(l, slices.Contains(offered, attributeAddr)) {
		return nil
	}
	return d.xclient(xclientCommands(offered, l, d.names[0], false))
}

// sendProbeXCLIENT tells the server about the client of a probe.
func (d *smtp) sendProbeXCLIENT(client proxy.Client, s *Server) error {
	offered := xclientOffer(d.extensions)
	if s.Identity != XCLIENT && s.Identity != XCLIENTLogin || !slices.Contains(offered, attributeAddr) {
		return nil
	}
	if !client.Addr.IsValid() {
		own, err := netip.ParseAddrPort(d.conn.LocalAddr().String())
		if err != nil {
			return nil //nolint:nilerr // no IP address: there is no client to identify
		}
		client.Addr = own
	}
	return d.xclient(xclientCommands(offered, &proxy.Login{Client: client}, d.names[0], false))
}

// loginByXCLIENT logs l in without a password. Verify has confirmed the password.
func (d *smtp) loginByXCLIENT(l *proxy.Login, s *Server) error {
	begun := time.Now()
	err := d.xclient(xclientCommands(xclientOffer(d.extensions), l, d.names[0], true))
	if err != nil {
		err = s.unavailable(err)
	}
	s.reportLogin(begun, err)
	return err
}

// canLoginByXCLIENT reports whether loginByXCLIENT is possible. It needs ADDR:
// else the session would be one of Postern's own address, which may have more
// rights than the client.
func (d *smtp) canLoginByXCLIENT(l *proxy.Login, s *Server) bool {
	if s.Identity != XCLIENTLogin {
		return false
	}
	offered := xclientOffer(d.extensions)
	fits := len(wire.AppendXtext(nil, l.Account)) <= maxAttribute
	return s.canIdentify(l, fits && offersXCLIENTLogin(offered))
}

// offersXCLIENTLogin reports whether a server with these XCLIENT attributes can
// be told who has logged in.
func offersXCLIENTLogin(offered []string) bool {
	return slices.Contains(offered, attributeLogin) && slices.Contains(offered, attributeAddr)
}

func (d *smtp) xclient(commands []string) error {
	d.beforeXCLIENT = d.extensions
	for _, line := range commands {
		if _, err := d.command(line, 220); err != nil {
			return fmt.Errorf("XCLIENT: %w", err)
		}
	}
	return d.ehlo()
}

// xclientCommands returns the XCLIENT commands for l's client, as many as are
// needed. ADDR comes last: the server accepts no XCLIENT from the client's
// address.
func xclientCommands(offered []string, l *proxy.Login, helo string, login bool) []string {
	client, local := l.Client.Addr, l.Client.Local
	attributes := [][2]string{
		// An attribute that is not sent keeps Postern's value.
		{"NAME", unavailableValue}, {"REVERSE_NAME", unavailableValue},
		{"PROTO", "ESMTP"}, {"HELO", helo}, {"PORT", portString(client)},
	}
	if local.IsValid() {
		attributes = append(attributes, [2]string{"DESTADDR", xclientAddr(local)}, [2]string{"DESTPORT", portString(local)})
	}
	if login {
		attributes = append(attributes, [2]string{attributeLogin, l.Account})
	}
	attributes = append(attributes, [2]string{attributeAddr, xclientAddr(client)})

	const verb = "XCLIENT"
	var commands []string
	line := verb
	for _, a := range attributes {
		if !slices.Contains(offered, a[0]) {
			continue
		}
		value := wire.AppendXtext(nil, a[1])
		if len(value) > maxAttribute {
			value = []byte(unavailableValue)
		}
		next := " " + a[0] + "=" + string(value)
		if len(line)+len(next)+len("\r\n") > maxXCLIENT {
			commands, line = append(commands, line), verb
		}
		line += next
	}
	return append(commands, line)
}

func xclientAddr(a netip.AddrPort) string {
	if a.Addr().Unmap().Is6() {
		return "IPV6:" + addrString(a)
	}
	return addrString(a)
}

// Verify returns a function for Server.Verify of a submission server: it logs in
// to server, which must be of the same backend, and logs out.
func Verify(server IMAPServer) func(context.Context, *proxy.Login) error {
	return func(ctx context.Context, l *proxy.Login) error {
		conn, _, err := server.LoginIMAP(ctx, l)
		if err != nil {
			return err
		}
		defer conn.closeWith(ctx)()
		conn.logout("Q LOGOUT")
		return nil
	}
}

var errUnverified = errors.New("no server to check the password with")

// verify has the password checked if XCLIENT alone would log in.
func (s *Server) verify(ctx context.Context, l *proxy.Login) error {
	if s.Identity != XCLIENTLogin {
		return nil
	}
	if s.Verify == nil {
		return s.unavailable(errUnverified)
	}
	err := s.Verify(ctx, l)
	// Unavailable says nothing about this server: the pool must not see the cause.
	if r, ok := errors.AsType[*proxy.Refusal](err); ok && r.Reason == proxy.Unavailable {
		is := unavailable
		is.doubtful = r.Doubtful
		return s.refuse(is, errors.New("check of the password: "+err.Error()))
	}
	return err
}
