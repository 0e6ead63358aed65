package oldserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"slices"

	"postern/bridge/uidl"
)

const (
	// maxHeaders bounds the headers of an account that are kept, which are up to 23 MiB.
	maxHeaders = 1 << 18
	// headersVersion is the first octet of encoded headers. It changes with uidl.HeaderHash,
	// too: what an earlier Postern has kept is read again then.
	headersVersion = 1
)

// Headers are the headers of an old maildrop that were read, by UIDL, so that none is read
// twice. They hold the hashes of up to 262,144 headers. The zero value is empty and ready.
// Headers are for one goroutine at a time.
type Headers struct {
	kept map[string]keptHeader
}

type keptHeader struct {
	size     int64
	hash     uint64
	distinct bool
}

// Get returns the header of a message, or one that is not Known.
func (h *Headers) Get(m Message) Header {
	k, ok := h.kept[m.UIDL]
	if !ok || k.size != m.Size {
		return Header{}
	}
	return Header{Known: true, Hash: k.hash, Distinct: k.distinct}
}

// Put keeps the header of a message, and reports whether it does: not a header that is not
// Known, nor that of a message without a valid UIDL, nor more than 262,144 headers.
func (h *Headers) Put(m Message, header Header) bool {
	if _, there := h.kept[m.UIDL]; !header.Known || !uidl.Valid(m.UIDL) || !there && len(h.kept) >= maxHeaders {
		return false
	}
	if h.kept == nil {
		h.kept = make(map[string]keptHeader)
	}
	h.kept[m.UIDL] = keptHeader{m.Size, header.Hash, header.Distinct}
	return true
}

// Len returns the number of headers.
func (h *Headers) Len() int { return len(h.kept) }

// Confirm compares the headers with the maildrop as it is listed now, and removes those
// that may be of other messages. A UIDL that several messages have says nothing of either.
// One message with another size is enough to remove all headers: the server may have given
// its UIDLs to other messages, and most of those may be of equal size.
//
// The headers of messages that are not listed stay, because the maildrop may be the wrong
// one today, unless they have become the most.
func (h *Headers) Confirm(messages []Message) {
	shared := sharedUIDLs(messages)
	listed := make(map[string]bool)
	for i, m := range messages {
		k, there := h.kept[m.UIDL]
		switch {
		case !there:
		case shared[i]:
			delete(h.kept, m.UIDL)
		case k.size != m.Size:
			clear(h.kept)
			return
		default:
			listed[m.UIDL] = true
		}
	}
	const spare = 1000
	if len(h.kept) > 2*len(listed)+spare {
		maps.DeleteFunc(h.kept, func(id string, _ keptHeader) bool { return !listed[id] })
	}
}

var errHeaders = errors.New("the headers that were kept are damaged or of another version")

// Encode returns the stored form of h, with a checksum.
func (h *Headers) Encode() []byte {
	b := binary.AppendUvarint([]byte{headersVersion}, uint64(len(h.kept)))
	for _, id := range slices.Sorted(maps.Keys(h.kept)) {
		k := h.kept[id]
		mark := uint64(0)
		if k.distinct {
			mark = 1
		}
		b = append(binary.AppendUvarint(b, uint64(len(id))), id...)
		b = binary.AppendUvarint(b, uint64(k.size)<<1|mark)
		b = binary.LittleEndian.AppendUint64(b, k.hash)
	}
	return seal(b)
}

// seal appends the checksum.
func seal(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// DecodeHeaders is the inverse of Encode. It returns an error for all else.
func DecodeHeaders(b []byte) (*Headers, error) {
	const sum = 4
	if len(b) < 1+sum || b[0] != headersVersion {
		return nil, errHeaders
	}
	if !bytes.Equal(seal(bytes.Clone(b[:len(b)-sum])), b) {
		return nil, errHeaders
	}
	rest := b[1 : len(b)-sum]
	number := func() (n uint64) {
		n, size := binary.Uvarint(rest)
		if size <= 0 {
			rest = nil
			return 0
		}
		rest = rest[size:]
		return n
	}
	count := number()
	if count > min(maxHeaders, uint64(len(b)/10)) {
		return nil, errHeaders
	}
	h := &Headers{kept: make(map[string]keptHeader, count)}
	for range count {
		n := number()
		if n > uidl.MaxLength || uint64(len(rest)) < n {
			return nil, errHeaders
		}
		id := string(rest[:n])
		rest = rest[n:]
		size := number()
		if len(rest) < 8 || !uidl.Valid(id) || size>>1 > maxSize {
			return nil, errHeaders
		}
		h.kept[id] = keptHeader{int64(size >> 1), binary.LittleEndian.Uint64(rest), size&1 != 0}
		rest = rest[8:]
	}
	if len(rest) > 0 || uint64(len(h.kept)) != count {
		return nil, errHeaders
	}
	return h, nil
}
