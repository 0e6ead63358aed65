package proxytest

import (
	"encoding/binary"
	"slices"
)

// A ClientHello is the first message of a TLS client that crypto/tls cannot
// play: an old one.
type ClientHello struct {
	Version    uint16   // the newest it speaks, TLS 1.0 to 1.2
	Suites     []uint16 // in its order, those that nobody has any more included
	Curves     []uint16 // none: it knows no elliptic curves
	Signatures []uint16 // none: it sends no such extension, as before TLS 1.2
	Tickets    bool
	NoName     bool // it sends no server name
}

// The clients that old profiles are for. Suites, curves and signatures are
// those of the recordings in testssl.sh 3.0.8, etc/client-simulation.txt; mail
// programs use the same library as the browsers recorded there.
var (
	// Windows7 is Schannel with TLS 1.2, which an update has brought: its GCM
	// with forward secrecy is for ECDSA alone.
	Windows7 = ClientHello{
		Version: 0x0303,
		Suites: []uint16{
			0xc028, 0xc027, 0xc014, 0xc013, 0x009f, 0x009e, 0x009d, 0x009c, 0x003d, 0x003c, 0x0035, 0x002f,
			0xc02c, 0xc02b, 0xc024, 0xc023, 0xc00a, 0xc009, 0x006a, 0x0040, 0x0038, 0x0032, 0x000a, 0x0013,
		},
		Curves:     []uint16{23, 24},
		Signatures: []uint16{0x0601, 0x0603, 0x0401, 0x0501, 0x0201, 0x0403, 0x0503, 0x0203, 0x0202},
	}
	// Windows7TLS10 is Schannel without that update.
	Windows7TLS10 = ClientHello{
		Version: 0x0301,
		Suites:  []uint16{0xc014, 0xc013, 0x0035, 0x002f, 0xc00a, 0xc009, 0x0038, 0x0032, 0x000a, 0x0013, 0x0005, 0x0004},
		Curves:  []uint16{23, 24, 25},
	}
	// Windows81 is Schannel of Windows 8.1.
	Windows81 = ClientHello{
		Version: 0x0303,
		Suites: []uint16{
			0xc028, 0xc027, 0xc014, 0xc013, 0x009f, 0x009e, 0x0039, 0x0033, 0x009d, 0x009c, 0x003d, 0x003c, 0x0035, 0x002f,
			0xc02c, 0xc02b, 0xc024, 0xc023, 0xc00a, 0xc009, 0x006a, 0x0040, 0x0038, 0x0032, 0x000a, 0x0013,
		},
		Curves:     []uint16{23, 24},
		Signatures: []uint16{0x0401, 0x0501, 0x0601, 0x0201, 0x0403, 0x0503, 0x0603, 0x0203, 0x0202},
		Tickets:    true,
	}
	// Android44 is the library of Android 4.4 with all that it can.
	Android44 = ClientHello{
		Version: 0x0303,
		Suites: []uint16{
			0xc030, 0xc02c, 0xc014, 0xc00a, 0x00a3, 0x009f, 0x006b, 0x006a, 0x0039, 0x0038, 0x009d, 0x003d, 0x0035,
			0xc012, 0xc008, 0x0016, 0x0013, 0x000a, 0xc02f, 0xc02b, 0xc027, 0xc023, 0xc013, 0xc009, 0x00a2, 0x009e,
			0x0067, 0x0040, 0x0033, 0x0032, 0x009c, 0x003c, 0x002f, 0xc011, 0xc007, 0x0005, 0x0004, 0x00ff,
		},
		Curves: []uint16{25, 24, 23},
		Signatures: []uint16{
			0x0601, 0x0602, 0x0603, 0x0501, 0x0502, 0x0503, 0x0401, 0x0402, 0x0403, 0x0301, 0x0302, 0x0303, 0x0201, 0x0202, 0x0203, 0x0101,
		},
		Tickets: true,
	}
	// Android44TLS10 is a program on Android 4.4 that asked for nothing: there
	// TLS 1.2 has to be asked for.
	Android44TLS10 = ClientHello{
		Version: 0x0301, Suites: Android44.Suites, Curves: Android44.Curves, Tickets: true,
	}
	// WindowsXP knows neither curves nor AES, and sends no name.
	WindowsXP = ClientHello{
		Version: 0x0301,
		Suites:  []uint16{0x0004, 0x0005, 0x000a, 0x0009, 0x0064, 0x0062, 0x0003, 0x0006, 0x0013, 0x0012, 0x0063},
		NoName:  true,
	}
)

// Record returns the message for a server called name, in the one record that
// it is sent in: RFC 5246 sections 6.2.1 and 7.4.1.2.
func (h ClientHello) Record(name string) []byte {
	body := binary.BigEndian.AppendUint16(nil, h.Version)
	body = append(body, make([]byte, 32)...) // the random: nobody looks
	body = append(body, 0)                   // no session
	body = append(body, vector(2, uint16s(h.Suites))...)
	body = append(body, 1, 0) // no compression
	body = append(body, vector(2, h.extensions(name))...)
	message := append([]byte{1}, vector(3, body)...)
	return append([]byte{22, 3, 1}, vector(2, message)...)
}

func (h ClientHello) extensions(name string) (all []byte) {
	add := func(kind uint16, data []byte) {
		all = append(binary.BigEndian.AppendUint16(all, kind), vector(2, data)...)
	}
	if !h.NoName {
		add(0, vector(2, append([]byte{0}, vector(2, []byte(name))...)))
	}
	if len(h.Curves) > 0 {
		add(10, vector(2, uint16s(h.Curves)))
		add(11, []byte{1, 0}) // uncompressed points
	}
	if len(h.Signatures) > 0 {
		add(13, vector(2, uint16s(h.Signatures)))
	}
	if h.Tickets {
		add(35, nil)
	}
	add(0xff01, []byte{0}) // RFC 5746
	return all
}

// vector puts the length of data, a number of size octets, before it.
func vector(size int, data []byte) []byte {
	length := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	return slices.Concat(length[4-size:], data)
}

func uint16s(values []uint16) (b []byte) {
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}
