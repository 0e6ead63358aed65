package metrics

import (
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// other is the value of a label for everything that is not one of its values.
const other = "other"

// none is the value of a label that does not apply to an event.
const none = "none"

// A dimension is one label, or several that belong together, with all values that
// they can have.
type dimension struct {
	labels []string
	values [][]string // one for each label
}

// label returns a dimension of one label.
func label(name string, values ...string) *dimension {
	d := &dimension{labels: []string{name}}
	for _, v := range values {
		d.add(v)
	}
	return d
}

// add adds values, one for each label, unless the dimension has them.
func (d *dimension) add(values ...string) {
	if !d.has(values) {
		d.values = append(d.values, values)
	}
}

// has reports whether the dimension has values.
func (d *dimension) has(values []string) bool {
	return slices.ContainsFunc(d.values, func(v []string) bool { return slices.Equal(v, values) })
}

// A family is all series of one metric. They exist from the start, at 0. A value
// that is not in a dimension is counted as other, so that nothing that clients send
// can add a series.
type family[M any] struct {
	dimensions []*dimension
	with       func(values ...string) M
	known      atomic.Pointer[known[M]]
}

// known is the series of a family since its last growth.
type known[M any] struct {
	dimensions []dimension
	handles    map[series]M
}

// series are the values of all labels; not more than four are in use.
type series [4]string

func newFamily[M any](with func(...string) M, dimensions []*dimension) *family[M] {
	f := &family[M]{dimensions: dimensions, with: with}
	f.grow()
	return f
}

// grow creates the series of values that were added to the dimensions.
func (f *family[M]) grow() {
	k := &known[M]{handles: make(map[series]M)}
	for _, d := range f.dimensions {
		k.dimensions = append(k.dimensions, dimension{d.labels, slices.Clone(d.values)})
	}
	f.create(k, nil, k.dimensions)
	f.known.Store(k)
}

// create creates the series of all combinations of values.
func (f *family[M]) create(k *known[M], begun []string, rest []dimension) {
	if len(rest) == 0 {
		var s series
		copy(s[:], begun)
		k.handles[s] = f.with(begun...)
		return
	}
	for _, values := range rest[0].values {
		f.create(k, slices.Concat(begun, values), rest[1:])
	}
}

// of returns the series with values.
func (f *family[M]) of(values ...string) M {
	var s series
	copy(s[:], values)
	k := f.known.Load()
	if m, ok := k.handles[s]; ok {
		return m
	}
	return f.with(k.closed(s)...)
}

// closed replaces values that are not in their dimension by other.
func (k *known[M]) closed(s series) []string {
	values := s[:0]
	rest := s[:]
	for _, d := range k.dimensions {
		n := len(d.labels)
		if !d.has(rest[:n]) {
			for i := range n {
				rest[i] = other
			}
		}
		values, rest = append(values, rest[:n]...), rest[n:]
	}
	return values
}

type (
	counter   = *family[prometheus.Counter]
	gauge     = *family[prometheus.Gauge]
	histogram = *family[prometheus.Observer]
)

// labelsOf returns the names of all labels.
func labelsOf(dimensions []*dimension) (all []string) {
	for _, d := range dimensions {
		all = append(all, d.labels...)
	}
	return all
}

// A registry creates and registers families.
type registry struct {
	*prometheus.Registry
	families []interface{ grow() }
}

func (r *registry) counter(name, help string, dimensions ...*dimension) counter {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: prefix, Name: name, Help: help}, labelsOf(dimensions))
	r.MustRegister(v)
	f := newFamily(v.WithLabelValues, dimensions)
	r.families = append(r.families, f)
	return f
}

func (r *registry) gauge(name, help string, dimensions ...*dimension) gauge {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: prefix, Name: name, Help: help}, labelsOf(dimensions))
	r.MustRegister(v)
	f := newFamily(v.WithLabelValues, dimensions)
	r.families = append(r.families, f)
	return f
}

func (r *registry) histogram(name, help string, buckets []float64, dimensions ...*dimension) histogram {
	v := prometheus.NewHistogramVec(
		prometheus.HistogramOpts{Namespace: prefix, Name: name, Help: help, Buckets: buckets}, labelsOf(dimensions))
	r.MustRegister(v)
	f := newFamily(v.WithLabelValues, dimensions)
	r.families = append(r.families, f)
	return f
}
