package inbox

import (
	"context"
	"fmt"
	"io"
	netmail "net/mail"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
)

// maxMessageID bounds how many octets of a Message-ID field are read.
const maxMessageID = 4 << 10

// internalDate is the layout of INTERNALDATE, RFC 9051 section 9: date-time.
const internalDate = "_2-Jan-2006 15:04:05 -0700"

// A Fingerprint is what IMAP knows of a message that stays the same when the
// message gets another UID.
type Fingerprint struct {
	UID       uint32
	Size      int64     // RFC822.SIZE
	Date      time.Time // INTERNALDATE
	MessageID string    // "": there is none, or it cannot be parsed
}

// Fingerprints calls each for the fingerprint of every message that the server
// sends whole, in the server's order, also before an error.
func (in *Inbox) Fingerprints(ctx context.Context, uids imap.UIDSet, each func(Fingerprint)) error {
	var header []byte
	received := false
	err := in.fetchAll(ctx, uids, `RFC822.SIZE INTERNALDATE BODY.PEEK[HEADER.FIELDS ("Message-ID")]`, func(s *Section) error {
		header, received = header[:0], true
		return s.Each(func(chunk []byte) {
			header = append(header, chunk[:min(len(chunk), maxMessageID-len(header))]...)
		})
	}, func(r *FetchResponse) {
		date, err := time.Parse(internalDate, r.internalDate)
		if err == nil && received && r.rfc822Size >= 0 {
			each(Fingerprint{UID: r.UID, Size: r.rfc822Size, Date: date, MessageID: messageID(header)})
		}
		received = false
	})
	if err != nil {
		return fmt.Errorf("UID FETCH of fingerprints: %w", err)
	}
	return nil
}

// messageID returns the Message-ID of a header that has no other field.
func messageID(header []byte) string {
	m, err := netmail.ReadMessage(strings.NewReader(string(header[:min(len(header), maxMessageID)]) + "\r\n\r\n"))
	if err != nil {
		return ""
	}
	return m.Header.Get("Message-Id")
}

// Headers fetches the headers of messages. Each header is written, as its octets
// come, to the writer that begin returns; end is called with the UID when the
// response is whole. Errors of the writer do not count.
func (in *Inbox) Headers(ctx context.Context, uids imap.UIDSet, begin func() io.Writer, end func(uid uint32)) error {
	return in.sections(ctx, Header, uids, begin, end)
}

// Bodies is Headers for whole messages.
func (in *Inbox) Bodies(ctx context.Context, uids imap.UIDSet, begin func() io.Writer, end func(uid uint32)) error {
	return in.sections(ctx, Body, uids, begin, end)
}

func (in *Inbox) sections(ctx context.Context, item string, uids imap.UIDSet, begin func() io.Writer, end func(uid uint32)) error {
	err := in.fetchAll(ctx, uids, item, func(s *Section) error {
		w := begin()
		return s.Each(func(chunk []byte) { _, _ = w.Write(chunk) })
	}, func(r *FetchResponse) { end(r.UID) })
	if err != nil {
		return fmt.Errorf("UID FETCH %s: %w", item, err)
	}
	return nil
}
