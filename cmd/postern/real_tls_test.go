package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkHalfOpen is what a client costs that begins a handshake and does not
// go on.
func BenchmarkHalfOpen(b *testing.B) {
	const n = 10_000
	for _, sends := range []string{sendNothing, sendHalf, sendAll} {
		b.Run(sends, func(b *testing.B) {
			for b.Loop() {
				imap, _ := inMemory(b, "one", "alice")
				p := startPostern(b, behind{imap: fmt.Sprintf("{address: %q, tls: none}", imap)},
					"limits: {max_connections: 15000}\ntimeouts: {handshake: 2m}\n")
				before := p.share(b)
				c := gather(b, p.imap, sends, n)
				at := p.share(b)
				time.Sleep(20 * time.Second) // the collector comes by itself, and gives back
				later := p.share(b)
				b.ReportMetric(float64(at-before)/n/1024, "KB/conn")
				b.ReportMetric(float64(later-before)/n/1024, "later-KB/conn")
				c.leave()
			}
		})
	}
}

// share returns the proportional share of memory of Postern, in octets.
func (p *postern) share(b *testing.B) int {
	b.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no Pss")
	return 0
}
