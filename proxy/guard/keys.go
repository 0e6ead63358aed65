package guard

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// A key is the keyed hash of an account, a network, or a pair of them. The guard stores
// keys instead of names and addresses. Two accounts whose keys collide would share their
// state; without the secret nobody can find a collision.
type key uint64

// String returns k as 16 hexadecimal digits.
func (k key) String() string { return fmt.Sprintf("%016x", uint64(k)) }

// with returns the key of the pair of k and other.
func (k key) with(other key) key {
	return k ^ key(bits.RotateLeft64(uint64(other), 29))
}

// The domains of hashes: the same octets have another hash in another domain.
const (
	ofAccount uint64 = iota + 1
	ofNetwork
	ofPassword
	ofBucket
	ofSieve
)

// A secret is the key of the hashes. The snapshot has it, because the hashes in the
// snapshot are useless without it.
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

// tag returns the tag of a password of one account.
func (s secret) tag(account key, password []byte) tag {
	return tag(sipHash(s, uint64(account), password))
}

// password returns the key of a password, of whatever account.
func (s secret) password(b []byte) key { return key(sipHash(s, ofPassword, b)) }

// prefix returns the key of the network of a with a prefix length.
func (s secret) prefix(a netip.Addr, length int) key {
	network, err := a.Prefix(length)
	if err != nil { // no address: all clients without one share a network
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

// An origin is the networks that a client is in.
type origin struct {
	addr     netip.Addr
	network  key    // what one customer usually has: an IPv4 address or an IPv6 /64
	area     key    // roughly a provider in one region: an IPv4 /16 or an IPv6 /32
	wider    [2]key // IPv4: the /24. IPv6: the /56 and the /48, which are also assigned to customers
	isIPv6   bool
	hasWider bool
}

// originOf returns the origin of a. It treats an IPv4-mapped IPv6 address as IPv4.
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

// site returns the key of the IPv6 /48, the largest prefix of an end site (RFC 6177).
func (o origin) site() key { return o.wider[1] }

// prefix returns the addresses of the network of o.
func (o origin) prefix() netip.Prefix {
	length := 32
	if o.isIPv6 {
		length = 64
	}
	p, _ := o.addr.Prefix(length)
	return p
}

// sipHash returns SipHash-2-4 (Aumasson, Bernstein 2012) of first, as eight octets, and
// data.
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
