package listen

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func newSockets(t *testing.T) *Sockets {
	t.Helper()
	s, err := Inherited()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustListen(t *testing.T, s *Sockets, address string) net.Listener {
	t.Helper()
	ln, _, err := s.Listen(t.Context(), "", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func TestASocketStaysOpenForTheNextConfiguration(t *testing.T) {
	s := newSockets(t)
	first := mustListen(t, s, "127.0.0.1:0")
	again, fresh, err := s.Listen(t.Context(), "", "127.0.0.1:0")
	if err != nil || again != first || fresh {
		t.Fatalf("got %v, fresh %v, %v, want the open one", again, fresh, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if other := mustListen(t, s, "127.0.0.1:0"); other == first {
		t.Error("got the socket that was closed")
	}
}

// Criterion: Listening sockets pass from one process to the next, with the connections that wait in them.
func TestSuccessorAcceptsWaitingConnections(t *testing.T) {
	if os.Getenv("SUCCESSOR") != "" {
		succeed(t)
		return
	}
	s := newSockets(t)
	ln := mustListen(t, s, "127.0.0.1:0")
	files, environment, err := s.Files()
	if err != nil {
		t.Fatal(err)
	}
	successor := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	successor.Env = append(os.Environ(), environment, "SUCCESSOR="+ln.Addr().String())
	successor.ExtraFiles = files
	accepted := make(chan struct{})
	go func() { defer close(accepted); _, _ = ln.Accept(); _, _ = ln.Accept() }()
	var printed bytes.Buffer
	successor.Stdout, successor.Stderr = &printed, &printed
	if err := successor.Start(); err != nil {
		t.Fatal(err)
	}
	_ = ln.Close() // although somebody accepts
	<-accepted
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	err = successor.Wait()
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		t.Fatalf("successor: %v\n%s", err, printed.String())
	}
	b := make([]byte, 2)
	if n, err := client.Read(b); err != nil || string(b[:n]) != "ok" {
		t.Fatalf("the client that waited got %q, %v", b[:n], err)
	}
}

// succeed is the successor process.
func succeed(t *testing.T) {
	s := newSockets(t)
	ln := mustListen(t, s, os.Getenv("SUCCESSOR"))
	if os.Getenv(socketsVariable) != "" {
		t.Error("a process started by this one would think that it is its successor")
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("ok")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestUnusedSocketsAreClosed(t *testing.T) {
	given := mustListen(t, newSockets(t), "127.0.0.1:0").(*socket)
	f, err := given.File()
	if err != nil {
		t.Fatal(err)
	}
	s := newSockets(t)
	if err := s.addFiles([]*os.File{f}); err != nil {
		t.Fatal(err)
	}
	if got := s.CloseUnused(); len(got) != 1 || got[0] != given.Addr().String() {
		t.Errorf("closed %v, want %v", got, given.Addr())
	}
	if got := s.CloseUnused(); got != nil {
		t.Errorf("closed %v once more", got)
	}
}

func TestAnInheritedSocketHasToBeForTCP(t *testing.T) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := newSockets(t).addFiles([]*os.File{f}); err == nil || !strings.Contains(err.Error(), "is not for TCP") {
		t.Errorf("got %v", err)
	}
}

func TestNoAddressIsAllAddresses(t *testing.T) {
	for _, c := range []struct {
		held, wanted string
		same         bool
	}{
		{"[::]:993", "[::]:993", true},
		{"0.0.0.0:993", "[::]:993", false},
		{"10.0.0.1:993", "10.0.0.1:993", true},
		{"10.0.0.1:993", "10.0.0.2:993", false},
		{"10.0.0.1:993", "10.0.0.1:995", false},
		{"[::]:993", "", true},
		{"0.0.0.0:993", "", true},
		{"10.0.0.1:993", "", false},
	} {
		wanted := netip.AddrPortFrom(netip.Addr{}, 993)
		if c.wanted != "" {
			wanted = netip.MustParseAddrPort(c.wanted)
		}
		if got := matches(netip.MustParseAddrPort(c.held), wanted); got != c.same {
			t.Errorf("%s for %q: got %v", c.held, c.wanted, got)
		}
	}
}
