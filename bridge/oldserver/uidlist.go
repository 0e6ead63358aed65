package oldserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

const (
	sizeList   = "courierpop3dsizelist"
	uidList    = "dovecot-uidlist"
	courierUID = "courierimapuiddb"
	// maxListLine bounds the octets of a line: a file name has up to 255.
	maxListLine = 4 << 10
)

// A lineError is an error in a line of a list.
type lineError struct {
	path string
	line int
	err  error
}

// Error implements error.
func (e *lineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.path, e.line, e.err) }

// Unwrap returns the error without the line.
func (e *lineError) Unwrap() error { return e.err }

var (
	errEmpty     = errors.New("the file is empty")
	errHalf      = errors.New("the last line has no end: the file is cut off, or is being written: try again")
	errLongEntry = fmt.Errorf("the line has more than %d octets", maxListLine)
	errLongList  = fmt.Errorf("more than %d messages", maxMessages)
)

// readLines calls each for the lines of a file, the first of which is its header. There is
// a list only if its last line has an end.
func (m *maildir) readLines(name string, each func(n int, line string) error) (there bool, err error) {
	f, err := m.open(name)
	if f == nil || err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	n, err := lines(f, each)
	if err != nil {
		return true, &lineError{m.path + "/" + name, max(n, 1), err}
	}
	return true, nil
}

// lines returns the number of the last line that it has read.
func lines(f *os.File, each func(n int, line string) error) (n int, err error) {
	in := bufio.NewReaderSize(f, maxListLine)
	for n = 1; ; n++ {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0 && n == 1:
			return n, errEmpty
		case errors.Is(err, io.EOF) && len(line) == 0:
			return n, nil
		case errors.Is(err, io.EOF):
			return n, errHalf
		case errors.Is(err, bufio.ErrBufferFull):
			return n, errLongEntry
		case err != nil:
			return n, err
		case n > maxMessages:
			return n, errLongList
		}
		if err := each(n, string(line[:len(line)-1])); err != nil {
			return n, err
		}
	}
}

// A uidFile has the UIDs of the files of a maildir, as its IMAP server gives them.
type uidFile struct {
	source   string // the name of the file that was read
	validity uint32
	files    []uidOfFile // ascending by UID
}

type uidOfFile struct {
	uid        uint32
	name       string // base of the file name
	pop3, guid string
	hasPOP3    bool // an empty pop3 stands for the file name
}

// saved reports whether UIDLs are saved in the file.
func (u *uidFile) saved() bool {
	for i := range u.files {
		if u.files[i].hasPOP3 {
			return true
		}
	}
	return false
}

// readUIDs reads dovecot-uidlist, or courierimapuiddb if that is not there.
func (m *maildir) readUIDs() (u uidFile, err error) {
	for _, name := range []string{uidList, courierUID} {
		u = uidFile{source: name}
		p := uidParser{uidFile: &u, seen: make(map[string]int)}
		if there, err := m.readLines(name, p.line); there || err != nil {
			return u, err
		}
	}
	return u, fmt.Errorf("%s has neither %s nor %s: let the new server list INBOX first (with Dovecot: doveadm mailbox status -u USER messages INBOX)", m.path, uidList, courierUID)
}

// A uidParser reads dovecot-uidlist of version 3,
//
//	3 V1795904511 N6 G2d9f842dff530b6b6365000083ecc375
//	1 W21 PUID1-1795904511 :1795904511.M747650P25914Q7.postern
//
// or its version 1, which is also courierimapuiddb:
//
//	1 1795904511 6
//	1 1795904511.M747650P25914Q7.postern
type uidParser struct {
	*uidFile
	version string
	next    uint32
	seen    map[string]int // lines by file name
}

func (p *uidParser) line(n int, line string) error {
	if n == 1 {
		return p.header(line)
	}
	word, rest, _ := strings.Cut(line, " ")
	uid, err := strconv.ParseUint(word, 10, 32)
	if err != nil || uid == 0 {
		return fmt.Errorf("%.50q is not a UID", word)
	}
	r := uidOfFile{uid: uint32(uid)}
	for p.version == "3" && !strings.HasPrefix(rest, ":") {
		field, after, more := strings.Cut(rest, " ")
		if !more {
			return errors.New("there is no file name after a colon")
		}
		switch {
		case strings.HasPrefix(field, "P"):
			r.pop3, r.hasPOP3 = field[1:], true
		case strings.HasPrefix(field, "G"):
			r.guid = field[1:]
		}
		rest = strings.TrimLeft(after, " ")
	}
	if p.version == "3" {
		rest = rest[1:]
	}
	r.name = base(rest)
	switch first := p.seen[r.name]; {
	case r.name == "" || strings.Contains(r.name, "/"):
		return fmt.Errorf("%.300q is not a file name", rest)
	case first != 0:
		return fmt.Errorf("file %.300q is in line %d, too", r.name, first)
	case len(p.files) > 0 && p.files[len(p.files)-1].uid >= r.uid:
		return fmt.Errorf("UID %d is not greater than the one before", r.uid)
	case p.version == "1" && r.uid >= p.next: // to one of version 3 Dovecot appends lines
		return fmt.Errorf("UID %d is not below the next UID in line 1, %d", r.uid, p.next)
	}
	p.seen[r.name] = n
	p.files = append(p.files, r)
	return nil
}

func (p *uidParser) header(line string) error {
	words := strings.Fields(line)
	var validity, next string
	if len(words) > 0 {
		p.version = words[0]
	}
	switch {
	case p.version == "1" && len(words) == 3:
		validity, next = words[1], words[2]
	case p.version == "3":
		for _, word := range words[1:] {
			switch word[0] {
			case 'V':
				validity = word[1:]
			case 'N':
				next = word[1:]
			}
		}
	default:
		return fmt.Errorf("%.50q does not begin a list of version 1 or 3", line)
	}
	v, err := strconv.ParseUint(validity, 10, 32)
	n, alsoErr := strconv.ParseUint(next, 10, 32)
	if err != nil || alsoErr != nil || v == 0 || n == 0 {
		return fmt.Errorf("%.50q has no UIDVALIDITY or no next UID", line)
	}
	p.validity, p.next = uint32(v), uint32(n)
	return nil
}

// A sizedFile is a file in courierpop3dsizelist.
type sizedFile struct {
	name, id string
	size     int64
}

// readSizeList reads courierpop3dsizelist of version 2 or 3. Its lines have file name, size
// and number:UIDVALIDITY of the UIDL, and in version 3 whether the message is UTF-8:
//
//	/3 7 1795904511
//	1795904511.M543955P25914Q1.postern:2,S 21 1:1795904511:0
//
// A list that is not there is nil, one without messages is not.
func (m *maildir) readSizeList() (files []sizedFile, err error) {
	p := sizeParser{seen: make(map[string]int)}
	there, err := m.readLines(sizeList, p.line)
	if err != nil || !there {
		return nil, err
	}
	return append([]sizedFile{}, p.files...), nil
}

type sizeParser struct {
	version string
	files   []sizedFile
	seen    map[string]int // lines by file name
}

func (p *sizeParser) line(n int, line string) error {
	if n == 1 {
		p.version, _, _ = strings.Cut(line, " ")
		if p.version != "/2" && p.version != "/3" {
			return fmt.Errorf("%.50q does not begin a list of version 2 or 3: carry the unique ids over with --old, from the Courier that has written it", line)
		}
		return nil
	}
	// A file name may have spaces.
	i := strings.LastIndexByte(line, ' ')
	j := strings.LastIndexByte(line[:max(i, 0)], ' ')
	if j <= 0 {
		return errors.New("there are not a file name, a size and a number")
	}
	f := sizedFile{name: base(line[:j])}
	var err error
	if f.size, err = strconv.ParseInt(line[j+1:i], 10, 64); err != nil || f.size < 0 {
		return fmt.Errorf("%.50q is not a size", line[j+1:i])
	}
	numbers := strings.Split(line[i+1:], ":")
	if want := map[string]int{"/2": 2, "/3": 3}[p.version]; len(numbers) != want {
		return fmt.Errorf("%.50q has %d numbers, want %d", line[i+1:], len(numbers), want)
	}
	number, err := strconv.ParseUint(numbers[0], 10, 64)
	validity, alsoErr := strconv.ParseUint(numbers[1], 10, 64)
	if err != nil || alsoErr != nil {
		return fmt.Errorf("%.50q is not the number of a unique id", line[i+1:])
	}
	f.id = courierUIDL(f.name, number, validity)
	switch first := p.seen[f.name]; {
	case f.name == "" || strings.Contains(f.name, "/"):
		return fmt.Errorf("%.300q is not a file name", line[:j])
	case first != 0:
		return fmt.Errorf("file %.300q is in line %d, too", f.name, first)
	}
	p.seen[f.name] = n
	p.files = append(p.files, f)
	return nil
}

// courierUIDL returns the UIDL that Courier's pop3d shows. The number is 0 for messages
// from the time when it showed file names.
func courierUIDL(name string, number, validity uint64) string {
	switch {
	case number != 0 && validity != 0:
		return fmt.Sprintf("UID%d-%d", number, validity)
	case number != 0:
		return fmt.Sprintf("UID%d", number)
	}
	var id strings.Builder
	for _, c := range []byte(name) {
		if c < 0x21 || c > 0x7e || c == '\'' || c == '"' || c == '+' {
			fmt.Fprintf(&id, "+%02X", c)
			continue
		}
		id.WriteByte(c)
	}
	return id.String()
}
