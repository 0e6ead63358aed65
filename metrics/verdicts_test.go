package metrics

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// Criterion: One client, or one network, that rejects the certificate however often counts as one network, and is forgotten after 20 minutes.
func TestNetworksThatRejectTheCertificateAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(config())
		from := func(format string, args ...any) {
			c := client("imaps", proxy.IMAP)
			c.Addr = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(format, args...)), 1)
			m.Observe(proxy.CertificateRejected{Client: c, Alert: "unknown_ca"})
		}
		const series = `postern_tls_certificate_networks{listener="imaps",verdict="rejected"}`
		count := func() float64 {
			n, err := strconv.ParseFloat(scrape(t, m)[series], 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		for i := range 1000 {
			from("192.0.2.%d", i%256)
			from("2001:db8:%x::1", i)
		}
		if got := count(); got != 2 {
			t.Errorf("two networks are counted as %v", got)
		}
		time.Sleep(period)
		for i := range 10_000 {
			from("10.%d.%d.1", i/256, i%256)
		}
		if got := count(); math.Abs(got-10_002) > 300 {
			t.Errorf("10,002 networks are counted as %v", got)
		}
		time.Sleep(period)
		if got := count(); math.Abs(got-10_000) > 300 {
			t.Errorf("10,000 networks of the last period are counted as %v", got)
		}
		time.Sleep(2 * period)
		if got := count(); got != 0 {
			t.Errorf("after 20 minutes %v networks are counted", got)
		}
	})
}
