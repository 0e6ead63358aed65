package bridge

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

// A watch tells how the server has answered the commands of one imapclient,
// and how long it took.
type watch struct {
	tell func(proxy.Event)

	mu     sync.Mutex
	within bool // the next octets belong to the last of open
	open   []command
}

// A command is one without its tagged answer.
type command struct {
	tag, name string
	begun     time.Time
}

// sent takes what imapclient writes: a command, or a part of one.
func (w *watch) sent(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		if !w.within {
			tag, text := wire.CutWord(line)
			w.open = append(w.open, command{string(tag), commandName(text), time.Now()})
		}
		p, w.within = rest, !ended
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

// answered takes a tagged answer.
func (w *watch) answered(tag, status string) {
	w.mu.Lock()
	i := slices.IndexFunc(w.open, func(c command) bool { return c.tag == tag })
	if i < 0 {
		w.mu.Unlock()
		return
	}
	c := w.open[i]
	w.open = slices.Delete(w.open, i, i+1)
	w.mu.Unlock()
	w.told(c, results[status])
}

// lost takes the end of the connection, unless we have closed it ourselves.
func (w *watch) lost(err error) {
	w.mu.Lock()
	open := w.open
	w.open = nil
	w.mu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		return
	}
	for _, c := range open {
		w.told(c, proxy.CommandLost)
	}
}

func (w *watch) told(c command, result string) {
	w.tell(proxy.IMAPCommand{Command: c.name, Result: result, Duration: time.Since(c.begun)})
}

var results = map[string]string{"OK": proxy.CommandOK, "NO": proxy.CommandNo, "BAD": proxy.CommandBad}

// resultOf returns the result of a message that was waited for; "": it is not
// the server's.
func resultOf(err error) string {
	status, refused := errors.AsType[*imap.Error](err)
	switch {
	case err == nil, errors.Is(err, errVanished):
		return proxy.CommandOK
	case refused:
		return results[string(status.Type)]
	case errors.Is(err, proxy.ErrBackendClosed):
		return proxy.CommandLost
	}
	return ""
}
