package bridge

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	netmail "net/mail"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/uidl"
	"postern/proxy"
)

const (
	// printsVersion is the first octet of prints in the cache.
	printsVersion = 1
	// maxPrints is how many messages a session looks at after QUIT, and
	// printsAtOnce how many with one command: for so long the next session of
	// the account may have to wait for the server.
	maxPrints, printsAtOnce = 1000, 20
	// printsTime bounds it: the connection of the client closes after it.
	printsTime = 3 * time.Second
	// headersAtOnce is how many headers are fetched with one command.
	headersAtOnce = 100
	// maxHeaders bounds how many headers are fetched to find messages again.
	maxHeaders = 5000
	// maxMessageID bounds what of a Message-ID is read.
	maxMessageID = 4 << 10
)

func printsKey(account string) string { return key(account) + "\x00prints" }

// encodePrints returns prints, ascending by UID, as they are remembered.
func encodePrints(prints []uidl.Print) []byte {
	b := make([]byte, 0, 16+12*len(prints))
	b = append(b, printsVersion)
	b = binary.AppendUvarint(b, uint64(len(prints)))
	last := uint32(0)
	for _, p := range prints {
		delta := uint64(p.UID-last) << 1
		if p.Header != 0 {
			delta |= 1
		}
		b = binary.LittleEndian.AppendUint64(binary.AppendUvarint(b, delta), p.Short)
		if p.Header != 0 {
			b = binary.LittleEndian.AppendUint64(b, p.Header)
		}
		last = p.UID
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodePrints is the inverse of encodePrints.
func decodePrints(b []byte) ([]uidl.Print, error) {
	if len(b) < 6 || b[0] != printsVersion {
		return nil, errSpoilt
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return nil, errSpoilt
	}
	r := varints{b: b[1:]}
	prints := make([]uidl.Print, r.next(min(maxMessages, uint64(len(b)/9))))
	uid := uint64(0)
	for i := range prints {
		delta := r.next(math.MaxUint32<<1 | 1)
		uid += delta >> 1
		p := uidl.Print{UID: uint32(uid), Short: r.fixed()}
		if delta&1 != 0 {
			p.Header = r.fixed()
		}
		if delta>>1 == 0 || uid > math.MaxUint32 {
			return nil, errSpoilt
		}
		prints[i] = p
	}
	if r.bad || len(r.b) > 0 {
		return nil, errSpoilt
	}
	return prints, nil
}

// prints returns what is remembered of the messages beside their sizes.
func (s *session) prints(ctx context.Context) []uidl.Print {
	if s.backend.Cache == nil {
		return nil
	}
	value, err := s.backend.Cache.Get(ctx, printsKey(s.login.Account))
	var prints []uidl.Print
	if err == nil && value != nil {
		prints, err = decodePrints(value)
	}
	if err != nil {
		s.notice(proxy.NoticeCache, 0, err)
	}
	return prints
}

func (s *session) keepPrints(ctx context.Context, prints []uidl.Print) {
	if s.backend.Cache == nil {
		return
	}
	slices.SortStableFunc(prints, comparePrints)
	prints = slices.CompactFunc(prints, func(a, b uidl.Print) bool { return a.UID == b.UID })
	if err := s.backend.Cache.Put(context.WithoutCancel(ctx), printsKey(s.login.Account), encodePrints(prints)); err != nil {
		s.notice(proxy.NoticeCache, len(prints), err)
	}
}

func comparePrints(a, b uidl.Print) int { return cmp.Compare(a.UID, b.UID) }

// gather looks at messages that are not known well enough to be found again
// after a change of UIDVALIDITY. The newest come first: they are those that
// clients have not fetched everywhere yet.
func (s *session) gather() {
	if !s.quitted || s.backend.Cache == nil || s.backend.Record == nil || s.renumbered {
		return
	}
	var lacking []*message
	for i := range s.drop.messages {
		if m := &s.drop.messages[i]; m.marks&(printed|deleted) == 0 {
			lacking = append(lacking, m)
		}
	}
	if len(lacking)+len(s.headers) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), printsTime)
	defer cancel()
	alone, end := s.backend.queue().linger(s.login.Account)
	defer end()
	lacking = lacking[max(0, len(lacking)-maxPrints):]
	var fresh []uidl.Print
	for len(lacking) > 0 && alone.Err() == nil {
		some := lacking[max(0, len(lacking)-printsAtOnce):]
		lacking = lacking[:len(lacking)-len(some)]
		var uids []uint32
		for _, m := range some {
			uids = append(uids, m.uid)
		}
		prints, err := s.inbox.prints(ctx, uidSets(uids)[0])
		fresh = append(fresh, prints...)
		if err != nil {
			break
		}
		for _, m := range some { // also those without an answer: they have gone, or never will have one
			m.marks |= printed
		}
	}
	if len(fresh)+len(s.headers) == 0 {
		return
	}
	s.drop.changed = true
	old := slices.DeleteFunc(s.prints(ctx), func(p uidl.Print) bool { return s.drop.find(p.UID) == nil })
	prints := append(fresh, old...)
	for i := range prints {
		p := &prints[i]
		if m := s.drop.find(p.UID); m != nil && s.headers[p.UID] != 0 {
			p.Header = s.headers[p.UID]
			m.marks |= headed
		}
	}
	s.keepPrints(ctx, prints)
}

// A watcher passes a message on, and looks at its header.
type watcher struct {
	w      io.Writer
	header uidl.HeaderHash
}

func (w *watcher) Write(p []byte) (int, error) {
	if !w.header.Done() {
		_, _ = w.header.Write(p)
	}
	return w.w.Write(p)
}

// watch returns to where a message is to be sent so that the print of its
// header is known then, if that is worth it.
func (s *session) watch(m *message, to io.Writer) io.Writer {
	if s.backend.Cache == nil || s.backend.Record == nil || m.marks&headed != 0 || len(s.headers) >= maxPrints {
		return to
	}
	return &watcher{w: to}
}

// watched takes the print, when all went well.
func (s *session) watched(m *message, to io.Writer) {
	w, ok := to.(*watcher)
	if !ok || w.header.Sum() == 0 {
		return
	}
	if s.headers == nil {
		s.headers = make(map[uint32]uint64)
	}
	s.headers[m.uid] = w.header.Sum()
}

// prints asks for what the short prints of messages are made of. With an error
// it returns those that have come whole.
func (in *inbox) prints(ctx context.Context, uids imap.UIDSet) (prints []uidl.Print, err error) {
	var header []byte
	seen := false
	err = in.rows(ctx, uids, `RFC822.SIZE INTERNALDATE BODY.PEEK[HEADER.FIELDS ("Message-ID")]`, func(s *section) error {
		header, seen = header[:0], true
		return s.each(func(chunk []byte) {
			header = append(header, chunk[:min(len(chunk), maxMessageID-len(header))]...)
		})
	}, func(r *row) {
		date, err := time.Parse(internalDate, r.date)
		if err == nil && seen && r.octets >= 0 && len(prints) < maxMessages {
			prints = append(prints, uidl.Print{UID: r.uid, Short: uidl.Short(r.octets, date, messageID(header))})
		}
		seen = false
	})
	if err != nil {
		return prints, fmt.Errorf("UID FETCH of fingerprints: %w", err)
	}
	return prints, nil
}

// internalDate is the layout of INTERNALDATE, RFC 9051 section 9: date-time.
const internalDate = "_2-Jan-2006 15:04:05 -0700"

// messageID returns the Message-ID of a header that has nothing else.
func messageID(header []byte) string {
	m, err := netmail.ReadMessage(strings.NewReader(string(header[:min(len(header), maxMessageID)]) + "\r\n\r\n"))
	if err != nil {
		return ""
	}
	return m.Header.Get("Message-Id")
}

// headers adds the hashes of whole headers to prints, which ascend by UID.
func (in *inbox) headers(ctx context.Context, uids imap.UIDSet, prints []uidl.Print) error {
	var header uidl.HeaderHash
	err := in.rows(ctx, uids, itemsHeader, func(s *section) error {
		header = uidl.HeaderHash{}
		return s.each(func(chunk []byte) { _, _ = header.Write(chunk) })
	}, func(r *row) {
		if i, ok := slices.BinarySearchFunc(prints, uidl.Print{UID: r.uid}, comparePrints); ok {
			prints[i].Header = header.Sum()
		}
	})
	if err != nil {
		return fmt.Errorf("UID FETCH of headers: %w", err)
	}
	return nil
}
