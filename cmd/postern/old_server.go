package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge/oldserver"
	"postern/cmd/postern/internal/service"
)

const oldDialTimeout = 15 * time.Second // TLS included

// An oldServer is the POP3 server that Postern shall replace, as the flags of a command
// name it.
type oldServer struct {
	address, mode, ca, name string
	unverified              bool
}

// flags adds the flags to cmd.
func (o *oldServer) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.address, "old", "", "the old POP3 server; `host:port`, the port is 995 if not given, or 110 without implicit TLS")
	f.StringVar(&o.mode, "tls", "implicit", "TLS to the old server: implicit, starttls (STLS), or none, to an address of this machine only")
	f.StringVar(&o.ca, "ca", "", "a PEM `file` with the CA of the old server's certificate; default: the system's")
	f.StringVar(&o.name, "server-name", "", "the `name` in the old server's certificate; default: the host of --old")
	f.BoolVar(&o.unverified, "insecure-skip-verify", false, "send the password to the old server whatever its certificate is")
	_ = cmd.RegisterFlagCompletionFunc("tls", cobra.FixedCompletions([]string{"implicit", "starttls", "none"}, cobra.ShellCompDirectiveNoFileComp))
}

// server returns the server. It does not connect.
func (o *oldServer) server() (*oldserver.Server, error) {
	if _, _, err := net.SplitHostPort(o.address); err != nil {
		port := "110"
		if o.mode == "implicit" {
			port = "995"
		}
		o.address = net.JoinHostPort(strings.Trim(o.address, "[]"), port)
	}
	roots, err := service.ReadCA(o.ca)
	if err != nil {
		return nil, err
	}
	config := service.ClientTLS(o.address, o.name, roots)
	config.MinVersion = tls.VersionTLS10 // the server is old, and its users connect to it with old TLS every day
	config.InsecureSkipVerify = o.unverified
	dial := new(net.Dialer).DialContext
	s := new(oldserver.Server)
	switch o.mode {
	case "implicit":
		dial = (&tls.Dialer{Config: config}).DialContext
	case "starttls":
		s.StartTLS = config
	case "none":
		if err := loopback(o.address); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("--tls: %q is not implicit, starttls or none", o.mode)
	}
	s.Dial = func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, oldDialTimeout)
		defer cancel()
		return dial(ctx, "tcp", o.address)
	}
	return s, nil
}

// explain adds to an error of the old server what to try next.
func (o *oldServer) explain(err error) error {
	hint := ""
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	other, name := errors.AsType[x509.HostnameError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	timeout, timedOut := errors.AsType[net.Error](err)
	switch {
	case unknown:
		hint = "; --ca takes a file with the certificate of its authority, or its own if it is self-signed"
	case name:
		hint = "; --server-name takes a name that its certificate is for"
		if names := other.Certificate.DNSNames; len(names) > 0 {
			hint += fmt.Sprintf(": %.200q", strings.Join(names[:min(len(names), 3)], " "))
		}
	case plain:
		hint = "; the server does not begin with TLS at this port: try --tls starttls, usually at port 110"
	case timedOut && timeout.Timeout() && o.mode != "implicit":
		hint = "; a server that begins with TLS at this port, usually 995, waits for the client: try --tls implicit"
	}
	return fmt.Errorf("old server %s: %w%s", o.address, err, hint)
}

// loopback returns an error unless address is of this machine: a password must not cross
// a network in the clear.
func loopback(address string) error {
	host, _, _ := net.SplitHostPort(address)
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return errors.New("--tls none sends passwords in the clear: only to an address of this machine, such as the end of an SSH tunnel")
}
