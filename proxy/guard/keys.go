package guard

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// A key is the keyed hash of an account, a network, or what two of them make
// together. Two that meet share what is kept under it; with 64 bits and a
// secret nobody can bring that about. Names and addresses are not kept.
type key uint64

// with returns the key of k and other together.
func (k key) with(other key) key {
	return k ^ key(bits.RotateLeft64(uint64(other), 29))
}

// What is hashed: the same octets are another thing in another domain.
const (
	ofAccount uint64 = iota + 1
	ofNetwork
	ofPassword
	ofBucket
)

// A secret keys the hashes. It is kept with the snapshot, or that would be of
// no use after a restart.
type secret struct{ k0, k1 uint64 }

func newSecret() secret {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return secretOf(b[:])
}

func secretOf(b []byte) secret {
	return secret{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

func (s secret) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, s.k0), s.k1)
}

// account returns the key of an account.
func (s secret) account(name string) key { return key(sipHash(s, ofAccount, name)) }

// tag returns what a password is known by, for one account alone.
func (s secret) tag(account key, password []byte) tag {
	return tag(sipHash(s, uint64(account), password))
}

// password returns what a password is known by, whoever's it is.
func (s secret) password(b []byte) key { return key(sipHash(s, ofPassword, b)) }

// prefix returns the key of the network of a that has so many bits.
func (s secret) prefix(a netip.Addr, length int) key {
	network, err := a.Prefix(length)
	if err != nil { // no address: all without share one network
		return key(sipHash(s, ofNetwork, ""))
	}
	var b [17]byte
	address := network.Addr().As16()
	b[0] = byte(length)
	if a.Is4() {
		b[0] += 128
	}
	copy(b[1:], address[:])
	return key(sipHash(s, ofNetwork, b[:]))
}

// An origin is where a client comes from.
type origin struct {
	addr     netip.Addr
	network  key    // what one customer usually has: an IPv4 address, or 64 bits of IPv6
	area     key    // what a provider has in one place, roughly: an IPv4 /16, an IPv6 /32
	wider    [2]key // IPv4: the /24. IPv6: the /56 and the /48, which a customer may have as well
	isIPv6   bool
	hasWider bool
}

// originOf takes an IPv4 address that comes as IPv6 for what it is.
func (s secret) originOf(a netip.Addr) origin {
	a = a.Unmap().WithZone("")
	switch {
	case a.Is4():
		return origin{addr: a, network: s.prefix(a, 32), area: s.prefix(a, 16), wider: [2]key{s.prefix(a, 24)}, hasWider: true}
	case a.Is6():
		return origin{
			addr: a, network: s.prefix(a, 64), area: s.prefix(a, 32),
			wider: [2]key{s.prefix(a, 56), s.prefix(a, 48)}, isIPv6: true, hasWider: true,
		}
	}
	nowhere := s.prefix(a, 0)
	return origin{network: nowhere, area: nowhere}
}

// network returns the addresses that share the network of o.
func (o origin) prefix() netip.Prefix {
	length := 32
	if o.isIPv6 {
		length = 64
	}
	p, _ := o.addr.Prefix(length)
	return p
}

// sipHash is SipHash-2-4 (Aumasson, Bernstein 2012) of first, as eight octets,
// and data.
func sipHash[T string | []byte](s secret, first uint64, data T) uint64 {
	h := sip{
		s.k0 ^ 0x736f6d6570736575, s.k1 ^ 0x646f72616e646f6d,
		s.k0 ^ 0x6c7967656e657261, s.k1 ^ 0x7465646279746573,
	}
	h.word(first)
	i := 0
	for ; i+8 <= len(data); i += 8 {
		h.word(uint64(data[i]) | uint64(data[i+1])<<8 | uint64(data[i+2])<<16 | uint64(data[i+3])<<24 |
			uint64(data[i+4])<<32 | uint64(data[i+5])<<40 | uint64(data[i+6])<<48 | uint64(data[i+7])<<56)
	}
	last := uint64(8+len(data)) << 56
	for shift := 0; i < len(data); i, shift = i+1, shift+8 {
		last |= uint64(data[i]) << shift
	}
	h.word(last)
	h[2] ^= 0xff
	for range 4 {
		h.round()
	}
	return h[0] ^ h[1] ^ h[2] ^ h[3]
}

type sip [4]uint64

func (h *sip) word(w uint64) {
	h[3] ^= w
	h.round()
	h.round()
	h[0] ^= w
}

func (h *sip) round() {
	h[0] += h[1]
	h[2] += h[3]
	h[1] = bits.RotateLeft64(h[1], 13) ^ h[0]
	h[3] = bits.RotateLeft64(h[3], 16) ^ h[2]
	h[0] = bits.RotateLeft64(h[0], 32)
	h[2] += h[1]
	h[0] += h[3]
	h[1] = bits.RotateLeft64(h[1], 17) ^ h[2]
	h[3] = bits.RotateLeft64(h[3], 21) ^ h[0]
	h[2] = bits.RotateLeft64(h[2], 32)
}
