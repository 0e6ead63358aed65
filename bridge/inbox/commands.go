package inbox

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
	"postern/proxy/wire"
)

// A commandTracker emits a proxy.IMAPCommand for each command of one imapclient:
// how the server has answered, and how long that took.
type commandTracker struct {
	observe func(proxy.Event)

	mu     sync.Mutex
	within bool // the next octets belong to the last of open
	open   []command
}

// A command is one without its tagged response.
type command struct {
	tag, name string
	begun     time.Time
}

// sent takes the octets that imapclient writes: a command, or a part of one.
func (t *commandTracker) sent(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		if !t.within {
			tag, text := wire.CutWord(line)
			t.open = append(t.open, command{string(tag), commandName(text), time.Now()})
		}
		p, t.within = rest, !ended
	}
}

// commandName returns the name of a command without its UID.
func commandName(text []byte) string {
	word, rest := wire.CutWord(bytes.TrimSuffix(text, []byte("\r")))
	name := wire.Keyword(word)
	if name == "UID" {
		word, _ = wire.CutWord(rest)
		name = wire.Keyword(word)
	}
	return name
}

// answered takes a tagged response.
func (t *commandTracker) answered(tag, status string) {
	t.mu.Lock()
	i := slices.IndexFunc(t.open, func(c command) bool { return c.tag == tag })
	if i < 0 {
		t.mu.Unlock()
		return
	}
	c := t.open[i]
	t.open = slices.Delete(t.open, i, i+1)
	t.mu.Unlock()
	t.emit(c, results[status])
}

// lost takes the end of the connection. After a Close of our own it emits nothing.
func (t *commandTracker) lost(err error) {
	t.mu.Lock()
	open := t.open
	t.open = nil
	t.mu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		return
	}
	for _, c := range open {
		t.emit(c, proxy.CommandLost)
	}
}

func (t *commandTracker) emit(c command, result string) {
	t.observe(proxy.IMAPCommand{Command: c.name, Result: result, Duration: time.Since(c.begun)})
}

// results are the statuses of a tagged response.
var results = map[string]string{"OK": proxy.CommandOK, "NO": proxy.CommandNo, "BAD": proxy.CommandBad}

// resultOf returns the proxy.IMAPCommand.Result of a FETCH; "": err is not the
// server's doing.
func resultOf(err error) string {
	status, refused := errors.AsType[*imap.Error](err)
	switch {
	case err == nil, errors.Is(err, ErrVanished):
		return proxy.CommandOK
	case refused:
		return results[string(status.Type)]
	case errors.Is(err, proxy.ErrBackendClosed):
		return proxy.CommandLost
	}
	return ""
}
