package bridge

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
)

// What a session remembers is stored in frames: an octet with the version of the
// format, the content, and a CRC-32C of both.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errDamaged = errors.New("what was remembered is damaged or of another version")

// sealFrame returns b, which begins with the version, with its checksum.
func sealFrame(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// openFrame returns the version of a frame and what reads its content. The error is
// errDamaged, also if it is none of versions.
func openFrame(b []byte, versions ...byte) (version byte, content frameReader, err error) {
	if len(b) < 6 || !slices.Contains(versions, b[0]) || crc32.Checksum(b[:len(b)-4], castagnoli) != frameSum(b) {
		return 0, frameReader{}, errDamaged
	}
	return b[0], frameReader{b: b[1 : len(b)-4]}, nil
}

// frameSum returns the checksum of a frame, which tells one from another; 0 of what is
// none.
func frameSum(b []byte) uint32 {
	if len(b) < 6 {
		return 0
	}
	return binary.LittleEndian.Uint32(b[len(b)-4:])
}

// A frameReader reads numbers. After the first that is not valid, all are 0 and bad
// is set.
type frameReader struct {
	b   []byte
	bad bool
}

// uvarint reads a number up to most.
func (r *frameReader) uvarint(most uint64) uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > most {
		return r.fail()
	}
	r.b = r.b[size:]
	return n
}

// uint64 reads a number of eight octets.
func (r *frameReader) uint64() uint64 {
	if len(r.b) < 8 {
		return r.fail()
	}
	n := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return n
}

// octet reads an octet.
func (r *frameReader) octet() byte {
	if len(r.b) == 0 {
		return byte(r.fail())
	}
	n := r.b[0]
	r.b = r.b[1:]
	return n
}

func (r *frameReader) fail() uint64 {
	r.bad, r.b = true, nil
	return 0
}

// end returns errDamaged unless all was read and valid.
func (r *frameReader) end() error {
	if r.bad || len(r.b) > 0 {
		return errDamaged
	}
	return nil
}
