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

// An Identity is how a server is told who the client is: for it, all
// connections come from Postern.
type Identity uint8

// The identities. One that the server does not offer is left out, and Identified
// told so; PROXY cannot be offered: the server must be made to expect it.
const (
	Anonymous    Identity = iota // not at all
	ID                           // IMAP: x-originating-ip and more in ID, RFC 2971, as Dovecot's login_trusted_networks
	XCLIENT                      // submission: Postfix' XCLIENT; the server checks the password
	XCLIENTLogin                 // submission: XCLIENT with LOGIN, once Verify has checked the password
	ProxyV1                      // a PROXY header of version 1 on each connection
	ProxyV2                      // the same of version 2, with what was asked for in TLS
)

var identities = [...]string{
	Anonymous: "none", ID: "id", XCLIENT: "xclient", XCLIENTLogin: "xclient-login", ProxyV1: "proxy-v1", ProxyV2: "proxy-v2",
}

// String returns the identity's name in the configuration.
func (i Identity) String() string { return identities[i] }

// preface returns the PROXY header that begins a connection for client; nil:
// none.
func (i Identity) preface(client proxy.Client) ([]byte, error) {
	switch i {
	case ProxyV1:
		return listen.Header(1, client)
	case ProxyV2:
		return listen.Header(2, client)
	}
	return nil, nil
}

// identified tells whether a server that should be told is.
func (s *Server) identified(ok bool) {
	if s.Identified != nil {
		s.Identified(ok)
	}
}

// identifies reports whether l's client is one to tell of, and tells whether
// the server lets it.
func (s *Server) identifies(l *proxy.Login, offered bool) bool {
	if !l.Client.Addr.IsValid() {
		return false
	}
	s.identified(offered)
	return offered
}

// identify returns the command ID that tells of l's client; nil if the server
// is not to be told.
func (d *imap) identify(tag string, l *proxy.Login, s *Server) []byte {
	if s.Identity != ID || !s.identifies(l, d.capabilities.has("ID")) {
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

// introduce tells the server of the client of a probe, and asks anew what it can
// do. A server that takes no ID is not told at a login either.
func (d *imap) introduce(client proxy.Client, s *Server) error {
	if s.Identity != ID || !d.capabilities.has("ID") {
		return nil
	}
	tag := d.nextTag()
	if _, err := d.exchange(tag, nil, idCommand(tag, &proxy.Login{Client: client})); err != nil {
		return fmt.Errorf("ID: %w", err)
	}
	d.capabilities = nil
	return d.learn()
}

// Keys of ID that a client may tell the server of itself: those that RFC 2971
// section 3.3 gives to its program. All others are kept from it: servers
// believe some that begin with x-.
var clientKeys = []string{"name", "version", "os", "os-version", "vendor", "support-url"}

// idValues returns keys and values in turn, fit for quoted strings. The first
// ones are what Dovecot's proxies send, and its servers believe.
func idValues(l *proxy.Login) []string {
	const (
		mostValue = 128 // octets of what a client tells; RFC 2971 has 1024 and 30 of them
		hops      = "5" // of proxies before one finds that it goes in circles: Dovecot's figure
	)
	client, local := l.Client.Addr, l.Client.Local
	all := []string{
		"x-session-id", l.Client.ID,
		"x-originating-ip", bare(client), "x-originating-port", port(client),
		"x-connected-ip", bare(local), "x-connected-port", port(local),
		"x-proxy-ttl", hops,
	}
	for _, key := range clientKeys {
		if value := l.Hello.ID[key]; value != "" && len(value) <= mostValue && quotable([]byte(value)) {
			all = append(all, key, value)
		}
	}
	return all
}

func bare(a netip.AddrPort) string { return a.Addr().Unmap().WithZone("").String() }
func port(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }

// XCLIENT: https://www.postfix.org/XCLIENT_README.html
const (
	mostXCLIENT    = 512 // octets of a command
	mostAttribute  = 255 // octets of a value
	notKnown       = "[UNAVAILABLE]"
	attributeLogin = "LOGIN"
	attributeAddr  = "ADDR"
)

// xclientOffer returns the attributes that a server takes, upper case.
func xclientOffer(extensions []string) []string {
	params, _ := extension(extensions, "XCLIENT")
	return strings.Fields(strings.ToUpper(params))
}

// introduce tells the server of l's client, which takes it back to its
// greeting, and asks anew what it can do: for that client it may be less.
func (d *smtp) introduce(l *proxy.Login, s *Server) error {
	offered := xclientOffer(d.extensions)
	if s.Identity != XCLIENT || !s.identifies(l, slices.Contains(offered, attributeAddr)) {
		return nil
	}
	return d.xclient(xclientCommands(offered, l, d.names[0], false))
}

// pretend introduces a client of a probe.
func (d *smtp) pretend(client proxy.Client, s *Server) error {
	offered := xclientOffer(d.extensions)
	if s.Identity != XCLIENT && s.Identity != XCLIENTLogin || !slices.Contains(offered, attributeAddr) {
		return nil
	}
	if !client.Addr.IsValid() {
		own, err := netip.ParseAddrPort(d.conn.LocalAddr().String())
		if err != nil {
			return nil //nolint:nilerr // no address of the Internet: there is nobody to introduce
		}
		client.Addr = own
	}
	return d.xclient(xclientCommands(offered, &proxy.Login{Client: client}, d.names[0], false))
}

// vouch logs l in by word of ours. Verify has said that the password is right.
func (d *smtp) vouch(l *proxy.Login, s *Server) error {
	begun := time.Now()
	err := d.xclient(xclientCommands(xclientOffer(d.extensions), l, d.names[0], true))
	if err != nil {
		err = s.unavailable(err)
	}
	s.settle(begun, err)
	return err
}

// vouches reports whether that can be. Without ADDR it must not: the session
// would be one of Postern's own, which may do what the client may not.
func (d *smtp) vouches(l *proxy.Login, s *Server) bool {
	if s.Identity != XCLIENTLogin {
		return false
	}
	offered := xclientOffer(d.extensions)
	fits := len(wire.AppendXtext(nil, l.Account)) <= mostAttribute
	return s.identifies(l, fits && vouchable(offered))
}

// vouchable reports whether a server that offers these attributes of XCLIENT
// can be told who has logged in.
func vouchable(offered []string) bool {
	return slices.Contains(offered, attributeLogin) && slices.Contains(offered, attributeAddr)
}

func (d *smtp) xclient(commands []string) error {
	d.before = d.extensions
	for _, line := range commands {
		if _, err := d.command(line, 220); err != nil {
			return fmt.Errorf("XCLIENT: %w", err)
		}
	}
	return d.ehlo()
}

// xclientCommands returns what tells of l's client, in as many commands as it
// takes. ADDR comes last: the server obeys no XCLIENT of the client's address.
func xclientCommands(offered []string, l *proxy.Login, helo string, login bool) []string {
	client, local := l.Client.Addr, l.Client.Local
	attributes := [][2]string{
		// What stays unsaid stays Postern's.
		{"NAME", notKnown}, {"REVERSE_NAME", notKnown},
		{"PROTO", "ESMTP"}, {"HELO", helo}, {"PORT", port(client)},
	}
	if local.IsValid() {
		attributes = append(attributes, [2]string{"DESTADDR", xclientAddr(local)}, [2]string{"DESTPORT", port(local)})
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
		if len(value) > mostAttribute {
			value = []byte(notKnown)
		}
		next := " " + a[0] + "=" + string(value)
		if len(line)+len(next)+len("\r\n") > mostXCLIENT {
			commands, line = append(commands, line), verb
		}
		line += next
	}
	return append(commands, line)
}

func xclientAddr(a netip.AddrPort) string {
	if a.Addr().Unmap().Is6() {
		return "IPV6:" + bare(a)
	}
	return bare(a)
}

// Verify returns what Server.Verify of a submission server wants: server, of
// the same backend, is asked whether it accepts a login, and logged out of.
func Verify(server IMAPServer) func(context.Context, *proxy.Login) error {
	return func(ctx context.Context, l *proxy.Login) error {
		conn, _, err := server.LoginIMAP(ctx, l)
		if err != nil {
			return err
		}
		defer conn.closeWith(ctx)()
		conn.leave("Q LOGOUT")
		return nil
	}
}

var errUnverified = errors.New("no server to check the password with")

// verify has the password checked where XCLIENT alone would log in.
func (s *Server) verify(ctx context.Context, l *proxy.Login) error {
	if s.Identity != XCLIENTLogin {
		return nil
	}
	if s.Verify == nil {
		return s.unavailable(errUnverified)
	}
	err := s.Verify(ctx, l)
	if r, ok := errors.AsType[*proxy.Refusal](err); ok && r.Reason == proxy.Unavailable { // which says nothing about this server: its pool must not see why
		is := unavailable
		is.doubtful = r.Doubtful
		return s.refuse(is, errors.New("check of the password: "+err.Error()))
	}
	return err
}
