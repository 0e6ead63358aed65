package bridge

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"postern/bridge/inbox"
	"postern/proxy"
)

func refusedForNow(t *testing.T, err error) {
	t.Helper()
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason != proxy.Unavailable || !r.Verified || !strings.Contains(err.Error(), "limits.listing_memory") {
		t.Errorf("refused by %v, want a verified Unavailable that names limits.listing_memory", err)
	}
}

// Criterion: The listings of all POP3 sessions together take no more memory than limits.listing_memory; a login that needs more is refused for now, and mailboxes of up to 1,000 messages are served all the while.
func TestListingsHaveOneBudget(t *testing.T) {
	seen := &events{}
	m := NewListingMemory(1<<20, seen) // 65,536 messages
	first, second, small := m.reservation(), m.reservation(), m.reservation()
	if err := first.grow(40_000); err != nil {
		t.Fatal(err)
	}
	refusedForNow(t, second.grow(40_000))
	if err := small.grow(smallListing); err != nil {
		t.Errorf("a small mailbox is refused: %v", err)
	}
	if got, want := m.Reserved(), int64(39_000*messageSize); got != want {
		t.Errorf("reserved %d octets, want %d", got, want)
	}
	first.close()
	first.close()
	if err := second.grow(40_000); err != nil {
		t.Errorf("refused after the first one's end: %v", err)
	}
	refusedForNow(t, small.grow(1_000_000)) // alone too long
	second.close()
	small.close()
	if got := m.Reserved(); got != 0 {
		t.Errorf("%d octets are left over", got)
	}
	want := []proxy.Event{proxy.ListingRefused{Reason: proxy.ListingsFull}, proxy.ListingRefused{Reason: proxy.ListingTooLong}}
	if len(seen.all) != 2 || seen.all[0] != want[0] || seen.all[1] != want[1] {
		t.Errorf("reported %v, want %v", seen.all, want)
	}
}

func TestANewLimitOfListingsTakesNothingAway(t *testing.T) {
	m := NewListingMemory(1<<20, nil)
	r := m.reservation()
	if err := r.grow(50_000); err != nil {
		t.Fatal(err)
	}
	m.SetLimit(1 << 18)
	if err := r.grow(50_000); err != nil {
		t.Errorf("what it has is refused: %v", err)
	}
	refusedForNow(t, r.grow(50_001+smallListing))
	m.SetLimit(1 << 21)
	if err := r.grow(60_000); err != nil {
		t.Error(err)
	}
	r.close()
}

func TestWithoutABudgetListingsHaveNoLimit(t *testing.T) {
	var none *ListingMemory
	for _, r := range []*reservation{nil, none.reservation()} {
		if err := r.grow(inbox.MaxMessages); err != nil {
			t.Error(err)
		}
		r.close()
	}
}

// A server that shows more messages than EXISTS makes the listing grow row by
// row: what is reserved must be what append takes.
func TestReservationsGrowAsSlicesDo(t *testing.T) {
	if got := unsafe.Sizeof(message{}); got != messageSize {
		t.Fatalf("a message has %d octets, messageSize is %d", got, messageSize)
	}
	m := NewListingMemory(1<<30, nil)
	r := m.reservation()
	var all []message
	asked, before := 0, int64(0)
	for n := 1; n <= 2_000_000; n++ {
		if err := r.grow(n); err != nil {
			t.Fatal(err)
		}
		if all = append(all, message{}); m.Reserved() != before {
			asked, before = asked+1, m.Reserved()
		}
		taken := int64(cap(all)-smallListing) * messageSize
		if n > 100_000 && (taken > before*5/4+listingStep*messageSize || before > taken*5/4+listingStep*messageSize) {
			t.Fatalf("%d messages: %d octets are reserved, %d taken", n, before, taken)
		}
	}
	if asked > 100 {
		t.Errorf("the budget was asked %d times", asked)
	}
	r.close()
}

func TestReservationsOfManySessions(t *testing.T) {
	const limit = 1 << 22
	m := NewListingMemory(limit, nil)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 200 {
				r := m.reservation()
				_ = r.grow(smallListing + 1000*(i+1))
				_ = r.grow(smallListing + 1000*(i+n))
				if got := m.Reserved(); got > limit {
					t.Errorf("%d octets are reserved, %d may be", got, limit)
				}
				r.close()
			}
		})
	}
	wg.Wait()
	if got := m.Reserved(); got != 0 {
		t.Errorf("%d octets are left over", got)
	}
}

func BenchmarkReservationGrow(b *testing.B) {
	m := NewListingMemory(1<<40, nil)
	r := m.reservation()
	n := 0
	for b.Loop() {
		n++
		if err := r.grow(n); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkListingMemory measures what a listing of so many messages takes, of
// which EXISTS was told.
func BenchmarkListingMemory(b *testing.B) {
	for b.Loop() {
		const messages = 1_000_000
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		l := newListing(inbox.View{UIDValidity: 1, UIDNext: messages + 1, Exists: messages, ExistsAtSelect: -1}, snapshot{}, nil)
		for uid := range uint32(messages) {
			l.Row(int64(uid)+1, uid+1, 1000)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/messages, "octets/message")
		runtime.KeepAlive(l)
	}
}
