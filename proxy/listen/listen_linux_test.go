package listen

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Criterion: A port that is taken is an error that names the process that holds it.
func TestTakenPortNamesItsHolder(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSpace(string(comm))
	for _, host := range []string{"127.0.0.1", "::1", "", "0.0.0.0"} {
		t.Run(host, func(t *testing.T) {
			needAddress(t, host)
			ln := listenTest(t, net.JoinHostPort(host, "0"))
			for _, wanted := range []string{ln.Addr().String(), ":" + portOf(t, ln)} {
				_, err := listenTCP(t.Context(), wanted)
				want := fmt.Sprintf("address already in use by %s (process %d)", name, os.Getpid())
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("openTCP(%s) while %s is taken: %v, want %q", wanted, ln.Addr(), err, want)
				}
				if pid, got, ok := Holder(wanted); pid != os.Getpid() || got != name || !ok {
					t.Errorf("Holder(%s) = %d, %q, %v, want %d, %q", wanted, pid, got, ok, os.Getpid(), name)
				}
			}
		})
	}
}

func TestFreePortHasNoHolder(t *testing.T) {
	ln := listenTest(t, "127.0.0.1:0")
	address := ln.Addr().String()
	other := "[::1]:" + portOf(t, ln)
	if pid, name, ok := Holder(other); ok {
		t.Errorf("Holder(%s) = %d, %s, want none: only %s is taken", other, pid, name, address)
	}
	_ = ln.Close()
	if pid, name, ok := Holder(address); ok {
		t.Errorf("Holder(%s) = %d, %s, want none", address, pid, name)
	}
	if _, _, ok := Holder("nonsense"); ok {
		t.Error("Holder of nonsense is ok")
	}
}

func TestTablesOfTheKernel(t *testing.T) {
	const tables = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:03E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 00000000:03E3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0
   2: 0100007F:03E1 0100007F:DB90 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100 0 0 10 0
   3: 00000000000000000000000001000000:03E1 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 14 1 0
   4: 00000000000000000000000000000000:01D1 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 15 1 0
   5: B80D0120000000000000000001000000:03E1 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 16 1 0
   6: 0000000000000000FFFF00000200007F:03E1 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 17 1 0
   7: 01007F:03E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18 1
   8: nonsense 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 19 1
   9: 0100007F:03E1 0A
`
	for wanted, want := range map[string][]string{
		"127.0.0.1:993":     {"11"},
		"127.0.0.2:993":     {"17"},
		"127.0.0.3:993":     nil,
		"0.0.0.0:993":       {"11", "17"},
		"[::1]:993":         {"14"},
		"[2001:db8::1]:993": {"16"},
		"[::]:993":          {"11", "14", "16", "17"},
		"192.0.2.1:995":     {"12"},
		"[::1]:995":         nil,
		"192.0.2.1:465":     {"15"},
		"127.0.0.1:143":     nil,
	} {
		if got := listeners(strings.NewReader(tables), netip.MustParseAddrPort(wanted)); !slices.Equal(got, want) {
			t.Errorf("listeners for %s = %v, want %v", wanted, got, want)
		}
	}
}

// Criterion: TCP keepalive finds clients that are gone without a word.
func TestConnectionsHaveKeepAlive(t *testing.T) {
	ln := listenTest(t, "127.0.0.1:0")
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []struct{ level, name, want int }{
		{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 300},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 30},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 4},
	} {
		var got int
		var sockErr error
		err := raw.Control(func(fd uintptr) { got, sockErr = syscall.GetsockoptInt(int(fd), option.level, option.name) })
		if err != nil || sockErr != nil {
			t.Fatal(err, sockErr)
		}
		if got != option.want {
			t.Errorf("socket option %d = %d, want %d", option.name, got, option.want)
		}
	}
}
