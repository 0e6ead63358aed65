package listen

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holder returns the process that listens on address or on an address that
// overlaps. ok is false if there is none, if the process is another user's and
// this one is not root, and on systems other than Linux.
func Holder(address string) (pid int, name string, ok bool) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return 0, "", false
	}
	wanted := tcp.AddrPort()
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		inodes := listeners(f, netip.AddrPortFrom(wanted.Addr().Unmap(), wanted.Port()))
		_ = f.Close()
		for _, inode := range inodes {
			if pid, name, ok = owner(inode); ok {
				return pid, name, true
			}
		}
	}
	return 0, "", false
}

// listeners returns the inodes of the sockets in a table of proc_net_tcp(5) that
// prevent listening on wanted.
func listeners(table io.Reader, wanted netip.AddrPort) (inodes []string) {
	const (
		local, state, inode = 1, 3, 9
		listening           = "0A"
	)
	for lines := bufio.NewScanner(table); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) <= inode || fields[state] != listening {
			continue
		}
		if held, ok := parseSocket(fields[local]); ok && overlap(held, wanted) {
			inodes = append(inodes, fields[inode])
		}
	}
	return inodes
}

// parseSocket parses an address as the kernel writes it: hexadecimal words of 32
// bits in the machine's byte order, and the port.
func parseSocket(s string) (netip.AddrPort, bool) {
	words, port, ok := strings.Cut(s, ":")
	number, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(words)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for w := b; len(w) > 0; w = w[4:] {
		binary.BigEndian.PutUint32(w, binary.NativeEndian.Uint32(w))
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), ok
}

// overlap reports whether a and b cannot be listened on at the same time.
func overlap(a, b netip.AddrPort) bool {
	x, y := a.Addr().WithZone(""), b.Addr().WithZone("") // the tables have no zones
	return a.Port() == b.Port() && (covers(x, y) || covers(y, x))
}

// covers reports whether listening on a includes b: no address and :: include
// all, 0.0.0.0 includes IPv4.
func covers(a, b netip.Addr) bool {
	return a == b || !a.IsValid() || a == netip.IPv6Unspecified() || a == netip.IPv4Unspecified() && b.Is4()
}

// owner searches all processes for one that has the socket open.
func owner(inode string) (pid int, name string, ok bool) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, "", false
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != "socket:["+inode+"]" {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		pid, err = strconv.Atoi(filepath.Base(process))
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil { // the process has just ended
			continue
		}
		return pid, strings.TrimSpace(string(comm)), true
	}
	return 0, "", false
}
