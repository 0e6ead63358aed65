package bridge_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A mail is a message of a mailbox. Its id and body never change; its UID does
// when UIDVALIDITY changes.
type mail struct {
	id      int
	uid     uint32
	body    string
	deleted bool // has the \Deleted flag
	foreign bool // another client has set it
	marked  bool // a command of the bridge has
	hidden  bool // has the keyword $POP3Deleted
}

func (m *mail) messageID() string { return fmt.Sprintf("<%d@example.org>", m.id) }

func (m *mail) date() string {
	return time.Unix(1_700_000_000+int64(m.id)*977, 0).UTC().Format("_2-Jan-2006 15:04:05 -0700")
}

func (m *mail) split() (header, text string) {
	header, text, _ = strings.Cut(m.body, "\r\n\r\n")
	return header + "\r\n\r\n", text
}

// A mailbox is the INBOX of one account with the IMAP server in front, which
// misbehaves as its plan says. Every field is guarded by mu once a connection
// is served.
type mailbox struct {
	mu           sync.Mutex
	uidValidity  uint32
	uidNext      uint32
	mails        []*mail // UID ascends
	ever         []*mail // by id
	gone         map[int]string
	lied         map[int]bool // OK was said to a change that was not made
	capabilities string
	silent       bool     // SELECT does not say UIDNEXT
	dumb         bool     // nor does STATUS
	guesses      bool     // the bridge takes RFC822.SIZE for a guess
	liberties    []string // of grammar

	absent     bool // the store is not mounted
	unreadable int  // id of the message that cannot be read; -1: none
	refuses    refusal

	plan   []*fault
	fired  []string
	broken map[int]int  // bodies that went wrong, by id
	cut    map[int]bool // bodies that came short in a response that is well-formed
	agreed int          // bodies that clients have had whole

	seed    uint64
	conns   int
	unknown string
	log     *strings.Builder // nil: nobody reads it
}

// A refusal is how the server answers for a message that cannot be read.
type refusal struct {
	size bool // also sizes and all else; else only the octets of the message
	how  string
}

// A fault is what goes wrong at one command.
type fault struct {
	class string // of command; "": any
	after int    // so many commands of the class
	kind  string
	done  bool
}

// kinds are the faults that a command can meet.
var kinds = []string{
	"NO", "NO after some", "BAD", "OK without data", "row missing", "number missing", "row doubled", "row extra", "row other",
	"row split", "UID missing", "literal long", "literal short", "body short", "BYE", "lost", "lost within", "silence", "silence within", "unasked",
}

var classes = []string{
	"", "", "SELECT", "SELECT", "STATUS", "sizes", "sizes", "prints", "header", "body", "body", "body", "part", "text", "SEARCH", "SEARCH",
	"STORE", "EXPUNGE", "MOVE", "COPY", "LIST", "NOOP", "LOGOUT", "ENABLE", "dial",
}

var codes = []string{"", "[UNAVAILABLE] ", "[LIMIT] ", "[THROTTLED] ", "[OVERQUOTA] ", "[SERVERBUG] "}

func (b *mailbox) find(uid uint32) *mail {
	i, ok := slices.BinarySearchFunc(b.mails, uid, func(m *mail, uid uint32) int { return int(int64(m.uid) - int64(uid)) })
	if !ok {
		return nil
	}
	return b.mails[i]
}

func (b *mailbox) deliver(body string) *mail {
	m := &mail{id: len(b.ever), uid: b.uidNext, body: body}
	b.uidNext++
	b.mails, b.ever = append(slices.Clone(b.mails), m), append(b.ever, m)
	return m
}

// remove removes the messages that match, and says who did.
func (b *mailbox) remove(who string, doomed func(*mail) bool) {
	b.mails = slices.DeleteFunc(slices.Clone(b.mails), func(m *mail) bool {
		if doomed(m) {
			b.gone[m.id] = who
			return true
		}
		return false
	})
}

// move gives all messages new UIDs under a new UIDVALIDITY.
func (b *mailbox) move() {
	b.uidValidity += 1000
	for _, m := range b.mails {
		m.uid += 3
	}
	b.uidNext += 5
}

// dial returns the client's end of a new connection that is logged in; nil if
// the login fails.
func (b *mailbox) dial() net.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns++
	if b.meets("dial") != nil {
		return nil
	}
	near, far := pipe()
	c := &imapConn{box: b, conn: far, random: rand.New(rand.NewPCG(b.seed, uint64(b.conns))), number: b.conns}
	go c.serve()
	return near
}

// meets returns the fault that a command of the class meets; nil: none.
func (b *mailbox) meets(class string) *fault {
	for _, f := range b.plan {
		if f.done || f.class != "" && f.class != class || f.class == "" && class == "dial" {
			continue
		}
		if f.after > 0 {
			f.after--
			continue
		}
		f.done = true
		b.fired = append(b.fired, f.kind+" at "+class)
		return f
	}
	return nil
}

// An imapConn is a connection of the server.
type imapConn struct {
	box    *mailbox
	conn   net.Conn
	random *rand.Rand
	number int
	told   []*mail // what the client knows to be there
	out    bytes.Buffer
}

// A row is an untagged response.
type row struct {
	text  string // without "* "; "": it is a FETCH response
	mail  *mail
	seq   int
	items []item
}

type item struct {
	name, value string
	literal     bool
	differs     int // of the announced size from the true one
}

func (c *imapConn) serve() {
	defer func() { _ = c.conn.Close() }()
	in := bufio.NewReaderSize(c.conn, 512)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		c.out.Reset()
		c.box.mu.Lock()
		goesOn, silent := c.answer(line)
		if c.box.log != nil {
			fmt.Fprintf(c.box.log, "      imap %d C: %s\n", c.number, line)
			for part := range strings.SplitSeq(strings.TrimRight(brief(c.out.String()), "\r\n"), "\r\n") {
				fmt.Fprintf(c.box.log, "      imap %d S: %s\n", c.number, part)
			}
			if !goesOn {
				fmt.Fprintf(c.box.log, "      imap %d S: <%s>\n", c.number, map[bool]string{true: "silence", false: "EOF"}[silent])
			}
		}
		c.box.mu.Unlock()
		if _, err := c.conn.Write(c.out.Bytes()); err != nil {
			return
		}
		if silent {
			_, _ = io.Copy(io.Discard, in)
		}
		if !goesOn {
			return
		}
	}
}

// brief shortens what is too long to read.
func brief(s string) string {
	var b strings.Builder
	for line := range strings.SplitAfterSeq(s, "\n") {
		if len(line) > 120 {
			line = fmt.Sprintf("%s...(%d octets)\r\n", line[:100], len(line))
		}
		b.WriteString(line)
		if b.Len() > 4000 {
			fmt.Fprintf(&b, "...(%d octets in all)\r\n", len(s))
			break
		}
	}
	return b.String()
}

// classOf returns of which class a command is.
func classOf(command string) string {
	word, rest, _ := strings.Cut(strings.TrimPrefix(command, "UID "), " ")
	if word != "FETCH" {
		return word
	}
	switch rest = strings.ToUpper(rest); {
	case strings.Contains(rest, "HEADER.FIELDS"):
		return "prints"
	case strings.Contains(rest, "[]<"):
		return "part"
	case strings.Contains(rest, "[]"):
		return "body"
	case strings.Contains(rest, "[TEXT]"):
		return "text"
	case strings.Contains(rest, "[HEADER]"):
		return "header"
	}
	return "sizes"
}

// answer makes the answer to one command. goesOn says that the connection does.
func (c *imapConn) answer(line string) (goesOn, silent bool) {
	tag, command, _ := strings.Cut(line, " ")
	class := classOf(command)
	f := c.box.meets(class)
	if f == nil {
		rows, result := c.carryOut(tag, command)
		c.write(rows)
		c.finish(tag, result)
		return class != "LOGOUT", false
	}
	r := c.random
	changes := slices.Contains([]string{"STORE", "EXPUNGE", "MOVE", "COPY"}, class)
	words := codes[r.IntN(len(codes))] + "this does not work now"
	switch f.kind {
	case "NO", "BAD", "silence", "BYE", "lost":
		if changes && r.IntN(3) == 0 { // it is carried out, and the answer is not that
			c.carryOut(tag, command)
		}
		c.blame(command)
		switch f.kind {
		case "NO", "BAD":
			c.finish(tag, f.kind+" "+words)
			return class != "LOGOUT", false
		case "BYE":
			c.out.WriteString("* BYE " + words + "\r\n")
		}
		return false, f.kind == "silence"
	case "OK without data":
		if changes && r.IntN(2) == 0 {
			c.lie(command)
		} else {
			c.carryOut(tag, command)
		}
		c.finish(tag, "OK done")
		return class != "LOGOUT", false
	}
	if f.kind == "unasked" {
		c.change()
	}
	rows, result := c.carryOut(tag, command)
	if f.kind == "unasked" && len(c.told) > 0 && class != "SELECT" { // flags that another client has changed
		i := r.IntN(len(c.told))
		flags := row{mail: c.told[i], seq: i + 1, items: []item{{name: "FLAGS", value: `(\Seen)`}}}
		if r.IntN(2) == 0 {
			flags.items = append(flags.items, item{name: "UID", value: strconv.FormatUint(uint64(c.told[i].uid), 10)})
		}
		rows = slices.Insert(rows, r.IntN(len(rows)+1), flags)
		if r.IntN(2) == 0 {
			rows = append(rows, row{text: fmt.Sprintf("%d EXISTS", len(c.told))})
		}
	}
	if rows = c.spoil(f.kind, class, rows); f.kind == "NO after some" {
		result = "NO " + words
	}
	c.write(rows)
	c.finish(tag, result)
	if strings.HasSuffix(f.kind, "within") {
		c.blame(command)
		c.out.Truncate(r.IntN(c.out.Len()))
		return false, f.kind == "silence within"
	}
	return class != "LOGOUT", false
}

// blame remembers that the bodies that a command asks for did not come.
func (c *imapConn) blame(command string) {
	if class := classOf(command); class == "body" || class == "text" {
		for _, m := range c.among(strings.Fields(command)[2]) {
			c.box.broken[m.id]++
		}
	}
}

// lie remembers that OK was said to a command that was not carried out.
func (c *imapConn) lie(command string) {
	words := strings.Fields(strings.TrimPrefix(command, "UID "))
	if len(words) < 2 {
		words = append(words, "1:*")
	}
	for _, m := range c.among(words[1]) {
		c.box.lied[m.id] = true
	}
}

// change is what other clients do, and tells it with the next answer.
func (c *imapConn) change() {
	b := c.box
	if b.absent {
		return
	}
	if c.random.IntN(2) == 0 {
		b.deliver(randomBody(c.random, len(b.ever)))
	} else if len(b.mails) > 0 {
		i := c.random.IntN(len(b.mails))
		b.remove("IMAP", func(m *mail) bool { return m == b.mails[i] })
	}
}

// spoil makes a fault of a right answer.
func (c *imapConn) spoil(kind, class string, rows []row) []row {
	r := c.random
	if len(rows) == 0 {
		return rows
	}
	i := r.IntN(len(rows))
	one := rows[i]
	literals := func(differs int) []row {
		for k := range one.items {
			if v := &one.items[k]; v.literal && -differs <= len(v.value) {
				v.differs = differs
				c.box.broken[one.mail.id]++
			}
		}
		rows[i] = one
		return rows
	}
	switch kind {
	case "NO after some":
		return rows[:i]
	case "row missing":
		return slices.Delete(rows, i, i+1)
	case "number missing":
		if word, rest, ok := strings.Cut(one.text, "SEARCH "); ok && word == "" {
			numbers := strings.Fields(rest)
			k := r.IntN(len(numbers))
			rows[i].text = strings.TrimSpace("SEARCH " + strings.Join(slices.Delete(numbers, k, k+1), " "))
			return rows
		}
		return slices.Delete(rows, i, i+1)
	case "UID missing": // then the numbers mean others, or nobody knows which
		if one.mail == nil {
			rows[i].text = strings.Replace(one.text, ") UID", ")", 1)
			return rows
		}
		rows[i].items = slices.DeleteFunc(slices.Clone(one.items), func(v item) bool { return v.name == "UID" })
		c.box.broken[one.mail.id]++
		return rows
	case "row doubled":
		return slices.Insert(rows, i, one)
	case "row extra", "row other":
		if one.mail == nil || len(c.told) < 2 {
			return rows
		}
		k := r.IntN(len(c.told))
		other := row{mail: c.told[k], seq: k + 1}
		for _, v := range one.items {
			other.items = append(other.items, c.item(other.mail, v.name))
		}
		if kind == "row other" {
			rows[i] = other
			return rows
		}
		return slices.Insert(rows, i, other)
	case "row split":
		if words := strings.Fields(one.text); len(words) > 2 && words[0] == "SEARCH" {
			k := 1 + r.IntN(len(words)-1)
			rows[i].text = strings.Join(words[:k], " ")
			return slices.Insert(rows, i+1, row{text: "SEARCH " + strings.Join(words[k:], " ")})
		}
		if len(one.items) < 2 {
			return rows
		}
		uid := c.item(one.mail, "UID")
		first, second := one, one
		k := 1 + r.IntN(len(one.items)-1)
		first.items, second.items = slices.Clone(one.items[:k]), slices.Clone(one.items[k:])
		for _, half := range []*row{&first, &second} { // RFC 9051 section 6.4.9: each has the UID
			if !slices.ContainsFunc(half.items, func(v item) bool { return v.name == "UID" }) {
				half.items = append([]item{uid}, half.items...)
			}
		}
		rows[i] = first
		return slices.Insert(rows, i+1, second)
	case "body short": // what nobody can tell without RFC822.SIZE, and then only of a server whose sizes agree
		if class != "body" || c.box.agreed == 0 || c.box.guesses {
			return literals(-1 - r.IntN(60))
		}
		for k := range one.items {
			if v := &one.items[k]; v.literal && len(v.value) > 100 {
				v.value = v.value[:100+r.IntN(len(v.value)-100)]
				c.box.cut[one.mail.id] = true
			}
		}
		return rows
	case "literal long":
		return literals(1 + r.IntN(60))
	case "literal short":
		return literals(-1 - r.IntN(60))
	}
	return rows
}

// write writes rows, with liberties of grammar if the server takes some.
func (c *imapConn) write(rows []row) {
	out := &c.out
	for _, w := range rows {
		if w.text != "" {
			out.WriteString("* " + c.free(w.text) + "\r\n")
			continue
		}
		fmt.Fprintf(out, "* %s", c.free(fmt.Sprintf("%d FETCH ", w.seq)))
		out.WriteString("(")
		for i, v := range w.items {
			if i > 0 {
				out.WriteString(" ")
			}
			name, space := v.name, " "
			if c.takes("case") {
				name = strings.ToLower(name)
			}
			if v.literal && c.takes("no space before a literal") {
				space = ""
			}
			if !v.literal && c.takes("spaces") {
				space = "  "
			}
			out.WriteString(name + space)
			if v.literal {
				fmt.Fprintf(out, "{%d}\r\n", len(v.value)+v.differs)
			}
			out.WriteString(v.value)
		}
		out.WriteString(")\r\n")
	}
}

func (c *imapConn) finish(tag, result string) {
	c.out.WriteString(tag + " " + c.free(result) + "\r\n")
}

// liberties are those that servers are seen to take, and that change no meaning.
var liberties = []string{"case", "spaces", "leading zeros", "code alone", "no space before a literal", "UIDNEXT 0"}

// takes reports whether the server takes a liberty now.
func (c *imapConn) takes(liberty string) bool {
	return slices.Contains(c.box.liberties, liberty) && c.random.IntN(3) == 0
}

// free takes liberties with a line.
func (c *imapConn) free(text string) string {
	// A name or a tag in another case would be another one.
	if c.takes("case") && !strings.HasPrefix(text, "LIST") && !strings.HasPrefix(text, "ESEARCH") {
		text = strings.ToLower(text)
	}
	if c.takes("spaces") {
		text = strings.Replace(text, " ", "  ", 1)
	}
	if text[0] >= '1' && text[0] <= '9' && c.takes("leading zeros") {
		text = "00" + text
	}
	if code, _, ok := strings.Cut(text, "] "); ok && c.takes("code alone") {
		text = code + "]"
	}
	return text
}

// carryOut does what a command says.
func (c *imapConn) carryOut(tag, command string) (rows []row, result string) {
	b := c.box
	line := func(format string, args ...any) { rows = append(rows, row{text: fmt.Sprintf(format, args...)}) }
	mails, uidValidity, uidNext := b.mails, b.uidValidity, b.uidNext
	if b.absent {
		mails, uidValidity, uidNext = nil, b.uidValidity+77, 1
	}
	isUID := strings.HasPrefix(command, "UID ")
	if isUID || command == "NOOP" {
		rows = c.tell(mails)
	}
	word, rest, _ := strings.Cut(strings.TrimPrefix(command, "UID "), " ")
	switch word {
	case "ENABLE":
		line("ENABLED UTF8=ACCEPT")
	case "SELECT":
		c.told = slices.Clone(mails)
		line(`FLAGS (\Answered \Flagged \Deleted \Seen \Draft)`)
		line(`OK [PERMANENTFLAGS (\Deleted \Seen \*)] Limited`)
		line("%d EXISTS", len(mails))
		line("0 RECENT")
		line("OK [UIDVALIDITY %d] UIDs valid", uidValidity)
		switch {
		case b.silent && slices.Contains(b.liberties, "UIDNEXT 0"):
			line("OK [UIDNEXT 0] Predicted next UID")
		case !b.silent:
			line("OK [UIDNEXT %d] Predicted next UID", uidNext)
		}
		return rows, "OK [READ-WRITE] Select completed"
	case "STATUS":
		next := fmt.Sprintf(" UIDNEXT %d", uidNext)
		if b.dumb {
			next = ""
		}
		line("STATUS INBOX (MESSAGES %d UIDVALIDITY %d%s)", len(mails), uidValidity, next)
	case "SEARCH":
		return append(rows, c.search(tag, rest)...), "OK Search completed"
	case "FETCH":
		return c.fetch(rows, rest)
	case "STORE":
		set, flags, _ := strings.Cut(rest, " ")
		for _, m := range c.among(set) {
			if strings.Contains(flags, `\Deleted`) {
				m.deleted = flags[0] == '+'
				m.marked = m.marked || m.deleted && !m.foreign
			}
			if strings.Contains(strings.ToLower(flags), "$pop3deleted") {
				m.hidden = flags[0] == '+'
			}
		}
	case "EXPUNGE":
		doomed := c.told
		if isUID {
			doomed = c.among(rest)
		}
		b.remove(command, func(m *mail) bool { return m.deleted && slices.Contains(doomed, m) })
		rows = append(rows, c.tell(b.mails)...)
	case "MOVE":
		set, _, _ := strings.Cut(rest, " ")
		doomed := c.among(set)
		b.remove(command, func(m *mail) bool { return slices.Contains(doomed, m) })
		rows = append(rows, c.tell(b.mails)...)
	case "COPY", "NOOP":
	case "LIST":
		line(`LIST (\HasNoChildren) "/" INBOX`)
		line(`LIST (\HasNoChildren \Trash) "/" Trash`)
	case "LOGOUT":
		line("BYE Logging out")
	default:
		b.unknown = command
		return nil, "BAD unknown command"
	}
	return rows, "OK done"
}

// among returns the messages of a UID set.
func (c *imapConn) among(set string) (some []*mail) {
	last := uint32(0)
	if n := len(c.told); n > 0 {
		last = c.told[n-1].uid
	}
	for _, m := range c.told {
		if contains(set, m.uid, last) && c.box.find(m.uid) == m {
			some = append(some, m)
		}
	}
	return some
}

// tell says what has changed, as a server may with every UID command (RFC 9051
// section 7.5.1).
func (c *imapConn) tell(mails []*mail) (rows []row) {
	for i, m := range slices.Backward(c.told) {
		if !slices.Contains(mails, m) {
			rows = append(rows, row{text: fmt.Sprintf("%d EXPUNGE", i+1)})
			c.told = slices.Delete(slices.Clone(c.told), i, i+1)
		}
	}
	if len(mails) > len(c.told) {
		rows = append(rows, row{text: fmt.Sprintf("%d EXISTS", len(mails))})
		c.told = slices.Clone(mails)
	}
	return rows
}

func (c *imapConn) search(tag, keys string) []row {
	extended := false
	options := ""
	if rest, ok := strings.CutPrefix(keys, "RETURN ("); ok {
		extended = true
		options, keys, _ = strings.Cut(rest, ") ")
	}
	if rest, ok := strings.CutPrefix(keys, "CHARSET UTF-8 "); ok {
		keys = rest
	}
	found := slices.Clone(c.told)
	words := strings.Fields(keys)
	for i := 0; i < len(words); i++ {
		word, arg := strings.Trim(words[i], "()"), ""
		if i+1 < len(words) {
			arg = strings.Trim(words[i+1], "()")
		}
		lacks := func(*mail) bool { return false }
		switch word {
		case "ALL":
		case "UID":
			among := c.among(arg)
			lacks = func(m *mail) bool { return !slices.Contains(among, m) }
			i++
		case "DELETED":
			lacks = func(m *mail) bool { return !m.deleted }
		case "UNDELETED":
			lacks = func(m *mail) bool { return m.deleted }
		case "KEYWORD":
			lacks = func(m *mail) bool { return !m.hidden }
			i++
		default:
			c.box.unknown = "SEARCH " + keys
		}
		found = slices.DeleteFunc(found, lacks)
	}
	if !extended {
		text := "SEARCH"
		for _, m := range found {
			text += " " + strconv.FormatUint(uint64(m.uid), 10)
		}
		return []row{{text: text}}
	}
	text := fmt.Sprintf("ESEARCH (TAG %q) UID", tag)
	if strings.Contains(options, "COUNT") {
		text += fmt.Sprintf(" COUNT %d", len(found))
	}
	if strings.Contains(options, "ALL") && len(found) > 0 {
		text += " ALL "
		for i, m := range found {
			if i > 0 {
				text += ","
			}
			text += strconv.FormatUint(uint64(m.uid), 10)
		}
	}
	return []row{{text: text}}
}

func (c *imapConn) fetch(rows []row, args string) ([]row, string) {
	b := c.box
	set, list, _ := strings.Cut(args, " ")
	names := itemsOf(list)
	result := "OK Fetch completed"
	among := c.among(set)
	for i, m := range c.told {
		if !slices.Contains(among, m) {
			continue
		}
		w := row{mail: m, seq: i + 1}
		octets := strings.Contains(list, "[]") || strings.Contains(list, "[TEXT]")
		refused := m.id == b.unreadable && (octets || b.refuses.size)
		if refused && b.refuses.how != "empty" {
			result = b.refuses.how
			continue
		}
		for _, name := range names {
			v := c.item(m, name)
			if refused && v.literal {
				v.value = ""
			}
			w.items = append(w.items, v)
		}
		if len(names) == 0 || names[0] != "UID" && !slices.Contains(names, "UID") {
			w.items = append([]item{c.item(m, "UID")}, w.items...)
		}
		rows = append(rows, w)
	}
	return rows, result
}

// itemsOf splits a list of items.
func itemsOf(list string) (names []string) {
	list = strings.TrimSuffix(strings.TrimPrefix(list, "("), ")")
	depth, from := 0, 0
	for i := range len(list) {
		switch list[i] {
		case '[', '(':
			depth++
		case ']', ')':
			depth--
		case ' ':
			if depth == 0 {
				names, from = append(names, list[from:i]), i+1
			}
		}
	}
	return append(names, list[from:])
}

// item returns an item of a message as a FETCH response has it. The name is
// that of the command, or of a response.
func (c *imapConn) item(m *mail, name string) item {
	name = strings.Replace(name, ".PEEK", "", 1)
	switch strings.ToUpper(name) {
	case "UID":
		return item{name: name, value: strconv.FormatUint(uint64(m.uid), 10)}
	case "RFC822.SIZE":
		return item{name: name, value: strconv.Itoa(len(m.body))}
	case "INTERNALDATE":
		return item{name: name, value: strconv.Quote(m.date())}
	case "FLAGS":
		return item{name: name, value: "()"}
	}
	header, text := m.split()
	section, partial, _ := strings.Cut(name, "<")
	var value string
	switch upper := strings.ToUpper(section); {
	case upper == "BODY[]":
		value = m.body
	case upper == "BODY[HEADER]":
		value = header
	case upper == "BODY[TEXT]":
		value = text
	case strings.HasPrefix(upper, "BODY[HEADER.FIELDS"):
		value = "Message-ID: " + m.messageID() + "\r\n\r\n"
	default:
		c.box.unknown = "FETCH " + name
	}
	var offset, size int
	if n, _ := fmt.Sscanf(partial, "%d.%d>", &offset, &size); n == 2 {
		value = value[min(offset, len(value)):min(offset+size, len(value))]
		section = fmt.Sprintf("%s<%d>", section, offset)
	} else if partial != "" { // of a response
		section = name
	}
	return item{name: section, value: value, literal: true}
}

// contains reports whether uid is in set, for which last is the last message.
func contains(set string, uid, last uint32) bool {
	number := func(s string) uint32 {
		if s == "*" {
			return last
		}
		n, _ := strconv.ParseUint(s, 10, 32)
		return uint32(n)
	}
	for part := range strings.SplitSeq(set, ",") {
		first, second, isRange := strings.Cut(part, ":")
		from := number(first)
		to := from
		if isRange {
			to = number(second)
		}
		if min(from, to) <= uid && uid <= max(from, to) {
			return true
		}
	}
	return false
}

// randomBody returns a message that no other is the same as.
func randomBody(random *rand.Rand, id int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Message-ID: <%d@example.org>\r\nX-Id: %d\r\nSubject: number %d\r\n\r\n", id, id, id)
	size := random.IntN(400)
	switch random.IntN(32) {
	case 0:
		size = 9_000 + random.IntN(9_000) // more than is read before +OK
	case 1:
		size = 0
	}
	for n := b.Len() + size; b.Len() < n; {
		b.WriteString([]string{".\r\n", "..two\r\n", "text of a line\r\n", "\r\n", strings.Repeat("x", random.IntN(70)) + "\r\n", "from: somebody\r\n"}[random.IntN(6)])
	}
	if random.IntN(6) == 0 {
		b.WriteString("a line without an end")
	}
	return b.String()
}

// pipe returns the ends of a connection in memory that holds what was written
// until it is read, as TCP does, and obeys deadlines.
func pipe() (a, b net.Conn) {
	var mu sync.Mutex
	one, two := newStream(&mu), newStream(&mu)
	return &end{in: one, out: two}, &end{in: two, out: one}
}

// A stream is one direction of a pipe.
type stream struct {
	mu       *sync.Mutex
	change   *sync.Cond
	data     []byte
	ended    bool // by the writer
	closed   bool // by the reader
	deadline time.Time
}

func newStream(mu *sync.Mutex) *stream { return &stream{mu: mu, change: sync.NewCond(mu)} }

type end struct{ in, out *stream }

func (e *end) Read(p []byte) (int, error) {
	s := e.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case !s.deadline.IsZero() && !time.Now().Before(s.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(s.data) > 0:
			n := copy(p, s.data)
			s.data = s.data[n:]
			return n, nil
		case s.ended:
			return 0, io.EOF
		}
		var timer *time.Timer
		if !s.deadline.IsZero() {
			timer = time.AfterFunc(time.Until(s.deadline), func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.change.Broadcast()
			})
		}
		s.change.Wait()
		if timer != nil {
			timer.Stop()
		}
	}
}

func (e *end) Write(p []byte) (int, error) {
	s := e.out
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.closed {
		return 0, io.ErrClosedPipe
	}
	s.data = append(s.data, p...)
	s.change.Broadcast()
	return len(p), nil
}

func (e *end) Close() error {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	e.in.closed, e.out.ended = true, true
	e.in.change.Broadcast()
	e.out.change.Broadcast()
	return nil
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	e.in.deadline = t
	e.in.change.Broadcast()
	return nil
}

func (e *end) SetDeadline(t time.Time) error  { return e.SetReadDeadline(t) }
func (*end) SetWriteDeadline(time.Time) error { return nil }
func (*end) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*end) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
