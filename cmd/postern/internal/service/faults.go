package service

import (
	"fmt"
	"slices"
	"strings"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
)

// adviser returns the function that says what an operator can do about a fault of the
// server at address. A pool may outlive the configuration that made it, so the function
// looks lines up in the current one.
func (g *generation) adviser(name, protocol, address string) func(*backend.ConnectError) backend.Advice {
	return func(e *backend.ConnectError) backend.Advice {
		cfg := g.cfg
		if now := g.current.Load(); now != nil {
			cfg = now.cfg
		}
		c := serverOf(cfg, name, protocol)
		if c == nil {
			return backend.Advice{}
		}
		r := remedyFor(e, protocol, address, c)
		if r.text == "" {
			return backend.Advice{}
		}
		key := fmt.Sprintf("backends.%s.%s.%s", name, protocol, r.key)
		if i := slices.Index(c.Addresses, address); r.key == "address" && i >= 0 {
			key = fmt.Sprintf("backends.%s.%s.addresses[%d]", name, protocol, i)
		}
		at := cfg.Errorf(key, "")
		return backend.Advice{Where: fmt.Sprintf("%s:%d: %s", at.File, at.Line, at.Key), Text: r.text}
	}
}

func serverOf(cfg *configs.Config, name, protocol string) *configs.Server {
	return cfg.Backends[name].Server(protocol)
}

// A remedy is the key of a server that a fault is about, and what to do.
type remedy struct{ key, text string }

// remedyFor returns what an operator can do about a fault of the server of a protocol at
// address.
func remedyFor(e *backend.ConnectError, protocol, address string, c *configs.Server) remedy {
	name, implicitPort := "an IMAP", "993"
	switch protocol {
	case proxy.POP3:
		name, implicitPort = "a POP3", "995"
	case proxy.Submission:
		name, implicitPort = "a submission", "465"
	case proxy.Sieve:
		name, implicitPort = "a ManageSieve", ""
	}
	tlsPort := fmt.Sprintf("or give the address of its TLS port, usually %s", implicitPort)
	if implicitPort == "" {
		tlsPort = "or give the address of its TLS port, if it has one"
	}
	if c.TLS != "implicit" {
		tlsPort += ", with tls: implicit"
	}
	starttls := "write tls: starttls"
	if isLoopback(address) {
		starttls += " or tls: none"
	}
	switch e.Fault {
	case backend.NameNotFound:
		return remedy{"address", "write a name that DNS or /etc/hosts of this machine has, or an IP address"}
	case backend.LookupFailed:
		return remedy{"address", "see /etc/resolv.conf, or write an IP address"}
	case backend.NoSource:
		return remedy{"source", "write addresses that this machine has, as ip address shows them, or leave source out"}
	case backend.ConnectionRefused:
		return remedy{"address", "start the server, or correct host and port; a firewall that rejects looks the same"}
	case backend.NoRoute:
		return remedy{"address", "see the address, the routes of this machine, and firewalls"}
	case backend.ConnectTimeout:
		return remedy{"address", "see the address, and firewalls between here and there that drop packets"}
	case backend.NotTLS:
		if e.Speaks != "" && e.Speaks != speaks(protocol) {
			return remedy{"address", fmt.Sprintf("this is a port of %s without TLS: give that of %s server", e.Speaks, name)}
		}
		return remedy{"tls", starttls + ", " + tlsPort}
	case backend.TLSTimeout:
		return remedy{"tls", "if the server does not begin with TLS at this port, write tls: starttls; if it expects a PROXY header, identity: proxy-v2"}
	case backend.TLSTooOld, backend.NoCommonCipher:
		return remedy{"address", "switch TLS 1.2 with ECDHE on there: docs/tls.md has the settings"}
	case backend.SelfSigned:
		return remedy{"ca", "copy the certificate of the server to a PEM file, and name the file here"}
	case backend.UnknownAuthority:
		if c.CA != "" {
			return remedy{"ca", "add the certificate of this authority to " + c.CA}
		}
		return remedy{"ca", "put the certificate of this authority in a PEM file, and name the file here; " +
			"if this is a public authority, let the server send its intermediate certificates"}
	case backend.WrongName:
		for _, name := range e.Names {
			if !strings.Contains(name, "*") {
				return remedy{"server_name", fmt.Sprintf("if this is the right server, write server_name: %s", name)}
			}
		}
		return remedy{"server_name", "write server_name: and a name that the certificate is for, or give the server another certificate"}
	case backend.CertificateExpired, backend.CertificateNotYet:
		return remedy{"address", "renew it there, and reload the server; or the clock of this machine is wrong"}
	case backend.ConnectionClosed:
		if strings.HasPrefix(c.Identity, "proxy-") {
			return remedy{"identity", "if the server does not expect a PROXY header from Postern's address, write identity: none; its log says more"}
		}
		return remedy{"identity", "the server refuses Postern's address, or expects a PROXY header (identity: proxy-v2); its log says more"}
	case backend.GreetingTimeout:
		if c.TLS == "implicit" {
			return remedy{"address", fmt.Sprintf("see whether this is the port of %s server, which greets first, and whether the server is overloaded", name)}
		}
		at := "at this port"
		if implicitPort != "" {
			at += ", usually " + implicitPort + ","
		}
		return remedy{"tls", fmt.Sprintf("a server that begins with TLS %s waits for Postern: write tls: implicit; "+
			"so does one that expects a PROXY header (identity: proxy-v2)", at)}
	case backend.OtherProtocol:
		if e.Speaks == "TLS" {
			return remedy{"tls", "write tls: implicit"}
		}
		return remedy{"address", fmt.Sprintf("this is a port of %s: give that of %s server", e.Speaks, name)}
	case backend.Rejected:
		return remedy{"address", "the log of the server says why: it may refuse Postern's address, or take no more connections from it (docs/backends.md)"}
	case backend.HeaderRefused:
		return remedy{"identity", "the server seems to take the PROXY header for a command: let it expect the header from Postern's address, or write identity: none"}
	case backend.NoSTARTTLS:
		if isLoopback(address) {
			return remedy{"tls", "switch STARTTLS on there, write tls: none, " + tlsPort}
		}
		return remedy{"tls", "switch STARTTLS on there, for which the server needs a certificate, " + tlsPort}
	case backend.PasswordsDisabled:
		if c.TLS == "none" {
			return remedy{"tls", "write tls: starttls, " + tlsPort + ", or let the server trust Postern's address (Dovecot: login_trusted_networks)"}
		}
		return remedy{"address", "switch PLAIN or LOGIN on there (Dovecot: auth_mechanisms)"}
	case backend.NoMechanism:
		return remedy{"tls", noMechanism(protocol, c.TLS, tlsPort)}
	}
	return remedy{}
}

func noMechanism(protocol, mode, tlsPort string) string {
	if protocol == proxy.POP3 {
		const text = "switch USER and PASS on there, or AUTH PLAIN"
		if mode == "none" {
			return text + "; many servers take passwords only with TLS: write tls: starttls, " + tlsPort
		}
		return text
	}
	if protocol == proxy.Sieve {
		const text = "switch PLAIN on there (Dovecot: auth_mechanisms; Cyrus: sasl_mech_list)"
		if mode == "none" {
			return text + "; servers offer PLAIN only with TLS: write tls: starttls"
		}
		return text
	}
	const text = "switch AUTH on there, at a port for submission and not for mail between servers (Postfix: smtpd_sasl_auth_enable = yes)"
	if mode == "none" {
		return text + "; many servers offer AUTH only with TLS: write tls: starttls, " + tlsPort
	}
	return text
}

func speaks(protocol string) string {
	switch protocol {
	case proxy.POP3:
		return "POP3"
	case proxy.Submission:
		return "SMTP"
	case proxy.Sieve:
		return "ManageSieve"
	}
	return "IMAP"
}
