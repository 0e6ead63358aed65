package relay

import (
	"bytes"

	"postern/proxy"
)

const (
	maxCommand = 2048      // octets of a line; RFC 5321 section 4.5.3.1.4 wants 512, extensions more
	minInput   = 512       // octets; most commands are shorter
	maxSkip    = 256 << 10 // octets of one line that are read only to find its end

	maxGathered = 32 << 10 // octets that are read before they are written; more would leave the core's cache
)

// An input reads from a client: lines, and messages between them. Both use one
// buffer, because commands may follow a message at once. While the client sends
// nothing the buffer is small.
type input struct {
	client *proxy.Conn
	small  []byte
	large  *[bufferSize]byte // nil: not in use
	buf    []byte            // small or large
	r, w   int               // buf[r:w] is read and not yet consumed
}

// ahead returns the octets that are read and not yet consumed.
func (i *input) ahead() []byte { return i.buf[i.r:i.w] }

// discard consumes n octets of ahead.
func (i *input) discard(n int) { i.r += n }

// hasLine reports whether line would return without reading.
func (i *input) hasLine() bool { return bytes.IndexByte(i.ahead(), '\n') >= 0 }

// line returns the next line with its end. It is valid until the next read. A
// line of more than maxCommand octets is skipped and gives proxy.ErrLineTooLong.
func (i *input) line() ([]byte, error) {
	for skipped := 0; ; {
		if n := bytes.IndexByte(i.ahead(), '\n') + 1; n > 0 {
			line := i.ahead()[:n]
			i.discard(n)
			if skipped+n > maxCommand {
				return nil, proxy.ErrLineTooLong
			}
			return line, nil
		}
		if n := i.w - i.r; skipped+n >= maxCommand {
			i.discard(n)
			skipped += n
		}
		if skipped > maxSkip {
			return nil, proxy.ErrFlood
		}
		i.shrink()
		if err := i.fill(); err != nil {
			return nil, err
		}
	}
}

// fillLarge reads into the large buffer, which must not be full, and then what
// has come already. TLS returns one record at a time, and a write for each record
// would cost more than the record.
func (i *input) fillLarge() error {
	i.enlarge()
	if err := i.fill(); err != nil {
		return err
	}
	if more := maxGathered - len(i.ahead()); more > 0 {
		i.w += i.client.ReadAvailable(i.buf[i.w:min(len(i.buf), i.w+more)])
	}
	return nil
}

// fill reads once.
func (i *input) fill() error {
	if i.r == i.w {
		i.r, i.w = 0, 0
	}
	if i.r > 0 && i.w == len(i.buf) {
		i.w = copy(i.buf, i.ahead())
		i.r = 0
	}
	if i.w == len(i.buf) { // the small buffer: a line never fills the large one
		i.small = append(i.small, make([]byte, max(minInput, len(i.small)))...)
		i.buf = i.small
	}
	n, err := i.client.Read(i.buf[i.w:])
	i.w += n
	if n > 0 {
		return nil
	}
	return err
}

// enlarge switches to the large buffer.
func (i *input) enlarge() {
	if i.large != nil {
		return
	}
	i.large = buffers.Get().(*[bufferSize]byte)
	i.w = copy(i.large[:], i.ahead())
	i.r, i.buf = 0, i.large[:]
}

// shrink gives the large buffer back when little is ahead.
func (i *input) shrink() {
	if i.large == nil || len(i.ahead()) > minInput {
		return
	}
	if len(i.small) < minInput {
		i.small = make([]byte, minInput)
	}
	i.w = copy(i.small, i.ahead())
	i.r, i.buf = 0, i.small
	i.release()
}

// release gives the large buffer back, with all that is in it.
func (i *input) release() {
	if i.large != nil {
		buffers.Put(i.large)
		i.large = nil
	}
}
