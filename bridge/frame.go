package bridge

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
)

// A session stores its data in frames. A frame has an octet with the version of the
// format, the content, and a CRC-32C of both.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errDamaged = errors.New("what was remembered is damaged or of another version")

// sealFrame appends the checksum to b, which begins with the version.
func sealFrame(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// openFrame returns the version of a frame and a reader of its content. The error is
// errDamaged, also for a version that is not one of versions.
func openFrame(b []byte, versions ...byte) (version byte, content frameReader, err error) {
	if len(b) < 6 || !slices.Contains(versions, b[0]) || crc32.Checksum(b[:len(b)-4], castagnoli) != frameSum(b) {
		return 0, frameReader{}, errDamaged
	}
	return b[0], frameReader{b: b[1 : len(b)-4]}, nil
}

// frameSum returns the checksum of a frame, which identifies the frame; 0 if b is too
// short for a frame.
func frameSum(b []byte) uint32 {
	if len(b) < 6 {
		return 0
	}
	return binary.LittleEndian.Uint32(b[len(b)-4:])
}

// A frameReader reads numbers. After the first invalid number, bad is set and all
// numbers are 0.
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

// end returns errDamaged unless all octets were read and all numbers were valid.
func (r *frameReader) end() error {
	if r.bad || len(r.b) > 0 {
		return errDamaged
	}
	return nil
}
