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

	"postern/proxy"
)

// Sockets are the listening sockets of a process, by address: those it has
// opened, and those it has inherited. A socket that a new configuration uses as
// well stays open, with the connections in its backlog. Inherited makes it. Its
// methods may be called from several goroutines.
type Sockets struct {
	mu        sync.Mutex
	inherited []*net.TCPListener // not yet used
	open      map[string]*socket // by Key
}

// A socket sets keepAlive on its connections, also if another process has opened
// it.
type socket struct {
	*net.TCPListener
	set *Sockets
	key string
}

// The handover of sockets to a new Postern.
const (
	// socketsVariable is the environment variable with the number of sockets, from
	// descriptor firstDescriptor on.
	socketsVariable = "POSTERN_LISTEN_FDS"
	firstDescriptor = 3
)

// Inherited returns the sockets that the process has inherited from systemd
// (sd_listen_fds(3)) or from the previous Postern (Files). There may be none.
func Inherited() (*Sockets, error) {
	s := &Sockets{open: make(map[string]*socket)}
	files := activation.Files(true)
	n, _ := strconv.Atoi(os.Getenv(socketsVariable))
	if err := os.Unsetenv(socketsVariable); err != nil {
		return nil, fmt.Errorf("inherit sockets: %w", err)
	}
	for i := range n {
		files = append(files, os.NewFile(uintptr(firstDescriptor+i), "socket"))
	}
	return s, s.Inherit(files)
}

// Inherit adds inherited sockets. It closes the files in any case.
func (s *Sockets) Inherit(files []*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addFiles(files)
}

// addFiles makes listeners of files, and closes the files.
func (s *Sockets) addFiles(files []*os.File) error {
	var errs []error
	for _, f := range files {
		ln, err := net.FileListener(f)
		_ = f.Close() // ln has a copy
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
		s.inherited = append(s.inherited, tcp)
	}
	return errors.Join(errs...)
}

// Listen returns the socket for address, host:port: the open one, an inherited
// one, or a new one. Without a host it is for all IPv4 and IPv6 addresses. Port 0
// is any free port, another one for each name. fresh reports that the socket was
// not open before: the caller closes it if the configuration fails. The error
// names the address and advises what to do; it wraps that of the system.
func (s *Sockets) Listen(ctx context.Context, name, address string) (ln net.Listener, fresh bool, err error) {
	key := Key(name, address)
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.open[key]; one != nil {
		return one, false, nil
	}
	tcp := s.takeInherited(address)
	if tcp == nil {
		if tcp, err = listenTCP(ctx, address); err != nil {
			return nil, false, err
		}
	}
	one := &socket{tcp, s, key}
	s.open[key] = one
	return one, true, nil
}

// Key returns the key of a socket: its address, with its name if the port is 0.
func Key(name, address string) string {
	if _, port, err := net.SplitHostPort(address); err == nil && port == "0" {
		return name + " " + address
	}
	return address
}

// takeInherited returns the inherited socket for address, or nil.
func (s *Sockets) takeInherited(address string) *net.TCPListener {
	wanted, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || wanted.Port == 0 {
		return nil
	}
	for i, ln := range s.inherited {
		if matches(proxy.AddrPort(ln.Addr()), wanted.AddrPort()) {
			s.inherited = slices.Delete(s.inherited, i, i+1)
			return ln
		}
	}
	return nil
}

// matches reports whether a socket at held serves wanted. No address means all:
// [::], or 0.0.0.0 on a machine without IPv6.
func matches(held, wanted netip.AddrPort) bool {
	if held.Port() != wanted.Port() {
		return false
	}
	if !wanted.Addr().IsValid() {
		return held.Addr().IsUnspecified()
	}
	return held.Addr() == wanted.Addr().Unmap()
}

// CloseUnused closes the inherited sockets that were not used, and returns their
// addresses.
func (s *Sockets) CloseUnused() (addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range s.inherited {
		addresses = append(addresses, ln.Addr().String())
		_ = ln.Close()
	}
	s.inherited = nil
	return addresses
}

// Files returns copies of the open sockets for a new process, and the variable
// for its environment. The process must get them as its first files after the
// standard ones. The caller closes them.
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
	return files, fmt.Sprintf("%s=%d", socketsVariable, len(files)), nil
}

// duplicate is ln.File without its side effect: that makes the socket blocking
// when it is passed on, here as well, and Close would wait for Accept.
func duplicate(ln *net.TCPListener) (f *os.File, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	name := ln.Addr().String()
	control := raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock() // no child process inherits it
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
	_ = c.SetKeepAliveConfig(keepAlive) // fails only if the connection is closed
	return c, nil
}

// Close implements net.Listener. The address can be listened on again.
func (s *socket) Close() error {
	s.set.mu.Lock()
	if s.set.open[s.key] == s {
		delete(s.set.open, s.key)
	}
	s.set.mu.Unlock()
	return s.TCPListener.Close()
}
