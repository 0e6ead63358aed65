package memserver

import (
	"bytes"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
)

// matches reports whether a message, seq in the view, matches c. The lock must be
// held.
func (b *mailbox) matches(m *message, seq uint32, c *imap.SearchCriteria) bool {
	in := func(set imap.NumSet) bool { return b.resolve(set)(m.uid, seq) }
	return all(c.SeqNum, func(set imap.SeqSet) bool { return in(set) }) &&
		all(c.UID, func(set imap.UIDSet) bool { return in(set) }) &&
		all(c.Flag, m.has) &&
		!slices.ContainsFunc(c.NotFlag, m.has) &&
		within(m.date, c.Since, c.Before) &&
		(c.SentSince.IsZero() && c.SentBefore.IsZero() || within(m.sent(), c.SentSince, c.SentBefore)) &&
		(c.Larger == 0 || int64(len(m.raw)) > c.Larger) &&
		(c.Smaller == 0 || int64(len(m.raw)) < c.Smaller) &&
		all(c.Header, m.hasField) &&
		all(c.Body, func(text string) bool { _, body := m.split(); return containsFold(body, text) }) &&
		all(c.Text, func(text string) bool { return containsFold(m.raw, text) }) &&
		!slices.ContainsFunc(c.Not, func(c imap.SearchCriteria) bool { return b.matches(m, seq, &c) }) &&
		all(c.Or, func(or [2]imap.SearchCriteria) bool { return b.matches(m, seq, &or[0]) || b.matches(m, seq, &or[1]) })
}

func all[T any](list []T, ok func(T) bool) bool {
	return !slices.ContainsFunc(list, func(v T) bool { return !ok(v) })
}

// containsFold compares bytes, without decoding them.
func containsFold(b []byte, text string) bool {
	return bytes.Contains(bytes.ToLower(b), bytes.ToLower([]byte(text)))
}

// hasField reports whether a field contains the value; every field contains the
// empty value.
func (m *message) hasField(want imap.SearchCriteriaHeaderField) bool {
	header, _ := m.split()
	parsed, err := mail.ReadMessage(bytes.NewReader(header))
	if err != nil {
		return false
	}
	for key, values := range parsed.Header {
		if strings.EqualFold(key, want.Key) {
			return containsFold([]byte(strings.Join(values, "\n")), want.Value)
		}
	}
	return false
}

// sent returns the time of the Date field, or the zero time.
func (m *message) sent() time.Time {
	header, _ := m.split()
	parsed, err := mail.ReadMessage(bytes.NewReader(header))
	if err != nil {
		return time.Time{}
	}
	date, err := parsed.Header.Date()
	if err != nil {
		return time.Time{}
	}
	return date
}

// within compares days without time zones: RFC 3501 section 6.4.4.
func within(t, since, before time.Time) bool {
	t = time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	return !t.Before(since) && (before.IsZero() || t.Before(before))
}
