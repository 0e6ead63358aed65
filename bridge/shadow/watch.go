package shadow

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
)

const (
	maxMessages = 1 << 18 // of a maildrop that is compared
	maxLine     = 512     // octets of a line of LIST and UIDL
	maxUIDL     = 100     // octets of a unique id, which may have 70, that are kept
	maxSize     = 1 << 40 // octets of a message
	maxAsked    = 200     // TOPs in a session
	maxListed   = 5_000   // messages of a maildrop for which LIST or UIDL is sent before QUIT
	maxRefused  = 10      // TOPs that are refused before a session sends no more
	sampleFrom  = 2_000   // messages from which a sample of headers is enough
	lineEnd     = "\r\n"  // CRLF
	listEnd     = "."     // the last line of a response
)

// A Watcher collects what a session with an old POP3 server shows. It is a
// relay.POP3Watcher.
type Watcher struct {
	mu      sync.Mutex
	on      bool
	count   int   // messages of the maildrop
	err     error // a response that cannot be used
	sizes   listing[int64]
	uidls   listing[string]
	asksUID bool                     // the client has sent UIDL
	headers map[int]oldserver.Header // by number
	refused map[int]bool             // TOPs, by number

	wanted func(m oldserver.Message) bool // nil: no headers are wanted yet
	plan   []int                          // numbers of messages for TOP
	asked  int                            // TOPs
	step   int                            // of Ask

	deleted []int
	unknown bool // nobody knows what the server has deleted
}

// A listing is what LIST or UIDL says of each message, by number - 1.
type listing[T any] struct {
	values []T
	known  int
}

// begin begins the watch of a maildrop.
func (w *Watcher) begin(count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.count = true, count
	if count > maxMessages {
		w.on, w.err = false, fmt.Errorf("the old maildrop has more than %d messages", maxMessages)
	}
}

// stop frees what was collected, and ends the watch.
func (w *Watcher) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.sizes, w.uidls, w.headers, w.plan, w.wanted = false, listing[int64]{}, listing[string]{}, nil, nil, nil
}

// want says of which messages a header is wanted.
func (w *Watcher) want(s state) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.Compared.IsZero() {
		w.wanted = func(oldserver.Message) bool { return w.count < sampleFrom }
		return
	}
	some := make(map[string]bool, len(s.Wanted))
	for _, id := range s.Wanted {
		some[id] = true
	}
	w.wanted = func(m oldserver.Message) bool { return some[m.UIDL] }
}

// Response implements relay.POP3Watcher.
func (w *Watcher) Response(keyword string, number int, ok bool) io.Writer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return nil
	}
	switch keyword {
	case "UIDL":
		w.asksUID = w.asksUID || ok
		if number == 0 && ok {
			return &lines{each: w.addUIDL, end: func() {}}
		}
	case "LIST":
		if number == 0 && ok {
			return &lines{each: w.addSize, end: func() {}}
		}
	case "RETR", "TOP":
		switch {
		case number < 1 || number > w.count:
		case !ok:
			if w.refused == nil {
				w.refused = make(map[int]bool)
			}
			w.refused[number] = keyword == "TOP"
		case !w.headers[number].Known:
			return &header{done: func(h oldserver.Header) { w.addHeader(number, h) }}
		}
	}
	return nil
}

func (w *Watcher) addHeader(number int, h oldserver.Header) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return
	}
	if w.headers == nil {
		w.headers = make(map[int]oldserver.Header)
	}
	w.headers[number] = h
	delete(w.refused, number)
}

var errListing = errors.New("the old server shows a listing that cannot be used")

func (w *Watcher) addSize(number int, text string) {
	word, _, _ := strings.Cut(text, " ")
	size, err := strconv.ParseInt(word, 10, 64)
	if err != nil || size < 0 || size > maxSize {
		w.spoil()
		return
	}
	add(w, &w.sizes, number, size)
}

func (w *Watcher) addUIDL(number int, text string) {
	text = strings.TrimSpace(text)
	if text == "" {
		w.spoil()
		return
	}
	add(w, &w.uidls, number, strings.Clone(text[:min(len(text), maxUIDL)]))
}

func (w *Watcher) spoil() {
	w.mu.Lock()
	w.err = errListing
	w.mu.Unlock()
}

// add adds what a line says of a message. A later response must say the same.
func add[T comparable](w *Watcher, l *listing[T], number int, value T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var none T
	switch {
	case !w.on:
		return
	case number < 1 || number > w.count:
		w.err = errListing
		return
	}
	if l.values == nil {
		l.values = make([]T, w.count)
	}
	switch l.values[number-1] {
	case none:
		l.values[number-1] = value
		l.known++
	case value:
	default:
		w.err = errListing
	}
}

// Ask implements relay.POP3Watcher.
func (w *Watcher) Ask(most int) (commands []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on || w.err != nil || w.wanted == nil || !w.asksUID {
		return nil
	}
	for ; w.step < 2; w.step++ {
		command, known := "LIST", w.sizes.known
		if w.step == 1 {
			command, known = "UIDL", w.uidls.known
		}
		if known < w.count && w.count <= maxListed {
			w.step++
			return []string{command}
		}
	}
	if w.step == 2 {
		w.step++
		w.plan = w.unread()
	}
	if len(w.refused) >= maxRefused {
		return nil
	}
	n := min(most, len(w.plan), maxAsked-w.asked)
	for _, number := range w.plan[:n] {
		commands = append(commands, fmt.Sprintf("TOP %d 0", number))
	}
	w.plan, w.asked = w.plan[n:], w.asked+n
	return commands
}

// unread returns the messages whose header is wanted. It begins anywhere, so that messages
// that the server refuses do not keep others from their turn.
func (w *Watcher) unread() (numbers []int) {
	if w.uidls.known < w.count || w.sizes.known < w.count {
		return nil
	}
	for i, id := range w.uidls.values {
		if m := (oldserver.Message{Number: i + 1, UIDL: id, Size: w.sizes.values[i]}); !w.headers[i+1].Known && uidl.Valid(id) && w.wanted(m) {
			numbers = append(numbers, i+1)
		}
	}
	if len(numbers) <= maxAsked {
		return numbers
	}
	at := rand.IntN(len(numbers))
	return append(numbers[at:len(numbers):len(numbers)], numbers[:at]...)
}

// Quit implements relay.POP3Watcher.
func (w *Watcher) Quit(ok bool, deleted []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.deleted = deleted
	} else {
		w.unknown = len(deleted) > 0
	}
}

// lines gives each line of a listing, without CRLF and with its number, to each.
type lines struct {
	each func(number int, text string)
	end  func()
	line []byte
}

// Write implements io.Writer. It never fails.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte("\n"))
		p = rest
		if len(l.line)+len(part) <= maxLine {
			l.line = append(l.line, part...)
		}
		if !ended {
			break
		}
		text := string(bytes.TrimSuffix(l.line, []byte("\r")))
		l.line = l.line[:0]
		if text == listEnd {
			break
		}
		word, text, _ := strings.Cut(strings.TrimPrefix(text, "."), " ")
		number, err := strconv.Atoi(word)
		if err != nil {
			number = 0 // no message has it
		}
		l.each(number, text)
	}
	return n, nil
}

// header hashes the header of a message as it is on the wire.
type header struct {
	hash   uidl.HeaderHash
	inLine bool // the next octet does not begin a line
	done   func(oldserver.Header)
}

// Write implements io.Writer. It never fails.
func (h *header) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && h.done != nil {
		if !h.inLine && p[0] == '.' { // the "." of the end becomes an empty line, which ends the header, too
			p, h.inLine = p[1:], true
			continue
		}
		i := bytes.IndexByte(p, '\n') + 1
		h.inLine = i == 0
		if i == 0 {
			i = len(p)
		}
		_, _ = h.hash.Write(p[:i])
		p = p[i:]
		if h.hash.Done() {
			h.hash.End()
			h.done(oldserver.Header{Known: true, Hash: h.hash.Sum(), Distinct: h.hash.Distinct()})
			h.done = nil
		}
	}
	return n, nil
}
