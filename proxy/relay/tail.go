package relay

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// quietTime is how long a server must have sent nothing before a final CRLF is
	// taken for the end of a response and not for the middle of a longer one.
	quietTime = time.Second
	// tailSize is how much of the last line is kept, in octets.
	tailSize = 96
)

// A tailBuffer holds the end of what was written to the client.
type tailBuffer struct {
	mu        sync.Mutex
	writing   bool
	lastWrite time.Time
	buf       [tailSize]byte
	n         int // octets in buf
}

func (t *tailBuffer) beginWrite() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = true
}

func (t *tailBuffer) endWrite(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing, t.lastWrite = false, time.Now()
	if len(b) >= tailSize {
		t.n = copy(t.buf[:], b[len(b)-tailSize:])
		return
	}
	keep := min(t.n, tailSize-len(b))
	copy(t.buf[:], t.buf[t.n-keep:t.n])
	t.n = keep + copy(t.buf[keep:], b)
}

// hasLine reports whether one of the last lines begins with word.
func (t *tailBuffer) hasLine(word string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(t.buf[:t.n]) {
		if len(line) >= len(word) && strings.EqualFold(string(line[:len(word)]), word) {
			return true
		}
	}
	return false
}

// atLineEnd reports whether the client seems to have complete responses only,
// judged by the last line and by the silence since, which must be quiet or longer.
// Within a literal, or with COMPRESS (RFC 4978), the end looks different. response is
// that of a syntax. Before the session's first octets the client has the response to
// its login.
func (t *tailBuffer) atLineEnd(response *regexp.Regexp, quiet time.Duration, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.writing || now.Sub(t.lastWrite) < quiet {
		return false
	}
	if t.n == 0 {
		return true
	}
	line := t.buf[:t.n]
	if i := bytes.LastIndexByte(bytes.TrimSuffix(line, []byte("\r\n")), '\n'); i >= 0 {
		line = line[i+1:]
	} else if t.n == tailSize {
		return false // the beginning of the line was not kept
	}
	return response.Match(line)
}
