package service

import (
	"fmt"
	"net"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/listen"
)

// explainChallenges returns, for a configuration with ACME, a line for each challenge that
// explains whether the challenge can work with the configured listeners.
func (g *generation) explainChallenges() (all []string) {
	a := g.cfg.TLS.ACME
	if a == nil {
		return nil
	}
	for _, one := range []struct{ challenge, text string }{
		{certs.HTTP01, explainHTTP(a)}, {certs.TLSALPN01, g.explainALPN()}, {certs.DNS01, explainDNS(a)},
	} {
		use := "could be used"
		if one.challenge == a.Challenge {
			use = "is used"
		}
		all = append(all, fmt.Sprintf("challenge %s %s: %s", one.challenge, use, one.text))
	}
	return all
}

func explainHTTP(a *configs.ACME) string {
	const passOn = "has to pass /.well-known/acme-challenge/ on to %s with the Host as it is (tls.acme.http_address)"
	address := a.HTTPAddress
	if address == "" || portIn(address) == "80" {
		if name := holder("80"); name != "" {
			return fmt.Sprintf("the CA asks at port 80, which "+name+" has, and "+passOn, "another address")
		}
		return "the CA asks at port 80, where Postern answers"
	}
	return fmt.Sprintf("the CA asks at port 80, and the web server there "+passOn, address)
}

func (g *generation) explainALPN() string {
	for _, l := range g.cfg.Listeners {
		if l.TLS == "implicit" && portIn(l.Address) == "443" {
			return fmt.Sprintf("the CA asks at port 443, where the listener %s answers", l.Name)
		}
	}
	name := holder("443")
	if name == "" {
		return "the CA asks at port 443, where Postern listens while there is a question"
	}
	for _, l := range g.cfg.Listeners {
		if l.TLS == "implicit" {
			return fmt.Sprintf("the CA asks at port 443, which %s has, and has to pass connections with the ALPN acme-tls/1 on to a listener, such as %s at %s",
				name, l.Name, l.Address)
		}
	}
	return fmt.Sprintf("the CA asks at port 443, which %s has, and there is no listener with implicit TLS to pass it on to", name)
}

func explainDNS(a *configs.ACME) string {
	if a.DNS == nil {
		return "the CA asks the DNS, no port is needed, but a server that takes records (tls.acme.dns)"
	}
	return "the CA asks the DNS, no port is needed; " + a.DNS.Server + " is given the records"
}

func portIn(address string) string {
	_, port, _ := net.SplitHostPort(address) // configs has checked the address
	return port
}

// holder returns the name of the program that listens on a port, "" if only Postern does.
func holder(port string) string {
	if _, name, ok := listen.Holder(":" + port); ok && name != "postern" {
		return name
	}
	return ""
}
