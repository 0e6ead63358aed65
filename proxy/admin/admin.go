// Package admin is the control socket: subcommands send requests to the running
// Postern, because its state belongs to one process. A Server handles requests;
// Call and CallEach send one.
//
// The protocol is HTTP with JSON on a unix socket that only its owner, and
// optionally a group, can use: POST /name, with the argument as the body. The
// answer is a sequence of values, one a line. An error before the first value is
// a status from 400 on with {"error": "..."}; a later one is the trailer Error.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxBody bounds a request, and a value of an answer, in octets.
	maxBody = 64 << 20
	// maxPath is the longest path of a socket that the kernel accepts, in octets.
	maxPath     = 107
	dialTimeout = 5 * time.Second
	headerTime  = 10 * time.Second
	bodyTime    = time.Minute // to send a request, and to read one value of the answer
	closeTime   = 5 * time.Second

	// trailer has the error of an answer that has begun.
	trailer = "Error"
)

var (
	// ErrNotRunning is wrapped by an error of Call when no process listens.
	ErrNotRunning = errors.New("no Postern is running")
	// ErrRunning is wrapped by an error of Listen when a process listens.
	ErrRunning = errors.New("another Postern has the control socket")
)

// A Server handles requests. The zero value is ready.
type Server struct {
	Log     *slog.Logger // for each request; nil: none
	Routine []string     // names of requests that programs send regularly: they are logged at debug level
	// Account returns what the log has of an account, as the command's user typed it, which
	// may be a password in the wrong place. nil: the account.
	Account func(typed string) []slog.Attr

	mu       sync.RWMutex
	handlers map[string]http.Handler
}

// Handle registers f for requests with a name, such as "reload". Its error is
// sent as it is, so it must contain no secret. A request is logged with who has sent
// it; with its argument and its result if these are a slog.LogValuer of a group; and with
// a result that is a number.
func Handle[In, Out any](s *Server, name string, f func(context.Context, In) (Out, error)) {
	HandleEach(s, name, func(ctx context.Context, in In, each func(Out) error) error {
		out, err := f(ctx, in)
		if err != nil {
			return err
		}
		return each(out)
	})
}

// HandleEach is Handle for an answer of any number of values: f calls each for
// them. each fails when the caller has left.
func HandleEach[In, Out any](s *Server, name string, f func(ctx context.Context, in In, each func(Out) error) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handlers == nil {
		s.handlers = make(map[string]http.Handler)
	}
	s.handlers[name] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limits := http.NewResponseController(w)
		_ = limits.SetReadDeadline(time.Now().Add(bodyTime))
		var in In
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		_ = limits.SetReadDeadline(time.Time{}) // the caller decides how long to wait for the answer
		given, hidden := s.given(in)            // before f, which may forget the account
		values, begun := json.NewEncoder(w), false
		var result any
		err := f(r.Context(), in, func(out Out) error {
			if !begun {
				begun = true
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Trailer", trailer)
			}
			_ = limits.SetWriteDeadline(time.Now().Add(bodyTime))
			result = out
			return values.Encode(out)
		})
		s.logRequest(r.Context(), name, given, result, hide(err, hidden))
		switch {
		case err != nil && begun:
			w.Header().Set(trailer, oneLine.Replace(err.Error()))
		case err != nil:
			writeError(w, http.StatusInternalServerError, err.Error())
		}
	})
}

// given returns what the log has of the argument of a request, and the accounts that it
// hides.
func (s *Server) given(in any) (attrs []slog.Attr, hidden []string) {
	v, ok := in.(slog.LogValuer)
	if !ok {
		return nil, nil
	}
	for _, a := range v.LogValue().Group() {
		if a.Key != "account" || s.Account == nil {
			attrs = append(attrs, a)
			continue
		}
		some := s.Account(a.Value.String())
		attrs = append(attrs, some...)
		if !slices.ContainsFunc(some, func(a slog.Attr) bool { return a.Key == "account" }) {
			hidden = append(hidden, a.Value.String())
		}
	}
	return attrs, hidden
}

// hide returns an error without hidden names.
func hide(err error, names []string) error {
	if err == nil || len(names) == 0 {
		return err
	}
	text := err.Error()
	for _, name := range names {
		quoted := strconv.Quote(name)
		text = strings.ReplaceAll(strings.ReplaceAll(text, name, "ACCOUNT"), quoted[1:len(quoted)-1], "ACCOUNT")
	}
	return errors.New(text)
}

// logRequest logs a request. result is the last value of the answer; nil: there was none.
func (s *Server) logRequest(ctx context.Context, name string, given []slog.Attr, result any, err error) {
	if s.Log == nil {
		return
	}
	attrs := []slog.Attr{slog.String("request", name)}
	if by, ok := ctx.Value(callerKey{}).(caller); ok {
		attrs = append(attrs, by.attrs()...)
	}
	attrs = append(attrs, given...)
	level := slog.LevelInfo
	switch n, ok := result.(int); {
	case err != nil:
		level = slog.LevelWarn
		attrs = append(attrs, slog.Any("err", err))
	case slices.Contains(s.Routine, name):
		level = slog.LevelDebug
	case ok:
		attrs = append(attrs, slog.Int("result", n))
	}
	if v, ok := result.(slog.LogValuer); ok {
		attrs = append(attrs, v.LogValue().Group()...)
	}
	s.Log.LogAttrs(ctx, level, "control request", attrs...)
}

var oneLine = strings.NewReplacer("\r", "", "\n", "; ")

type failure struct {
	Error string `json:"error"`
}

func writeError(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(failure{text}) // fails only if the caller has left
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.RLock()
	h := s.handlers[name]
	s.mu.RUnlock()
	switch {
	case h == nil:
		writeError(w, http.StatusNotFound, fmt.Sprintf("this Postern knows no %q", name))
	case r.Method != http.MethodPost:
		writeError(w, http.StatusMethodNotAllowed, "want POST")
	default:
		h.ServeHTTP(w, r)
	}
}

// Serve handles requests on ln until ctx ends, closes ln, and waits up to
// closeTime for requests in progress. It also returns when ln is closed by
// others.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTime, IdleTimeout: headerTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if by, ok := callerOf(c); ok {
				ctx = context.WithValue(ctx, callerKey{}, by)
			}
			return ctx
		},
	}
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
	if errors.Is(err, net.ErrClosed) {
		_ = server.Shutdown(ctx) // closing the listener does not end requests in progress
	}
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("control socket: %w", err)
}

// Listen makes the socket at path, for its owner and the group gid, or for its
// owner alone if gid is -1. It replaces the socket of a process that has ended. A
// missing directory is made for the same users; a directory that others can write
// to is an error.
func Listen(path string, gid int) (net.Listener, error) {
	ln, err := listen(path, gid)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return ln, nil
}

// CheckPath returns the error with which Listen would refuse a path for a group, whatever this
// process may write, or nil. CheckPath changes nothing.
func CheckPath(path string, gid int) error {
	if err := checkPath(path, gid); err != nil {
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	return nil
}

func checkPath(path string, gid int) error {
	if len(draftOf(path)) > maxPath {
		return fmt.Errorf("the path has %d octets, want at most %d", len(path), maxPath-len(".new"))
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist): // it is made
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is a file, and has to be a directory", dir)
	case info.Mode().Perm()&0o022 != 0: // others could replace the socket
		return fmt.Errorf("%s can be written by others (mode %04o): choose another one, or chmod go-w %s", dir, info.Mode().Perm(), dir)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is something that is no socket")
	}
	return checkGroup(gid)
}

// checkGroup returns an error if this process cannot give a file to a group.
func checkGroup(gid int) error {
	if gid == -1 || os.Geteuid() == 0 || os.Getegid() == gid {
		return nil
	}
	groups, err := os.Getgroups()
	if err != nil || slices.Contains(groups, gid) {
		return err
	}
	user, group := strconv.Itoa(os.Geteuid()), strconv.Itoa(gid)
	if u, err := osuser.LookupId(user); err == nil {
		user = u.Username
	}
	if g, err := osuser.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return fmt.Errorf("the user %s, as which Postern runs, is not in the group %s: usermod -a -G %s %s", user, group, group, user)
}

// draftOf returns the name under which the socket gets its mode and group, before its own.
func draftOf(path string) string { return path + ".new" }

func listen(path string, gid int) (net.Listener, error) {
	if err := checkPath(path, gid); err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Dir(path), gid); err != nil {
		return nil, err
	}
	draft := draftOf(path)
	if conn, err := net.DialTimeout("unix", path, dialTimeout); err == nil {
		_ = conn.Close()
		return nil, ErrRunning
	}
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	config := net.ListenConfig{Control: bindPrivate}
	made, err := config.Listen(context.Background(), "unix", draft)
	if err != nil {
		return nil, err
	}
	ln := made.(*net.UnixListener)
	ln.SetUnlinkOnClose(false)
	l := &listener{UnixListener: ln, path: path}
	if err = setAccess(draft, gid, 0o600, 0o660); err == nil {
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

// makeDir makes the directory of a socket if it does not exist.
func makeDir(dir string, gid int) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return setAccess(dir, gid, 0o700, 0o750)
}

// setAccess sets the mode of path: own for its owner alone, or shared with a
// group.
func setAccess(path string, gid int, own, shared fs.FileMode) error {
	if gid == -1 {
		return os.Chmod(path, own)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("%w: the user that runs Postern must be in the group", err)
	}
	return os.Chmod(path, shared)
}

// A listener removes its socket when it is closed, but not that of its successor.
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

// Call sends a request to the Postern at path, and decodes the answer into out.
func Call(ctx context.Context, path, name string, in, out any) error {
	return CallEach(ctx, path, name, in, func(v json.RawMessage) error { return json.Unmarshal(v, out) })
}

// CallEach is Call for an answer of any number of values: it calls each for them
// until each returns an error.
func CallEach[Out any](ctx context.Context, path, name string, in any, each func(Out) error) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("request %s: %w", name, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://postern/"+name, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("request %s: %w", name, err)
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
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("request %s: the control socket is for Postern's own user, root and control.group: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("request %s: %w", name, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", name, errorText(response))
	}
	answer := &valueReader{r: response.Body}
	values := json.NewDecoder(answer)
	for {
		answer.left = maxBody
		var v Out
		if err = values.Decode(&v); err != nil {
			break
		}
		if err := each(v); err != nil {
			return err
		}
	}
	if text := response.Trailer.Get(trailer); text != "" {
		return fmt.Errorf("%s: %s", name, text)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("request %s: %w", name, err)
	}
	return nil
}

// A valueReader bounds the octets that are read of one value: whoever has the socket's
// directory may have put a socket there.
type valueReader struct {
	r    io.Reader
	left int
}

var errLongValue = fmt.Errorf("a value of the answer has more than %d octets", maxBody)

// Read implements io.Reader.
func (v *valueReader) Read(p []byte) (int, error) {
	if v.left <= 0 {
		return 0, errLongValue
	}
	n, err := v.r.Read(p)
	v.left -= n
	return n, err
}

// errorText returns the error in a response.
func errorText(response *http.Response) string {
	var f failure
	if json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&f) != nil || f.Error == "" {
		return response.Status
	}
	return f.Error
}
