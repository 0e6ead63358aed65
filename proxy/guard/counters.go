package guard

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// window is the number of minutes that sum adds.
const window = 5

// stats are the counters behind Stats. The Guard's lock protects them, except waiting.
type stats struct {
	waiting atomic.Int64
	shed    uint64
	minutes [window]minute
	hours   [2]hour
}

// A minute has the counts of one minute.
type minute struct {
	number                              int64
	succeeded, failed, repeated, denied int
	accounts, networks                  hyperLogLog // that failed
}

func (s *stats) minute(now time.Duration) *minute {
	number := int64(now / time.Minute)
	m := &s.minutes[number%window]
	if m.number != number {
		*m = minute{number: number}
	}
	return m
}

func (s *stats) countSuccess(now time.Duration) { s.minute(now).succeeded++ }

func (s *stats) countRepeat(now time.Duration) { s.minute(now).repeated++ }

func (s *stats) countDenied(now time.Duration) { s.minute(now).denied++ }

// countGuess counts a wrong password; password is 0 for a token.
func (s *stats) countGuess(account, network, password key, now time.Duration) {
	m := s.minute(now)
	m.failed++
	m.accounts.add(account)
	m.networks.add(network)
	if password != 0 {
		s.hour(now).add(password, account)
	}
}

// A hyperLogLog counts distinct keys with an error of 3 % (Flajolet and others, 2007),
// and by linear counting if there are few.
type hyperLogLog [1 << 10]uint8

func (h *hyperLogLog) add(k key) {
	i := k >> 54
	h[i] = max(h[i], uint8(1+bits.LeadingZeros64(uint64(k)<<10|1)))
}

func (h *hyperLogLog) merge(other *hyperLogLog) {
	for i, v := range other {
		h[i] = max(h[i], v)
	}
}

func (h *hyperLogLog) count() int {
	const m = float64(len(hyperLogLog{}))
	sum, zeros := 0.0, 0.0
	for _, v := range h {
		sum += math.Pow(2, -float64(v))
		if v == 0 {
			zeros++
		}
	}
	estimate := 0.7213 / (1 + 1.079/m) * m * m / sum
	if zeros > 0 && estimate <= 2.5*m {
		estimate = m * math.Log(m/zeros)
	}
	return int(math.Round(estimate))
}

// An hour has the wrong passwords that were tried at the most accounts in one hour. A
// password that is not among them replaces the one with the fewest accounts.
type hour struct {
	number    int64
	passwords [64]spray
}

// A spray is one wrong password and a bitmap of the accounts at which it was tried.
type spray struct {
	password key
	accounts [4]uint64
}

func (s *stats) hour(now time.Duration) *hour {
	number := int64(now / time.Hour)
	h := &s.hours[number%int64(len(s.hours))]
	if h.number != number {
		*h = hour{number: number}
	}
	return h
}

func (h *hour) add(password, account key) {
	index, fewest := 0, math.MaxInt
	for i := range h.passwords {
		s := &h.passwords[i]
		if s.password == password {
			index = i
			break
		}
		if n := s.ones(); n < fewest {
			index, fewest = i, n
		}
	}
	s := &h.passwords[index]
	if s.password != password {
		*s = spray{password: password}
	}
	s.accounts[account>>62] |= 1 << (account >> 56 & 63)
}

func (s *spray) ones() (n int) {
	for _, w := range s.accounts {
		n += bits.OnesCount64(w)
	}
	return n
}

// most returns at how many accounts the most sprayed password was tried, by linear
// counting.
func (h *hour) most() int {
	most := 0
	for i := range h.passwords {
		most = max(most, h.passwords[i].ones())
	}
	if most == 0 {
		return 0
	}
	const m = 256.0
	return int(math.Round(m * math.Log(m/max(1, m-float64(most)))))
}
