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
	"time"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
)

const (
	maxMessages = 1 << 18               // of a maildrop that is compared
	maxLine     = 512                   // octets of a line of LIST and UIDL
	maxUIDL     = 100                   // octets of a unique id, which may have 70, that are kept
	maxSize     = 1 << 40               // octets of a message
	maxAsked    = 200                   // TOPs in a session
	maxListed   = 5_000                 // messages of a maildrop for which LIST or UIDL is sent before QUIT
	maxRefused  = 10                    // TOPs that are refused before a session sends no more
	maxWhole    = 64 << 10              // octets of a message that is compared as a whole
	slowAnswer  = 50 * time.Millisecond // from the old server, for which a client should not wait
	sampleFrom  = 2_000                 // messages from which a sample of headers is enough
	// allLines asks TOP for the whole message. RETR would be remembered by servers that
	// delete what was retrieved.
	allLines = 999999999
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

	sums map[int]oldserver.Sum // of whole messages, by number

	wanted func(m oldserver.Message) bool // whether the header is wanted; nil: none is yet
	bodies map[string]bool                // UIDLs of whose messages the whole is wanted
	plan   []request                      // TOPs to come
	whole  map[int]bool                   // numbers of the messages that TOP was sent for with all lines
	asked  int                            // TOPs
	step   int                            // of Ask
	sent   time.Time                      // when Ask was called last; zero: never
	slow   bool                           // an answer to Ask took longer than slowAnswer

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
	w.on, w.sizes, w.uidls, w.headers, w.sums, w.plan, w.wanted = false, listing[int64]{}, listing[string]{}, nil, nil, nil, nil
}

// want says of which messages a header, or the whole message, is wanted.
func (w *Watcher) want(s accountState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bodies = set(s.Bodies)
	if some := set(s.Wanted); !s.Compared.IsZero() {
		w.wanted = func(m oldserver.Message) bool { return some[m.UIDL] }
	} else {
		w.wanted = func(m oldserver.Message) bool { return w.count < sampleFrom && !s.headers.Get(m).Known }
	}
}

func set(ids []string) map[string]bool {
	all := make(map[string]bool, len(ids))
	for _, id := range ids {
		all[id] = true
	}
	return all
}

// A request is a TOP that is to be sent: for the header, or for the whole message.
type request struct {
	number int
	whole  bool
}

func (r request) String() string {
	if r.whole {
		return fmt.Sprintf("TOP %d %d", r.number, allLines)
	}
	return fmt.Sprintf("TOP %d 0", r.number)
}

// Response implements relay.POP3Watcher.
func (w *Watcher) Response(keyword string, number int, ok bool) io.Writer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return nil
	}
	w.slow = w.slow || !w.sent.IsZero() && time.Since(w.sent) > slowAnswer
	switch keyword {
	case "UIDL":
		w.asksUID = w.asksUID || ok
		if number == 0 && ok {
			return &lines{each: w.addUIDL}
		}
	case "LIST":
		if number == 0 && ok {
			return &lines{each: w.addSize}
		}
	case "RETR", "TOP":
		switch {
		case number < 1 || number > w.count:
		case !ok && keyword == "TOP":
			if w.refused == nil {
				w.refused = make(map[int]bool)
			}
			w.refused[number] = true
		case !ok:
		case w.whole[number] || keyword == "RETR" && w.wantsBody(number):
			return &message{content: new(uidl.ContentHash), done: func(m *message) { w.addMessage(number, m) }}
		case !w.headers[number].Known:
			return &message{done: func(m *message) { w.addMessage(number, m) }}
		}
	}
	return nil
}

// refuses reports whether the server has refused TOP for a message, or for all that it was
// sent for: some servers do not have it.
func (w *Watcher) refuses(number int) bool {
	return w.refused[number] || len(w.refused) >= maxRefused && len(w.refused) >= w.asked
}

func (w *Watcher) addMessage(number int, m *message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return
	}
	if w.headers == nil {
		w.headers, w.sums = make(map[int]oldserver.Header), make(map[int]oldserver.Sum)
	}
	w.headers[number] = oldserver.Header{Known: true, Hash: m.header.Sum(), Distinct: m.header.Distinct()}
	if m.content != nil {
		w.sums[number] = m.content.Sum()
	}
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
	if !w.on || w.err != nil || w.wanted == nil || !w.asksUID || w.slow {
		return nil
	}
	w.sent = time.Now()
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
		w.plan = w.requests()
	}
	if len(w.refused) >= maxRefused {
		return nil
	}
	n := min(most, len(w.plan), maxAsked-w.asked)
	for _, r := range w.plan[:n] {
		if commands = append(commands, r.String()); r.whole {
			w.whole[r.number] = true
		}
	}
	w.plan, w.asked = w.plan[n:], w.asked+n
	return commands
}

// requests returns the TOPs for what is wanted. They begin anywhere, so that messages that
// the server refuses do not keep others from their turn. Messages that share a UIDL are
// only told apart within a session, and by all that they contain.
func (w *Watcher) requests() (all []request) {
	w.whole = make(map[int]bool)
	if w.uidls.known < w.count || w.sizes.known < w.count {
		return nil
	}
	seen := make(map[string]int)
	for _, id := range w.uidls.values {
		seen[id]++
	}
	for i, id := range w.uidls.values {
		number := i + 1
		r := request{number, w.bodies[id] || seen[id] > 1}
		switch {
		case !uidl.Valid(id) || !w.bodies[id] && !w.wanted(oldserver.Message{UIDL: id, Size: w.sizes.values[i]}):
		case !r.whole && w.headers[number].Known, r.whole && w.sums[number] != oldserver.Sum{}:
		case !r.whole || w.sizes.values[i] <= maxWhole:
			all = append(all, r)
		}
	}
	if len(all) <= maxAsked {
		return all
	}
	at := rand.IntN(len(all))
	return append(all[at:len(all):len(all)], all[:at]...)
}

// wantsBody reports whether a whole message is wanted.
func (w *Watcher) wantsBody(number int) bool {
	return w.uidls.values != nil && w.bodies[w.uidls.values[number-1]]
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
	each  func(number int, text string)
	line  []byte
	ended bool // the "." has come
}

// Write implements io.Writer. It never fails.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !l.ended {
		part, rest, ended := bytes.Cut(p, []byte("\n"))
		p = rest
		l.line = append(l.line, part[:min(len(part), maxLine+1-len(l.line))]...)
		if !ended {
			break
		}
		text := string(bytes.TrimSuffix(l.line, []byte("\r")))
		if len(l.line) > maxLine {
			text = "" // it says nothing
		}
		l.line = l.line[:0]
		if l.ended = text == "."; l.ended {
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

// message hashes a message as it is on the wire: the header, and with content all of it.
type message struct {
	header  uidl.HeaderHash
	content *uidl.ContentHash // nil: not needed
	inLine  bool              // the next octet does not begin a line
	dot     bool              // the line has begun with a dot
	done    func(*message)    // called when all that is needed is known; nil: it was called
}

// Write implements io.Writer. It never fails.
func (m *message) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && m.done != nil {
		if !m.inLine && !m.dot && p[0] == '.' {
			p, m.dot = p[1:], true
			continue
		}
		if !m.inLine && m.dot && (p[0] == '\r' || p[0] == '\n') {
			m.end()
			break
		}
		i := bytes.IndexByte(p, '\n') + 1
		m.dot, m.inLine = false, i == 0
		if i == 0 {
			i = len(p)
		}
		_, _ = m.header.Write(p[:i])
		if m.content != nil {
			_, _ = m.content.Write(p[:i])
		} else if m.header.Done() {
			m.end()
		}
		p = p[i:]
	}
	return n, nil
}

func (m *message) end() {
	m.header.End()
	m.done(m)
	m.done = nil
}
