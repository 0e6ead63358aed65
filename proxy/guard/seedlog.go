package guard

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"time"
)

// A Log is how to read the logins that succeeded from a log of Dovecot, 2.3 or
// 2.4, or of Postfix: as syslog, journalctl -o short-iso or they themselves
// write it. What else is in it does not matter.
type Log struct {
	Zone *time.Location // of timestamps that have none; nil: time.Local
	Now  time.Time      // timestamps without a year are of the twelve months before
}

// Progress is how far the reading of a Log has come.
type Progress struct {
	Octets, Lines int64
	Logins        int64 // that succeeded
	Skipped       int64 // lines that are too long
}

// maxLogLine bounds a line of a log, in octets: Dovecot writes at most 8 KiB.
const maxLogLine = 16 << 10

// Read calls each for the logins in a log, until that returns an error, and now
// and then tell, if it is not nil.
func (l Log) Read(r io.Reader, each func(Success) error, tell func(Progress)) (p Progress, err error) {
	const now = 1 << 16 // lines
	lines := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := readLogLine(lines, &p)
		if len(line) > 0 {
			p.Lines++
			if s, ok := l.Login(string(line)); ok {
				p.Logins++
				if err := each(s); err != nil {
					return p, err
				}
			}
			if p.Lines%now == 0 && tell != nil {
				tell(p)
			}
		}
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		if err != nil {
			return p, err
		}
	}
}

// readLogLine returns the next line, or nil for one that is too long.
func readLogLine(r *bufio.Reader, p *Progress) (line []byte, err error) {
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

// Login returns the login that a line tells of, if it tells of one that
// succeeded. Whoever has a name as he likes could make a refused login look
// like one: all up to the name has to be where the servers write it.
func (l Log) Login(line string) (s Success, ok bool) {
	at, rest, ok := l.timestamp(line)
	if !ok {
		return s, false
	}
	program, message := programOf(rest)
	account, address := "", ""
	switch {
	case strings.HasSuffix(program, "-login"):
		account, address, ok = dovecotLogin(message)
	case strings.HasPrefix(program, "postfix") && strings.HasSuffix(program, "/smtpd"):
		account, address, ok = postfixLogin(message)
	default:
		return s, false
	}
	if !ok || account == "" {
		return s, false
	}
	addr, err := netip.ParseAddr(strings.TrimPrefix(address, "IPv6:"))
	if err != nil {
		return s, false
	}
	return Success{Account: account, Addr: addr.Unmap().WithZone(""), Time: at}, true
}

// programOf splits what follows the time: "host dovecot[7]: imap-login: text",
// "host postfix/smtps/smtpd[7]: text", and in Dovecot's own log
// "imap-login: Info: text".
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

// dovecotLogin reads "Login: user=<name>, method=PLAIN, rip=address, lip=...".
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

// postfixLogin reads "QUEUEID: client=host[address], sasl_method=PLAIN,
// sasl_username=name", with a port after the address if Postfix writes those.
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
	account, _, _ = strings.Cut(account, ", ") // sasl_sender, milters' fields
	_, address, ok = strings.Cut(client, "[")
	address, _, closed := strings.Cut(address, "]")
	return account, address, ok && closed
}

// The forms of a timestamp, and whether it has a year.
var timestamps = []struct {
	layout string
	year   bool
}{
	{"2006-01-02T15:04:05.999999999Z07:00", true}, // rsyslog
	{"2006-01-02T15:04:05.999999999-0700", true},  // journalctl -o short-iso
	{"2006-01-02 15:04:05.999999999", true},       // log_timestamp of many a dovecot.conf
	{"2006 Jan _2 15:04:05.999999999", false},     // syslog's, after the year that it has not
}

// timestamp reads the time that a line begins with.
func (l Log) timestamp(line string) (at time.Time, rest string, ok bool) {
	zone := l.Zone
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
		if at, ok := l.lately(form.layout, text, zone); ok {
			return at, after, true
		}
	}
	return time.Time{}, "", false
}

// cutTime cuts as many words from line as the layout has.
func cutTime(line, layout string, year bool) (text, rest string, ok bool) {
	words := strings.Count(layout, " ") + 1
	if !year {
		words--
	}
	at := 0
	for range words {
		for at < len(line) && line[at] == ' ' { // "Nov  2"
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

// lately gives a time without a year the last one that is not to come. Clocks
// may differ by a day.
func (l Log) lately(layout, text string, zone *time.Location) (time.Time, bool) {
	latest := l.Now.Add(24 * time.Hour)
	const leap = 8 // 29 February is not of each year
	for y := latest.In(zone).Year(); y > latest.Year()-leap-1; y-- {
		at, err := time.ParseInLocation(layout, yearText(y)+" "+text, zone)
		if err == nil && at.Before(latest) {
			return at, true
		}
	}
	return time.Time{}, false
}

func yearText(y int) string { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC).Format("2006") }
