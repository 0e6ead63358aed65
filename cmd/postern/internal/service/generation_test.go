package service

import (
	"net/netip"
	"reflect"
	"testing"

	"postern/configs"
)

// A pool is kept only while all is the same that it was made of.
func TestAServerKeyHasEveryFieldOfAServer(t *testing.T) {
	same := newServerKey(&configs.Server{Addresses: []string{"a:1"}, Source: []netip.Addr{netip.IPv6Loopback()}})
	if same != newServerKey(&configs.Server{Addresses: []string{"a:1"}, Source: []netip.Addr{netip.IPv6Loopback()}}) {
		t.Error("equal servers have different keys")
	}
	zero := newServerKey(new(configs.Server))
	if zero == newServerKey(nil) {
		t.Error("an empty server has the key of none")
	}
	for i := range reflect.TypeFor[configs.Server]().NumField() {
		var c configs.Server
		f := reflect.ValueOf(&c).Elem().Field(i)
		switch v := f.Addr().Interface().(type) {
		case *string:
			*v = "x"
		case *bool:
			*v = true
		case *int:
			*v = 1
		case *[]string:
			*v = []string{"x"}
		case *[]netip.Addr:
			*v = []netip.Addr{netip.IPv6Loopback()}
		default:
			t.Fatalf("a key cannot have a %v yet", f.Type())
		}
		if newServerKey(&c) == zero {
			t.Errorf("the key does not have %s", reflect.TypeFor[configs.Server]().Field(i).Name)
		}
	}
}
