package main

import (
	"bytes"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/certs"
)

func TestObtainWantsAddressesOfOurs(t *testing.T) {
	listener := func(address string) configs.Listener { return configs.Listener{Address: address} }
	ours := netip.MustParseAddr("192.0.2.7")
	for _, c := range []struct {
		name  string
		cfg   configs.Config
		given []string
		want  []netip.Addr
	}{
		{"given", configs.Config{TLS: configs.TLS{ACME: &configs.ACME{}}}, []string{"192.0.2.7"}, []netip.Addr{ours}},
		{"configured", configs.Config{TLS: configs.TLS{ACME: &configs.ACME{OnDemand: &configs.OnDemand{Addresses: []netip.Addr{ours}}}}}, nil, []netip.Addr{ours}},
		{"of a listener", configs.Config{
			TLS: configs.TLS{ACME: &configs.ACME{}}, Listeners: []configs.Listener{listener("192.0.2.7:993")},
		}, nil, []netip.Addr{ours}},
	} {
		got, err := ownAddresses(&c.cfg, c.given)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	if _, err := ownAddresses(&configs.Config{}, []string{"here"}); err == nil {
		t.Error("an address that is none is taken")
	}
}

func TestObtainTellsItsProgress(t *testing.T) {
	var b bytes.Buffer
	r := progressReport{out: &b, began: time.Now(), counts: map[string]int{}}
	r.update(certs.Progress{Name: "a.example.org", Result: certs.ObtainedNow, Done: 1, All: 3})
	r.update(certs.Progress{Name: "b.example.org", Result: certs.ObtainSkipped, Err: io.EOF, Done: 2, All: 3})
	r.update(certs.Progress{Name: "c.example.org", Result: certs.ObtainedBefore, Done: 3, All: 3})
	r.end()
	want := "a.example.org: obtained\nb.example.org: skipped: EOF\n1 obtained, 1 there already, 1 skipped, 0 failed\n"
	if b.String() != want {
		t.Errorf("told\n%s, want\n%s", b.String(), want)
	}
}
