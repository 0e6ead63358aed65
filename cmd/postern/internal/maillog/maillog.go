// Package maillog reads successful logins from logs of Dovecot and Postfix, and what POP3
// sessions have done from those of Dovecot, Courier and Cyrus. Parser.Read and
// POP3Parser.Read read a whole log, Parse reads one line.
package maillog

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"time"
)

// A Login is a successful login.
type Login struct {
	Account string // as in the log
	Addr    netip.Addr
	Time    time.Time
}

// A Parser reads logs of Dovecot 2.3 and 2.4 and of Postfix, as syslog, journalctl
// -o short-iso, Dovecot or Postfix write them. It ignores all lines but successful
// logins.
type Parser struct {
	Zone *time.Location // of timestamps without a zone; nil: time.Local
	Now  time.Time      // timestamps without a year are at most a year before, or a day after
}

// Progress has the counts of Read so far.
type Progress struct {
	Octets, Lines int64
	Logins        int64 // successful logins; of POP3 also the ends of sessions
	Skipped       int64 // lines of more than 16 KiB
}

// maxLine bounds a line, in octets: Dovecot writes at most 8 KiB.
const maxLine = 16 << 10

// Read calls each for every successful login in a log, until each returns an
// error. It calls progress, unless nil, every 65536 lines.
func (p Parser) Read(r io.Reader, each func(Login) error, progress func(Progress)) (done Progress, err error) {
	return readLines(r, func(line string) (bool, error) {
		login, ok := p.Parse(line)
		if !ok {
			return false, nil
		}
		return true, each(login)
	}, progress)
}

// readLines calls each for every line of a log, until each returns an error; found says
// that the line counts as a login. It calls progress, unless nil, every 65536 lines.
func readLines(r io.Reader, each func(line string) (found bool, err error), progress func(Progress)) (done Progress, err error) {
	const progressLines = 1 << 16
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := readLine(lines, &done)
		if len(line) > 0 {
			done.Lines++
			found, err := each(string(line))
			if found {
				done.Logins++
			}
			if err != nil {
				return done, err
			}
			if done.Lines%progressLines == 0 && progress != nil {
				progress(done)
			}
		}
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
}

// readLine returns the next line, or nil for a line that is too long.
func readLine(r *bufio.Reader, p *Progress) (line []byte, err error) {
	line, err = r.ReadSlice('\n')
	p.Octets += int64(len(line))
	if !errors.Is(err, bufio.ErrBufferFull) {
		return bytes.TrimRight(line, "\r\n"), err
	}
	p.Skipped++
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.ReadSlice('\n')
		p.Octets += int64(len(line))
	}
	return nil, err
}

// Parse returns the login of a line, and false for all lines but successful
// logins. Clients choose the account names in a log, and could make a refused login
// look like a successful one. So Parse compares everything before the name with what
// the servers write.
func (p Parser) Parse(line string) (login Login, ok bool) {
	at, rest, ok := p.timestamp(line)
	if !ok {
		return login, false
	}
	program, message := programOf(rest)
	account, address := "", ""
	switch {
	case strings.HasSuffix(program, "-login"):
		account, address, ok = dovecotLogin(message)
	case strings.HasPrefix(program, "postfix") && strings.HasSuffix(program, "/smtpd"):
		account, address, ok = postfixLogin(message)
	default:
		return login, false
	}
	if !ok || account == "" {
		return login, false
	}
	addr, ok := parseAddr(address)
	return Login{Account: account, Addr: addr, Time: at}, ok
}

// programOf splits the text after the timestamp: "host dovecot[7]: imap-login: text",
// "host postfix/smtps/smtpd[7]: text", or
// "imap-login: Info: text" in Dovecot's own log.
func programOf(rest string) (program, message string) {
	tag, message, ok := strings.Cut(rest, ": ")
	if !ok {
		return "", ""
	}
	words := strings.Fields(tag)
	if len(words) == 0 || len(words) > 2 { // the host may be missing
		return "", ""
	}
	program, _, _ = strings.Cut(words[len(words)-1], "[")
	if program == "dovecot" {
		if program, message, ok = strings.Cut(message, ": "); !ok || strings.ContainsAny(program, " <") {
			return "", ""
		}
		program, _, _ = strings.Cut(program, "(")
	}
	return program, strings.TrimPrefix(message, "Info: ")
}

// dovecotLogin parses "Login: user=<name>, method=PLAIN, rip=address, lip=...".
func dovecotLogin(message string) (account, address string, ok bool) {
	rest, ok := strings.CutPrefix(message, "Login: user=<")
	if !ok {
		if rest, ok = strings.CutPrefix(message, "Logged in: user=<"); !ok { // 2.4
			return "", "", false
		}
	}
	account, rest, ok = strings.Cut(rest, ">, ")
	if !ok {
		return "", "", false
	}
	for field := range strings.SplitSeq(rest, ", ") {
		if address, ok = strings.CutPrefix(field, "rip="); ok {
			return account, address, true
		}
	}
	return "", "", false
}

// postfixLogin parses "QUEUEID: client=host[address], sasl_method=PLAIN,
// sasl_username=name". With smtpd_client_port_logging a port follows the address.
func postfixLogin(message string) (account, address string, ok bool) {
	id, rest, ok := strings.Cut(message, ": client=")
	if !ok || strings.ContainsAny(id, " []") {
		return "", "", false
	}
	client, rest, ok := strings.Cut(rest, ", sasl_method=")
	if !ok {
		return "", "", false
	}
	_, account, ok = strings.Cut(rest, ", sasl_username=")
	if !ok {
		return "", "", false
	}
	account, _, _ = strings.Cut(account, ", ") // sasl_sender and fields of milters
	_, address, ok = strings.Cut(client, "[")
	address, _, closed := strings.Cut(address, "]")
	return account, address, ok && closed
}

// timestamps are the layouts of timestamps, and whether they have a year.
var timestamps = []struct {
	layout string
	year   bool
}{
	{"2006-01-02T15:04:05.999999999Z07:00", true}, // rsyslog
	{"2006-01-02T15:04:05.999999999-0700", true},  // journalctl -o short-iso
	{"2006-01-02 15:04:05.999999999", true},       // a common log_timestamp of Dovecot
	{"2006 Jan _2 15:04:05.999999999", false},     // syslog's, after the year that lately adds
}

// Time returns the timestamp of a line.
func (p Parser) Time(line string) (time.Time, bool) {
	at, _, ok := p.timestamp(line)
	return at, ok
}

// timestamp parses the timestamp at the beginning of line and returns the rest.
func (p Parser) timestamp(line string) (at time.Time, rest string, ok bool) {
	zone := p.Zone
	if zone == nil {
		zone = time.Local
	}
	for _, form := range timestamps {
		text, after, ok := cutTime(line, form.layout, form.year)
		if !ok {
			continue
		}
		if form.year {
			if at, err := time.ParseInLocation(form.layout, text, zone); err == nil {
				return at, after, true
			}
			continue
		}
		if at, ok := p.lately(form.layout, text, zone); ok {
			return at, after, true
		}
	}
	return time.Time{}, "", false
}

// cutTime cuts from line as many words as layout has.
func cutTime(line, layout string, year bool) (text, rest string, ok bool) {
	words := strings.Count(layout, " ") + 1
	if !year {
		words--
	}
	at := 0
	for range words {
		for at < len(line) && line[at] == ' ' { // two spaces: "Nov  2"
			at++
		}
		end := strings.IndexByte(line[at:], ' ')
		if end < 0 {
			return "", "", false
		}
		at += end
	}
	return line[:at], strings.TrimLeft(line[at:], " "), true
}

// lately parses a timestamp without a year. It takes the latest year in which the
// time is not in the future. Clocks may differ by a day.
func (p Parser) lately(layout, text string, zone *time.Location) (time.Time, bool) {
	latest := p.Now.Add(24 * time.Hour)
	const leap = 8 // years without 29 February, at most
	for y := latest.In(zone).Year(); y > latest.Year()-leap-1; y-- {
		at, err := time.ParseInLocation(layout, yearText(y)+" "+text, zone)
		if err == nil && at.Before(latest) {
			return at, true
		}
	}
	return time.Time{}, false
}

func yearText(y int) string { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC).Format("2006") }
