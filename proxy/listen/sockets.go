package listen

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// Sockets are the listening sockets of a process, by address: those it has
// opened, and those it was given. A socket that a new configuration still has
// stays open, and so do the connections that wait in it. It must be made by
// Inherited; its methods may be called from many goroutines.
type Sockets struct {
	mu    sync.Mutex
	given []*net.TCPListener // nobody has asked for yet
	open  map[string]*socket // by Key
}

// A socket gives its connections our keep-alive, whoever has opened it.
type socket struct {
	*net.TCPListener
	set *Sockets
	key string
}

const (
	// handedOver is the variable in which a Postern tells its successor how
	// many sockets it gets, from firstGiven on.
	handedOver = "POSTERN_LISTEN_FDS"
	firstGiven = 3
)

// Inherited returns the sockets that the process was given: by systemd
// (sd_listen_fds(3)) or by the Postern before it (Files). There may be none.
func Inherited() (*Sockets, error) {
	s := &Sockets{open: make(map[string]*socket)}
	files := activation.Files(true)
	n, _ := strconv.Atoi(os.Getenv(handedOver))
	if err := os.Unsetenv(handedOver); err != nil {
		return nil, fmt.Errorf("inherit sockets: %w", err)
	}
	for i := range n {
		files = append(files, os.NewFile(uintptr(firstGiven+i), "socket"))
	}
	return s, s.Give(files)
}

// Give adds to what was inherited. It takes the files' descriptors in any case.
func (s *Sockets) Give(files []*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(files)
}

// take makes listeners of files, and closes these.
func (s *Sockets) take(files []*os.File) error {
	var errs []error
	for _, f := range files {
		ln, err := net.FileListener(f)
		_ = f.Close() // ln has its own
		if err != nil {
			errs = append(errs, fmt.Errorf("inherit socket %s: %w", f.Name(), err))
			continue
		}
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			_ = ln.Close()
			errs = append(errs, fmt.Errorf("inherit socket %s: %v is not for TCP", f.Name(), ln.Addr()))
			continue
		}
		s.given = append(s.given, tcp)
	}
	return errors.Join(errs...)
}

// Listen returns the socket for address, host:port: the one that is open, or was
// inherited, or a new one. Without a host it is for all addresses, IPv4 and IPv6.
// Port 0 is any free one, for each name another. fresh says that it was not open
// before: it is the caller's to close if the configuration fails. The error names
// the address and says what to do; it wraps that of the system.
func (s *Sockets) Listen(ctx context.Context, name, address string) (ln net.Listener, fresh bool, err error) {
	key := Key(name, address)
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.open[key]; one != nil {
		return one, false, nil
	}
	tcp := s.inherit(address)
	if tcp == nil {
		if tcp, err = openTCP(ctx, address); err != nil {
			return nil, false, err
		}
	}
	one := &socket{tcp, s, key}
	s.open[key] = one
	return one, true, nil
}

// Key is what a socket is known by: its address, and its name if the port is 0.
func Key(name, address string) string {
	if _, port, err := net.SplitHostPort(address); err == nil && port == "0" {
		return name + " " + address
	}
	return address
}

// inherit returns the given socket for address, or nil.
func (s *Sockets) inherit(address string) *net.TCPListener {
	wanted, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || wanted.Port == 0 {
		return nil
	}
	for i, ln := range s.given {
		if same(addrPort(ln.Addr()), wanted.AddrPort()) {
			s.given = slices.Delete(s.given, i, i+1)
			return ln
		}
	}
	return nil
}

// same reports whether a socket at held is what was asked for. No address means
// all, which is [::], or 0.0.0.0 on a machine without IPv6.
func same(held, wanted netip.AddrPort) bool {
	if held.Port() != wanted.Port() {
		return false
	}
	if !wanted.Addr().IsValid() {
		return held.Addr().IsUnspecified()
	}
	return held.Addr() == wanted.Addr().Unmap()
}

// CloseUnused closes what was inherited and not asked for, and returns the
// addresses.
func (s *Sockets) CloseUnused() (addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range s.given {
		addresses = append(addresses, ln.Addr().String())
		_ = ln.Close()
	}
	s.given = nil
	return addresses
}

// Files returns copies of the open sockets for a successor, and what its
// environment must have: it gets them as its first files behind the standard
// ones. The caller closes them.
func (s *Sockets) Files() (files []*os.File, environment string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, address := range slices.Sorted(maps.Keys(s.open)) {
		f, err := duplicate(s.open[address].TCPListener)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, "", fmt.Errorf("hand over %s: %w", address, err)
		}
		files = append(files, f)
	}
	return files, fmt.Sprintf("%s=%d", handedOver, len(files)), nil
}

// duplicate is ln.File, but for one thing: what that returns makes the socket
// blocking when it is passed on, for us as well, and Close would wait for Accept.
func duplicate(ln *net.TCPListener) (f *os.File, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	name := ln.Addr().String()
	control := raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock() // no child gets it unasked
		defer syscall.ForkLock.RUnlock()
		var copied int
		if copied, err = syscall.Dup(int(fd)); err == nil {
			syscall.CloseOnExec(copied)
			f = os.NewFile(uintptr(copied), name)
		}
	})
	return f, errors.Join(control, err)
}

// Accept implements net.Listener.
func (s *socket) Accept() (net.Conn, error) {
	c, err := s.AcceptTCP()
	if err != nil {
		return nil, err
	}
	_ = c.SetKeepAliveConfig(keepAlive) // it is gone again if this fails
	return c, nil
}

// Close implements net.Listener. The address can be asked for again.
func (s *socket) Close() error {
	s.set.mu.Lock()
	if s.set.open[s.key] == s {
		delete(s.set.open, s.key)
	}
	s.set.mu.Unlock()
	return s.TCPListener.Close()
}
