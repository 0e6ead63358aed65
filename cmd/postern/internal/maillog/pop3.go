package maillog

import (
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
)

// A POP3Login is a successful login of a POP3 server's log, or the end of a session, or
// both.
type POP3Login struct {
	Account string // as in the log
	Time    time.Time

	LoggedIn bool
	Addr     netip.Addr
	TLS      bool
	Version  string // of TLS, such as TLSv1.2; "": the log does not have it

	End *POP3End // nil: the session has not ended
}

// A POP3End says what a session has done, as far as the log has it. Kept and Marked of
// Totals are what the client must have done, by the numbers of retrieved and deleted
// messages.
type POP3End struct {
	proxy.Totals
	Conclusive bool // what the client has not done it did not want to do
}

// A POP3Parser reads the logs of POP3 servers: of Dovecot 2.2 to 2.4, of Courier and of
// Cyrus, as syslog and journalctl -o short-iso write them, and Dovecot itself. It ignores
// all lines but successful logins and the ends of sessions. One log must be read in order:
// lines of Cyrus name the account only at the login.
type POP3Parser struct {
	Parser

	cyrus map[string]cyrusSession // by host, program and process
}

// maxProcesses bounds the processes of Cyrus that are remembered.
const maxProcesses = 1 << 16

// A cyrusSession is what the lines of a process have said so far.
type cyrusSession struct {
	account, version string
	expunged         bool // QUIT has deleted messages
}

// Read is Parser.Read for POP3.
func (p *POP3Parser) Read(r io.Reader, each func(POP3Login) error, progress func(Progress)) (Progress, error) {
	return readLines(r, func(line string) (bool, error) {
		login, ok := p.Parse(line)
		if !ok {
			return false, nil
		}
		return true, each(login)
	}, progress)
}

// Parse returns what a line says, and false for a line that says nothing. As with
// Parser.Parse, no name of a refused login makes the line look like that of a successful
// one.
func (p *POP3Parser) Parse(line string) (login POP3Login, ok bool) {
	at, rest, ok := p.timestamp(line)
	if !ok {
		return login, false
	}
	login.Time = at
	if login.Account, login.End, ok = dovecotPOP3End(rest); ok {
		return login, login.Account != ""
	}
	tag, _, _ := strings.Cut(rest, ": ")
	program, message := programOf(rest)
	switch program[strings.LastIndexByte(program, '/')+1:] {
	case "pop3-login":
		login, ok = dovecotPOP3Login(message)
	case "pop3d", "pop3d-ssl":
		login, ok = courierPOP3(message, program == "pop3d-ssl")
	case "pop3", "pop3s":
		if !strings.Contains(tag, program) { // a process of Dovecot
			return login, false
		}
		login, ok = p.cyrusPOP3(tag, message)
	}
	login.Time = at
	return login, ok && login.Account != ""
}

// dovecotPOP3Login parses a line of pop3-login: see dovecotLogin.
func dovecotPOP3Login(message string) (login POP3Login, ok bool) {
	account, address, ok := dovecotLogin(message)
	if !ok {
		return login, false
	}
	login = POP3Login{Account: account, LoggedIn: true}
	if login.Addr, ok = parseAddr(address); !ok {
		return login, false
	}
	_, fields, _ := strings.Cut(message, ">, ")
	for field := range strings.SplitSeq(fields, ", ") {
		if version, _, _ := strings.Cut(field, " "); strings.HasPrefix(version, "TLS") {
			login.TLS, login.Version = true, strings.TrimPrefix(version, "TLS")
		}
	}
	if login.Version != "" {
		login.Version = "TLS" + login.Version
	}
	return login, true
}

// dovecotPOP3End parses "pop3(name)<pid><session>: Disconnected: Logged out top=0/0,
// retr=1/37, del=0/4, size=88", after the tag of syslog or as in Dovecot's own log.
func dovecotPOP3End(rest string) (account string, e *POP3End, ok bool) {
	text := rest
	if tag, after, ok := strings.Cut(rest, ": "); ok && !strings.HasPrefix(rest, "pop3(") {
		words := strings.Fields(tag)
		if len(words) == 0 || len(words) > 2 {
			return "", nil, false
		}
		if program, _, _ := strings.Cut(words[len(words)-1], "["); program != "dovecot" {
			return "", nil, false
		}
		text = after
	}
	text, ok = strings.CutPrefix(text, "pop3(")
	if !ok {
		return "", nil, false
	}
	account, text, ok = strings.Cut(text, ")")
	if !ok {
		return "", nil, false
	}
	ids, message, ok := strings.Cut(text, ": ")
	if !ok || ids != "" && (ids[0] != '<' || strings.Contains(ids, " ")) {
		return "", nil, false
	}
	message, ok = strings.CutPrefix(strings.TrimPrefix(message, "Info: "), "Disconnected: ")
	if !ok {
		return "", nil, false
	}
	reason, counts, ok := strings.Cut(message, " top=")
	if !ok {
		return "", nil, false
	}
	n := pairs("top="+counts, "/")
	top, retr, deleted := n["top"], n["retr"], n["del"]
	if retr[0] < 0 || deleted[0] < 0 || deleted[1] < 0 {
		return "", nil, false
	}
	e = endOf(retr[0], deleted[0], deleted[1])
	e.Octets = int64(max(0, retr[1]))
	if !strings.Contains(reason, "Logged out") {
		e.Deleted = 0
		e.Conclusive = false
	}
	if top[0] > 0 && retr[0] == 0 && deleted[0] == 0 {
		e.Conclusive = false // some clients download by TOP
	}
	return account, e, true
}

// pairs parses "retr=1/37, del=0/4". A number that is missing or none is -1.
func pairs(text, separator string) map[string][2]int {
	found := map[string][2]int{"top": {-1, -1}, "retr": {-1, -1}, "del": {-1, -1}}
	for field := range strings.SplitSeq(text, ", ") {
		name, value, _ := strings.Cut(field, "=")
		first, second, _ := strings.Cut(value, separator)
		found[name] = [2]int{count(first), count(second)}
	}
	return found
}

// count returns a number of a log, or -1.
func count(text string) int {
	n, err := strconv.ParseUint(text, 10, 40)
	if err != nil {
		return -1
	}
	return int(n)
}

// endOf returns the end of a session with numbers of retrieved and deleted messages, in a
// maildrop of messages; -1: the log does not have their number. The log does not say which
// messages were deleted: if that makes a difference, the end is not Conclusive.
func endOf(retrieved, deleted, messages int) *POP3End {
	e := &POP3End{Conclusive: true}
	e.Messages, e.Downloaded, e.Deleted = max(messages, 0), retrieved, deleted
	switch {
	case deleted < retrieved, deleted == 0:
		e.Kept, e.Marked = retrieved-deleted, deleted
	case retrieved == 0, deleted == messages, messages < 0 && deleted == retrieved:
		e.Marked = deleted
		if retrieved > 0 {
			e.Marked = retrieved // all that it has downloaded
		}
	default:
		e.Conclusive = false
	}
	return e
}

// courierPOP3 parses "LOGOUT, user=name, ip=[address], port=[1], top=0, retr=22, rcvd=14,
// sent=81, time=0, stls=1": the only lines of Courier that say whether there was TLS. They
// have octets and no messages.
func courierPOP3(message string, tls bool) (login POP3Login, ok bool) {
	end, rest, ok := strings.Cut(strings.TrimPrefix(message, "INFO: "), ", user=")
	if !ok {
		return login, false
	}
	switch end {
	case "LOGOUT", "TIMEOUT", "DISCONNECTED", "I/O error disconnect":
	default:
		return login, false
	}
	account, rest, ok := strings.Cut(rest, ", ip=[")
	if !ok {
		return login, false
	}
	address, rest, ok := strings.Cut(rest, "]")
	if !ok {
		return login, false
	}
	login = POP3Login{Account: account, LoggedIn: true, End: new(POP3End)}
	if login.Addr, ok = parseAddr(address); !ok {
		return login, false
	}
	login.End.Octets = int64(max(0, pairs(rest, "/")["retr"][0]))
	login.TLS = tls || strings.Contains(rest, ", stls=1")
	return login, true
}

// cyrusPOP3 parses the lines of a process of Cyrus: "starttls: TLSv1.3 with cipher ...",
// "login: host [address] name plaintext+TLS User logged in SESSIONID=<...>", "Expunged 1
// messages from user.name", "counts: retr=<1> top=<0> dele=<1>". They have messages and no
// octets, and say that the client has sent QUIT only if messages were deleted.
func (p *POP3Parser) cyrusPOP3(process, message string) (login POP3Login, ok bool) {
	kind, rest, _ := strings.Cut(message, ": ")
	if strings.HasPrefix(message, "Expunged ") {
		if s := p.cyrus[process]; s.account != "" {
			s.expunged = true
			p.remember(process, s)
		}
		return login, false
	}
	switch kind {
	case "starttls":
		version, _, _ := strings.Cut(rest, " ")
		p.remember(process, cyrusSession{version: version})
	case "login":
		login, ok = cyrusLogin(rest)
		if ok {
			s := cyrusSession{account: login.Account}
			if login.TLS {
				login.Version = p.cyrus[process].version
			}
			p.remember(process, s)
		}
	case "counts":
		s := p.cyrus[process]
		delete(p.cyrus, process)
		n := pairs(strings.NewReplacer("<", "", ">", "", " ", ", ").Replace(rest), "/")
		retrieved, top, deleted := n["retr"][0], n["top"][0], n["dele"][0]
		if s.account == "" || retrieved < 0 || deleted < 0 {
			return login, false
		}
		e := endOf(retrieved, deleted, -1)
		if top > 0 && retrieved == 0 && deleted == 0 || deleted > 0 && !s.expunged {
			e.Conclusive = false
		}
		if !s.expunged {
			e.Deleted = 0
		}
		return POP3Login{Account: s.account, End: e}, true
	}
	return login, ok
}

func (p *POP3Parser) remember(process string, s cyrusSession) {
	if p.cyrus == nil || len(p.cyrus) >= maxProcesses {
		p.cyrus = make(map[string]cyrusSession)
	}
	p.cyrus[process] = s
}

// cyrusLogin parses "host [address] name mechanism User logged in SESSIONID=<...>".
func cyrusLogin(text string) (login POP3Login, ok bool) {
	host, rest, ok := strings.Cut(text, "[")
	if !ok || strings.Contains(strings.TrimSuffix(host, " "), " ") {
		return login, false
	}
	address, rest, ok := strings.Cut(rest, "] ")
	if !ok {
		return login, false
	}
	rest, _, ok = strings.Cut(rest, " User logged in")
	if !ok {
		return login, false
	}
	space := strings.LastIndexByte(rest, ' ')
	if space < 0 {
		return login, false
	}
	login = POP3Login{Account: rest[:space], LoggedIn: true, TLS: strings.HasSuffix(rest, "+TLS")}
	login.Addr, ok = parseAddr(address)
	return login, ok
}

func parseAddr(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimPrefix(text, "IPv6:"))
	return addr.Unmap().WithZone(""), err == nil
}
