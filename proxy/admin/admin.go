// Package admin is the control socket: subcommands ask the running Postern
// through it, because what it remembers belongs to one process.
//
// It is HTTP with JSON on a unix socket that only its owner can use: POST
// /name, with the argument as the body. What fails is answered with a status
// from 400 on and {"error": "..."}.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxBody bounds a question and an answer, in octets.
	maxBody = 64 << 20
	// maxPath is what the kernel takes as the path of a socket, in octets.
	maxPath     = 107
	dialTimeout = 5 * time.Second
	headerTime  = 10 * time.Second
	closeTime   = 5 * time.Second
)

var (
	// ErrNotRunning is in the tree of an error of Call when nobody listens.
	ErrNotRunning = errors.New("no Postern is running")
	// ErrRunning is in the tree of an error of Listen when somebody does.
	ErrRunning = errors.New("another Postern has the control socket")
)

// A Server answers questions. The zero value is ready.
type Server struct {
	mu       sync.RWMutex
	handlers map[string]http.Handler
}

// Handle makes f the answer to questions with a name, such as "uidl/forget".
// Its error is told as it is, so it must hold no secret.
func Handle[In, Out any](s *Server, name string, f func(context.Context, In) (Out, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handlers == nil {
		s.handlers = make(map[string]http.Handler)
	}
	s.handlers[name] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in In
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			answer(w, http.StatusBadRequest, failure{err.Error()})
			return
		}
		out, err := f(r.Context(), in)
		if err != nil {
			answer(w, http.StatusInternalServerError, failure{err.Error()})
			return
		}
		answer(w, http.StatusOK, out)
	})
}

type failure struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who asked has left
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.RLock()
	h := s.handlers[name]
	s.mu.RUnlock()
	switch {
	case h == nil:
		answer(w, http.StatusNotFound, failure{fmt.Sprintf("this Postern knows no %q", name)})
	case r.Method != http.MethodPost:
		answer(w, http.StatusMethodNotAllowed, failure{"want POST"})
	default:
		h.ServeHTTP(w, r)
	}
}

// Serve answers on ln until ctx ends, and then closes it; answers that are
// under way have a moment.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: headerTime, MaxHeaderBytes: 16 << 10}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(ln)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("control socket: %w", err)
}

// Listen makes the socket at path, for its owner alone. What a process left
// behind that is no more is replaced.
func Listen(path string) (net.Listener, error) {
	ln, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return ln, nil
}

func listen(path string) (net.Listener, error) {
	// It gets its mode under another name: there is no moment when others can use it.
	draft := path + ".new"
	if len(draft) > maxPath {
		return nil, fmt.Errorf("the path has %d octets, want at most %d", len(path), maxPath-len(".new"))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("there is something that is no socket")
	}
	if conn, err := net.DialTimeout("unix", path, dialTimeout); err == nil {
		_ = conn.Close()
		return nil, ErrRunning
	}
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: draft, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	l := &listener{UnixListener: ln, path: path}
	if err = os.Chmod(draft, 0o600); err == nil {
		if l.info, err = os.Lstat(draft); err == nil {
			err = os.Rename(draft, path)
		}
	}
	if err != nil {
		_ = ln.Close()
		_ = os.Remove(draft)
		return nil, err
	}
	return l, nil
}

// A listener removes its socket with itself, but not that of its successor.
type listener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
	once sync.Once
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.info) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

// Call asks the Postern at path a question, and puts the answer into out.
func Call(ctx context.Context, path, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://postern/"+name, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		return d.DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w at %s", ErrNotRunning, path)
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	defer func() { _ = response.Body.Close() }()
	return read(name, response, out)
}

func read(name string, response *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	if len(b) > maxBody {
		return fmt.Errorf("ask %s: the answer has more than %d octets", name, maxBody)
	}
	if response.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(b, &f) != nil || f.Error == "" {
			f.Error = response.Status
		}
		return fmt.Errorf("%s: %s", name, f.Error)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	return nil
}
