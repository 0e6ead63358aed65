package logs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"postern/configs"
	"postern/proxy"
)

func TestALogSaysOfPeopleWhatItMay(t *testing.T) {
	names := Pseudonyms{key: []byte("key of the test")}
	alice := names.Of("alice@example.org")
	address := netip.MustParseAddr("192.0.2.77")
	client := proxy.Client{Service: "imap", ID: "ABC", Addr: netip.AddrPortFrom(address, 40001)}
	dial := &net.OpError{Op: "read", Net: "tcp", Addr: net.TCPAddrFromAddrPort(client.Addr), Err: errors.New("reset of 192.0.2.7 and 192.0.2.77")}
	for _, c := range []struct {
		privacy configs.Privacy
		args    []any
		want    string
	}{
		{configs.Privacy{Addresses: "full", Users: "full"}, []any{"ip", address, "account", "alice@example.org"}, "ip=192.0.2.77 account=alice@example.org"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"ip", address, "account", "al"}, "ip=192.0.2.0/24 account=al"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"ip", netip.MustParseAddr("2001:db8:1:2::3")}, "ip=2001:db8:1::/48"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"network", netip.MustParsePrefix("2001:db8:1:2::/64")}, "network=2001:db8:1::/48"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"network", netip.MustParsePrefix("10.0.0.0/8")}, "network=10.0.0.0/8"},
		{configs.Privacy{Addresses: "none", Users: "full"}, []any{slog.Group("client", "listener", "imap", "ip", address, "session", "ABC")}, "client.listener=imap client.ip=- client.session=ABC"},
		{configs.Privacy{Addresses: "none", Users: "full"}, []any{"err", dial, "ip", address}, `err="read tcp -:40001: reset of 192.0.2.7 and -" ip=-`},
		{
			configs.Privacy{Addresses: "full", Users: "pseudonym"},
			[]any{"account", "alice@example.org", "err", errors.New("no mailbox alice@example.org.au, /?u=alice%40example.org, (alice@example.org)")},
			fmt.Sprintf(`account=%s err="no mailbox %s.au, /?u=%s, (%s)"`, alice, alice, alice, alice),
		},
		{configs.Privacy{Addresses: "full", Users: "pseudonym"}, []any{"account", "", "n", 7, "listener", "imap"}, `account="" n=7 listener=imap`},
	} {
		var out bytes.Buffer
		var rules atomic.Pointer[Redaction]
		log := slog.New(NewRedactor(slog.NewTextHandler(&out, nil), &rules))
		rules.Store(&Redaction{c.privacy, names})
		log.Info("m", c.args...)
		if _, got, _ := strings.Cut(strings.TrimSpace(out.String()), "msg=m "); got != c.want {
			t.Errorf("%+v:\n%s, want\n%s", c.privacy, got, c.want)
		}
		out.Reset()
		log.WithGroup("g").With(c.args...).Info("m")
		if got := out.String(); c.privacy.Addresses == "none" && strings.Contains(got, "ip=192") {
			t.Errorf("what a logger has from the start: %s", got)
		}
	}
}
