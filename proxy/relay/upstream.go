package relay

import (
	"net"
	"sync"
	"time"
)

// closeTime is how long the server may take to close first, so that TIME_WAIT
// stays there.
const closeTime = time.Second

// An Upstream is the connection to a backend. If it implements
// syscall.Conn and returns a descriptor, then reading that descriptor must return
// what Read would.
type Upstream interface {
	net.Conn
	CloseWrite() error
}

// bufferSize is that of a large buffer, in octets; larger ones gain nothing.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
