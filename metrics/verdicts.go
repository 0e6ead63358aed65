package metrics

import (
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/proxy"
)

// The values of the label verdict: what a client made of the certificate.
const (
	accepted = "accepted" // it completed a handshake
	rejected = "rejected" // it sent an alert about the certificate
)

var certificateNetworks = prometheus.NewDesc(prefix+"_tls_certificate_networks",
	"Different networks, /24 of IPv4 and /32 of IPv6, whose clients completed a handshake or rejected the certificate in the last 10 to 20 minutes (an estimate).",
	[]string{"listener", "verdict"}, nil)

// certificateVerdicts is a prometheus.Collector of the networks that accept or reject
// the certificate: one client that rejects it a thousand times counts as one network.
type certificateVerdicts struct {
	*family[*networks]
	seed maphash.Seed

	mu     sync.Mutex
	counts map[[2]string]*networks // by listener and verdict
}

// certificateVerdicts creates and registers certificateVerdicts.
func (r *registry) certificateVerdicts(listener *dimension) *certificateVerdicts {
	v := &certificateVerdicts{seed: maphash.MakeSeed(), counts: make(map[[2]string]*networks)}
	v.family = newFamily(v.with, []*dimension{listener, label("verdict", accepted, rejected)})
	r.MustRegister(v)
	r.families = append(r.families, v.family)
	return v
}

// with returns the networks of a listener and a verdict.
func (v *certificateVerdicts) with(values ...string) *networks {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := [2]string(values)
	if v.counts[key] == nil {
		v.counts[key] = &networks{}
	}
	return v.counts[key]
}

// add counts the network of a client: for IPv6 what a provider has, because a /48 costs
// nothing.
func (v *certificateVerdicts) add(c proxy.Client, verdict string) {
	width := 32
	addr := c.Addr.Addr().WithZone("")
	if addr.Is4() {
		width = 24
	}
	network, _ := addr.Prefix(width) // connections without an address count as one network
	v.of(c.Service, verdict).add(maphash.Comparable[netip.Prefix](v.seed, network), time.Now())
}

// Describe implements prometheus.Collector.
func (v *certificateVerdicts) Describe(to chan<- *prometheus.Desc) { to <- certificateNetworks }

// Collect implements prometheus.Collector.
func (v *certificateVerdicts) Collect(to chan<- prometheus.Metric) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for key, n := range v.counts {
		to <- prometheus.MustNewConstMetric(certificateNetworks, prometheus.GaugeValue, n.count(time.Now()), key[:]...)
	}
}

// networks estimates how many different networks were added lately, by linear
// counting (Whang, Vander-Zanden and Taylor, 1990): 4 KiB, 1 % off at 10,000 networks.
type networks struct {
	mu            sync.Mutex
	begun         time.Time // of latest
	latest, older bitmap
}

// A bitmap has bits for the hashes of networks.
type bitmap [bitmapSize / 64]uint64

const (
	bitmapSize = 1 << 14
	period     = 10 * time.Minute // that one bitmap is for
)

// add adds the network with a hash.
func (n *networks) add(hash uint64, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.turn(now)
	hash %= bitmapSize
	n.latest[hash/64] |= 1 << (hash % 64)
}

// count returns how many networks were added in this period and in the one before.
func (n *networks) count(now time.Time) float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.turn(now)
	zeros := bitmapSize
	for i, word := range n.latest {
		zeros -= bits.OnesCount64(word | n.older[i])
	}
	return math.Round(bitmapSize * math.Log(bitmapSize/float64(max(1, zeros))))
}

// turn forgets what is older than the period before this one.
func (n *networks) turn(now time.Time) {
	switch age := now.Sub(n.begun); {
	case age < period:
		return
	case age < 2*period:
		n.older = n.latest
	default:
		n.older = bitmap{}
	}
	n.latest, n.begun = bitmap{}, now
}
