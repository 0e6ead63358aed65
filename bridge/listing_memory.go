package bridge

import (
	"fmt"
	"sync/atomic"

	"postern/proxy"
)

const (
	// messageSize is the memory of a message in a session, in octets.
	messageSize = 16
	// smallListing is the number of messages that every session may list, whatever the
	// other sessions use: 16 KB, less than the buffers of a session.
	smallListing = 1000
	// listingStep is the least number of messages by which a reservation grows, so that
	// few rows of a listing need a call of reserve.
	listingStep = 4096
)

// A ListingMemory bounds the memory of the listings of all POP3 sessions of a process.
// A session counts 16 octets a message from its listing to its end. The first 1,000
// messages of a session do not count, so that small mailboxes are served when the memory
// is used up. A session that finds changes has a second copy of the listing for a
// moment, which does not count.
//
// A nil ListingMemory has no limit. Methods may be called from many goroutines.
type ListingMemory struct {
	observer proxy.Observer
	limit    atomic.Int64
	reserved atomic.Int64
}

// NewListingMemory returns a ListingMemory of limit octets. The observer may be
// nil.
func NewListingMemory(limit int64, o proxy.Observer) *ListingMemory {
	m := &ListingMemory{observer: o}
	m.limit.Store(limit)
	return m
}

// SetLimit changes the limit. Sessions keep their memory, also beyond the new limit.
func (m *ListingMemory) SetLimit(octets int64) { m.limit.Store(octets) }

// Reserved returns the octets that sessions have reserved.
func (m *ListingMemory) Reserved() int64 { return m.reserved.Load() }

// reservation returns an empty reservation for a session.
func (m *ListingMemory) reservation() *reservation { return &reservation{memory: m} }

// A reservation is the part of one session in a ListingMemory. Its methods must not be
// called concurrently. A nil reservation has no limit.
type reservation struct {
	memory   *ListingMemory
	messages int // number of messages reserved, beyond the first smallListing
}

// grow reserves memory for a number of messages in all. It must be called before a
// listing becomes that long. It may be called for each row: most calls compare two
// numbers. The error is a temporary *proxy.Refusal; after an error the session keeps its
// reservation.
func (r *reservation) grow(messages int) error {
	if r == nil || r.memory == nil || messages-smallListing <= r.messages {
		return nil
	}
	want := messages - smallListing
	if r.messages > 0 { // append makes a slice longer by a quarter
		want = max(want, r.messages+r.messages/4+listingStep)
	}
	if err := r.memory.reserve(int64(want-r.messages)*messageSize, int64(r.messages)*messageSize); err != nil {
		return err
	}
	r.messages = want
	return nil
}

// close releases the reservation. It may be called again.
func (r *reservation) close() {
	if r == nil || r.memory == nil {
		return
	}
	r.memory.reserved.Add(-int64(r.messages) * messageSize)
	r.messages = 0
}

// reserve reserves more octets for a session that has reserved has octets.
func (m *ListingMemory) reserve(more, has int64) error {
	for {
		before, limit := m.reserved.Load(), m.limit.Load()
		if before+more <= limit {
			if m.reserved.CompareAndSwap(before, before+more) {
				return nil
			}
			continue
		}
		reason := proxy.ListingsFull
		err := fmt.Errorf("the listings of all sessions have %d octets of limits.listing_memory, %d, and this one needs %d more", before, limit, more)
		if has+more > limit {
			reason = proxy.ListingTooLong
			err = fmt.Errorf("this listing alone needs %d octets, limits.listing_memory is %d: raise it", has+more, limit)
		}
		if m.observer != nil {
			m.observer.Observe(proxy.ListingRefused{Reason: reason})
		}
		return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: err}
	}
}
