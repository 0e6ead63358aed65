// Package uidl computes the unique-ids of POP3, RFC 1939 section 7, from what
// IMAP knows of a message. A client that finds the unique-ids it knew before
// does not fetch its mail again.
package uidl

// A Format appends the unique-id of a message to dst: 1 to 70 octets from 0x21
// to 0x7E, the same ones for the same numbers for ever, and others for others.
type Format func(dst []byte, uid, uidValidity uint32) []byte

// Dovecot is the default of Dovecot since its version 1.0, "%08Xu%08Xv" in its
// own notation: UID and UIDVALIDITY, eight lower-case hexadecimal digits each.
func Dovecot(dst []byte, uid, uidValidity uint32) []byte {
	return appendHex(appendHex(dst, uid), uidValidity)
}

func appendHex(dst []byte, n uint32) []byte {
	for shift := 28; shift >= 0; shift -= 4 {
		dst = append(dst, "0123456789abcdef"[n>>shift&0xf])
	}
	return dst
}
