package listen

import (
	"crypto/tls"
	"net"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"postern/proxy"
)

// Header returns the PROXY header of version 1 or 2 for a connection that Postern
// makes for client: with its addresses and, in version 2, data of its TLS
// handshake (server name, version, cipher) and the session id as unique id. A
// Client without address gives the header of a connection that Postern makes for
// itself.
func Header(version byte, client proxy.Client) ([]byte, error) {
	from, to := net.Addr(net.TCPAddrFromAddrPort(client.Addr)), net.Addr(net.TCPAddrFromAddrPort(client.Local))
	if !client.Addr.IsValid() || !client.Local.IsValid() {
		from, to = nil, nil
	}
	h := proxyproto.HeaderProxyFromAddrs(version, from, to)
	if version == 2 && from != nil {
		if err := h.SetTLVs(tlvs(client)); err != nil {
			return nil, err
		}
	}
	return h.Format()
}

// tlvs returns the TLVs of section 2.2.x of the specification. Postern asks for
// no client certificate, so none is included.
func tlvs(client proxy.Client) []proxyproto.TLV {
	all := []proxyproto.TLV{{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: []byte(client.ID)}}
	if client.TLS == nil {
		return all
	}
	if name := client.TLS.ServerName; name != "" {
		all = append(all, proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte(name)})
	}
	if alpn := client.TLS.NegotiatedProtocol; alpn != "" {
		all = append(all, proxyproto.TLV{Type: proxyproto.PP2_TYPE_ALPN, Value: []byte(alpn)})
	}
	ssl := tlvparse.PP2SSL{
		Client: tlvparse.PP2_BITFIELD_CLIENT_SSL,
		Verify: 1, // not zero: no certificate was verified
		TLV: []proxyproto.TLV{
			{Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte(versionName(client.TLS.Version))},
			{Type: proxyproto.PP2_SUBTYPE_SSL_CIPHER, Value: []byte(tls.CipherSuiteName(client.TLS.CipherSuite))},
		},
	}
	value, err := ssl.Marshal()
	if err != nil { // a value that is too long
		return all
	}
	return append(all, value)
}

// versionName returns OpenSSL's name of a TLS version, which readers of the
// header expect.
func versionName(version uint16) string {
	switch version {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	}
	return "TLSv1.3"
}
