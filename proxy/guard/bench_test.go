package guard

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy"
)

// BenchmarkDecision is what a login costs the guard, in parallel: Try and
// Settle, over as many connections as there are accounts.
func BenchmarkDecision(b *testing.B) {
	for _, bench := range []struct {
		name   string
		answer error
		known  bool
	}{{"known", nil, true}, {"stranger", errAway, false}, {"repeated", errWrong, false}} {
		b.Run(bench.name, func(b *testing.B) {
			const accounts = 1 << 12
			g := newGuard(Config{})
			permits, logins := make([]*permit, accounts), make([]*proxy.Login, accounts)
			for i := range accounts {
				addr := addressOf(uint32(i))
				permits[i] = mustAdmit(b, g, addr.String())
				logins[i] = loginWith(fmt.Sprintf("user%d@example.org", i), "password")
				if bench.known {
					g.Seed([]Success{{logins[i].Account, addr, time.Now()}})
				}
			}
			var next atomic.Uint32
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				i := int(next.Add(1)) * accounts / 64 // each goroutine has connections of its own
				first := i
				for pb.Next() {
					p := permits[i%accounts]
					err := p.Try(b.Context(), logins[i%accounts])
					if err == nil {
						err = bench.answer
					}
					p.Settle(err)
					if i++; i == first+accounts/64 {
						i = first
					}
				}
			})
		})
	}
}

func addressOf(i uint32) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 11<<24|i)
	return netip.AddrFrom4(a)
}

// BenchmarkMillionsOfKeys lets five million networks fail, each at an account of
// its own, and reports how long a decision takes and what stays in memory.
func BenchmarkMillionsOfKeys(b *testing.B) {
	const keys = 5_000_000
	for b.Loop() {
		took := make([]time.Duration, keys)
		before := heap()
		g := newGuard(Config{})
		p := mustAdmit(b, g, "192.0.2.1")
		account := make([]byte, 8)
		for i := range took {
			p.from = g.secret.originOf(addressOf(rand.Uint32N(1 << 24)))
			binary.LittleEndian.PutUint64(account, uint64(i))
			l := proxy.Login{Account: string(account), Mechanism: "PLAIN", Secret: guessed}
			begun := time.Now()
			err := p.Try(b.Context(), &l)
			if err == nil {
				err = errWrong
			}
			p.Settle(err)
			took[i] = time.Since(begun)
		}
		b.ReportMetric(float64(heap()-before)/(1<<20), "heap-MiB")
		slices.Sort(took)
		for name, i := range map[string]int{"p50-ns": keys / 2, "p99-ns": keys / 100 * 99} {
			b.ReportMetric(float64(took[i].Nanoseconds()), name)
		}
		runtime.KeepAlive(g)
	}
}

var guessed = proxy.NewSecret([]byte("guess"))

// heap returns what is in use, in octets.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
