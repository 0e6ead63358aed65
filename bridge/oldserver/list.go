package oldserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"postern/bridge/uidl"
)

// Reasons of CarryList.
const (
	NoMessageID   Reason = "the list has no Message-ID of it: nothing proves which message it is"
	NoneHasID     Reason = "no message here has its Message-ID: it was removed, or changed"
	SizeDiffers   Reason = "the message here that has its Message-ID has another size"
	SeveralHaveID Reason = "several messages have its Message-ID"
)

// A Listed is a message of an old maildrop in a list that an operator has made.
type Listed struct {
	Message
	MessageID string // without < and >; "": not known
}

// ReadList reads a CSV file with the columns unique id, size in octets as LIST shows it, and
// Message-ID. Empty lines, lines that begin with # and a first line with names of columns
// are passed over. Errors have name and line.
func ReadList(r io.Reader, name string) (list []Listed, err error) {
	in := csv.NewReader(bufio.NewReaderSize(r, 64<<10))
	in.Comment, in.ReuseRecord, in.FieldsPerRecord, in.LazyQuotes = '#', true, -1, true
	proven := false
	for first := true; ; first = false {
		fields, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if parse := (*csv.ParseError)(nil); errors.As(err, &parse) {
			return nil, fmt.Errorf("%s:%d: %w", name, parse.Line, parse.Err)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if first && len(fields) > 1 && strings.EqualFold(strings.TrimSpace(fields[1]), "size") {
			continue
		}
		line, _ := in.FieldPos(0)
		l, err := parseListed(fields)
		if err == nil && len(list) == maxMessages {
			err = fmt.Errorf("more than %d messages", maxMessages)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, line, err)
		}
		l.Number = len(list) + 1
		list, proven = append(list, l), proven || l.MessageID != ""
	}
	switch {
	case len(list) == 0:
		return nil, fmt.Errorf("%s: there is no message in it", name)
	case !proven:
		return nil, fmt.Errorf("%s: without Message-IDs, its third column, nothing proves which message has which unique id: nothing is carried over", name)
	}
	return list, nil
}

const maxListField = 4 << 10 // octets

func parseListed(fields []string) (l Listed, err error) {
	if len(fields) < 2 || len(fields) > 3 {
		return l, fmt.Errorf("%d columns, want three: unique id, size, Message-ID", len(fields))
	}
	for i, field := range fields {
		if len(field) > maxListField {
			return l, fmt.Errorf("column %d has more than %d octets", i+1, maxListField)
		}
	}
	l.UIDL = strings.TrimSpace(fields[0])
	if l.UIDL == "" {
		return l, errors.New("there is no unique id")
	}
	if l.Size, err = strconv.ParseInt(strings.TrimSpace(fields[1]), 10, 64); err != nil || l.Size < 1 {
		return l, fmt.Errorf("%.50q is not a size in octets", fields[1])
	}
	if len(fields) == 3 {
		l.MessageID = trimMessageID(fields[2])
	}
	return l, nil
}

// CarryList is Carry for a list of messages, which are found in an INBOX by Message-ID and
// size: no other message may have that Message-ID, and the size must be the same, or differ
// as that of nine of ten messages does. headers reads those of the INBOX.
func CarryList(ctx context.Context, list []Listed, in Inbox, headers Reader, f uidl.Format) (*uidl.Record, Report, error) {
	here := &idSide{headers: headers, hashes: make(map[int]uint64)}
	before := Side{Headers: func(_ context.Context, indexes []int) ([]Header, error) {
		all := make([]Header, len(indexes))
		for k, i := range indexes {
			all[k] = idHeader(list[i].MessageID)
		}
		return all, nil
	}}
	messages := make([]Message, len(list))
	for i, l := range list {
		messages[i] = l.Message
		before.Sizes = append(before.Sizes, l.Size)
	}
	matching, err := Match(ctx, before, Side{Sizes: in.Side.Sizes, Headers: here.read}, Options{})
	if err != nil {
		return nil, Report{}, err
	}
	offset := int64(0)
	if matching.Constant {
		offset = matching.Offset
	}
	matching.Headers = nil // those of Message-IDs
	pairs := matching.Pairs[:0]
	for _, p := range matching.Pairs {
		if list[p.Old].Size+offset != in.Side.Sizes[p.New] {
			matching.Left[p.Old] = SizeDiffers
			continue
		}
		p.Header = here.hashes[p.New]
		pairs = append(pairs, p)
	}
	matching.Pairs = pairs
	for i, why := range matching.Left {
		switch why {
		case Missing:
			matching.Left[i] = NoneHasID
		case Ambiguous:
			matching.Left[i] = SeveralHaveID
		}
		if list[i].MessageID == "" {
			matching.Left[i] = NoMessageID
		}
	}
	return NewRecord(messages, matching, in, f)
}

// idHeader returns what Match compares in place of a header.
func idHeader(messageID string) Header {
	if messageID == "" {
		return Header{}
	}
	sum := sha256.Sum256([]byte(messageID))
	return Header{Known: true, Hash: binary.LittleEndian.Uint64(sum[:]) | 1, Distinct: true}
}

// An idSide reads the Message-IDs of an INBOX.
type idSide struct {
	headers Reader
	hashes  map[int]uint64 // of the whole headers, by index
}

func (s *idSide) read(ctx context.Context, indexes []int) ([]Header, error) {
	type both struct {
		id   Header
		hash uint64
	}
	var hash *uidl.HeaderHash
	var id *idReader
	all, err := readAll(ctx, indexes, s.headers, func() io.Writer {
		hash, id = new(uidl.HeaderHash), new(idReader)
		return io.MultiWriter(hash, id)
	}, func() both {
		hash.End()
		return both{idHeader(id.messageID()), hash.Sum()}
	})
	headers := make([]Header, len(all))
	for k, b := range all {
		headers[k], s.hashes[indexes[k]] = b.id, b.hash
	}
	return headers, err
}

// An idReader takes a header and keeps its Message-ID, RFC 5322 section 3.6.4.
type idReader struct {
	line   []byte
	value  []byte
	inside bool // the last line belongs to one
}

// Write implements io.Writer. It never fails.
func (r *idReader) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		r.line = append(r.line, line[:min(len(line), maxListField+1-len(r.line))]...)
		if p = rest; ended {
			r.endLine()
		}
	}
	return n, nil
}

func (r *idReader) endLine() {
	line := r.line
	r.line = r.line[:0]
	if len(line) == 0 || line[0] != ' ' && line[0] != '\t' {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if r.inside = strings.EqualFold(string(bytes.TrimSpace(name)), "message-id"); !r.inside {
			return
		}
		line = value
	}
	if r.inside && len(r.value) <= maxListField {
		r.value = append(append(r.value, bytes.TrimSpace(line)...), ' ')
	}
}

// messageID returns the Message-ID, or "" if there is none or one that is too long. Several
// are one that nobody else has.
func (r *idReader) messageID() string {
	if len(r.line) > 0 {
		r.endLine()
	}
	if len(r.value) > maxListField {
		return ""
	}
	return trimMessageID(string(r.value))
}

// trimMessageID returns a Message-ID without spaces and brackets around it.
func trimMessageID(s string) string {
	s = strings.TrimSpace(s)
	if inner, ok := strings.CutPrefix(s, "<"); ok && strings.HasSuffix(inner, ">") {
		s = strings.TrimSpace(strings.TrimSuffix(inner, ">"))
	}
	return s
}
