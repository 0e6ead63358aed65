package guard

import "time"

// A sketch remembers, for any number of keys, roughly when their buckets are full. It
// is a count-min sketch with times instead of counts. fullAt may return too late a
// time, if other keys share all four cells, but never one too early.
type sketch struct {
	rows [][sketchCells]uint32 // seconds, rounded up; nil until the first raise
}

const (
	sketchRows  = 4
	sketchCells = 1 << 18
)

func (s *sketch) cell(row int, k key) *uint32 {
	return &s.rows[row][(uint64(k)*0x9e3779b97f4a7c15>>(row*15))%sketchCells]
}

// raise records that the bucket of k is full at a time, or later.
func (s *sketch) raise(k key, fullAt time.Duration) {
	if s.rows == nil {
		s.rows = make([][sketchCells]uint32, sketchRows)
	}
	for row := range s.rows {
		cell := s.cell(row, k)
		*cell = max(*cell, uint32(fullAt/time.Second)+1)
	}
}

// fullAt returns when the bucket of k is full; 0 if it was never used.
func (s *sketch) fullAt(k key) time.Duration {
	if s.rows == nil {
		return 0
	}
	least := ^uint32(0)
	for row := range s.rows {
		least = min(least, *s.cell(row, k))
	}
	return time.Duration(least) * time.Second
}

// reset makes the bucket of k full. Other buckets that share its cells may lose debt.
func (s *sketch) reset(k key) {
	for row := range s.rows {
		*s.cell(row, k) = 0
	}
}
