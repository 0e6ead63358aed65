package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// A testRequest is the argument of count.
type testRequest struct{ A, B int }

// count answers with the numbers below A, and fails at B.
func count(_ context.Context, q testRequest, each func(int) error) error {
	for i := range q.A {
		if i == q.B {
			return errors.New("disk on fire\nand no water")
		}
		if err := each(i); err != nil {
			return err
		}
	}
	return nil
}

// LogValue implements slog.LogValuer.
func (q testRequest) LogValue() slog.Value { return Arguments("a", fmt.Sprint(q.A), "empty", "") }

// Criterion: the log says of each request at the control socket which user sent it, its argument and its result.
func TestTheLogSaysWhoSentARequest(t *testing.T) {
	path := filepath.Join(privateDir(t), "control")
	ln, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := Server{Log: slog.New(slog.NewTextHandler(&log, nil)), Routine: []string{"often"}}
	Handle(&s, "sum", func(_ context.Context, q testRequest) (int, error) { return q.A + q.B, nil })
	Handle(&s, "often", func(_ context.Context, _ testRequest) (int, error) { return 0, nil })
	Handle(&s, "fail", func(_ context.Context, _ string) (string, error) { return "", errors.New("disk on fire") })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	var n int
	for name, in := range map[string]any{"sum": testRequest{3, 4}, "often": testRequest{}, "fail": "not to be logged"} {
		if err := Call(t.Context(), path, name, in, &n); (err != nil) != (name == "fail") {
			t.Error(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	who := fmt.Sprintf("uid=%d", os.Getuid())
	if u, err := user.Current(); err == nil {
		who += " user=" + u.Username
	}
	for _, want := range []string{
		`level=INFO msg="control request" request=sum ` + who + " a=3 result=7\n",
		`level=WARN msg="control request" request=fail ` + who + " err=\"disk on fire\"\n",
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has\n%swant %s", log.String(), want)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 2 || strings.Contains(got, "not to be logged") {
		t.Errorf("the log has\n%s", got)
	}
}

func TestAnAnswerWithoutEnd(t *testing.T) {
	path := filepath.Join(privateDir(t), "control")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.WriteString(w, `"`)
		for block := strings.Repeat("x", 1<<20); err == nil; {
			_, err = io.WriteString(w, block)
		}
	})}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var text string
	if err := Call(ctx, path, "sum", nil, &text); !errors.Is(err, errLongValue) {
		t.Errorf("got %v", err)
	}
}

// startServer starts a Server on a socket.
func startServer(t *testing.T) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "control")
	ln, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	return path, serveOn(t, ln)
}

// ownDir returns a directory that others cannot write to, whatever the umask.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serveOn serves requests on ln.
func serveOn(t *testing.T, ln net.Listener) (stop func()) {
	t.Helper()
	var s Server
	Handle(&s, "sum", func(_ context.Context, q testRequest) (int, error) { return q.A + q.B, nil })
	Handle(&s, "fail", func(context.Context, testRequest) (int, error) { return 0, errors.New("disk on fire") })
	HandleEach(&s, "count", count)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// Criterion: the control socket is for its owner alone, and ends with its Postern.
func TestRequestsAreAnswered(t *testing.T) {
	path, stop := startServer(t)
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v, want mode 0600", info.Mode(), err)
	}
	var sum int
	if err := Call(t.Context(), path, "sum", testRequest{2, 3}, &sum); err != nil || sum != 5 {
		t.Errorf("sum = %d, %v, want 5", sum, err)
	}
	for _, test := range []struct {
		name, want string
		in         any
	}{
		{"fail", "fail: disk on fire", testRequest{}},
		{"none", `knows no "none"`, testRequest{}},
		{"sum", "unknown field", map[string]int{"C": 1}},
		{"sum", "cannot unmarshal", "x"},
	} {
		if err := Call(t.Context(), path, test.name, test.in, &sum); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s of %v gives %v, want %s", test.name, test.in, err, test.want)
		}
	}
	if _, err := Listen(path, -1); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one gives %v", err)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := Call(t.Context(), path, "sum", testRequest{}, &sum); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a Postern: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(privateDir(t), "control")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	_ = old.Close()
	if err := Call(t.Context(), path, "x", nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead socket gives %v", err)
	}
	first, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(path) // its successor has come
	second, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	_ = first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first one has taken the second one's socket away: %v", err)
	}
}

func TestPathsThatAreNoSocket(t *testing.T) {
	dir := privateDir(t)
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o770); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(dir, strings.Repeat("x", 120)), filepath.Join(shared, "control"), filepath.Join(file, "control")} {
		if _, err := Listen(path, -1); err == nil {
			t.Errorf("%s is taken for a socket", path)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("the file is gone")
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	ln, err := net.Listen("unix", path) // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Call(ctx, path, "x", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestAnswersOfManyValues(t *testing.T) {
	path, _ := startServer(t)
	enough := errors.New("enough")
	for _, test := range []struct {
		q    testRequest
		most int // values that are wanted
		got  int
		want string
	}{
		{testRequest{A: 100_000, B: -1}, 1 << 20, 100_000, "<nil>"},
		{testRequest{A: 0}, 1, 0, "<nil>"},
		{testRequest{A: 10, B: 7}, 10, 7, "count: disk on fire; and no water"},
		{testRequest{A: 10, B: 0}, 10, 0, "count: disk on fire\nand no water"},
		{testRequest{A: 100_000, B: -1}, 5, 5, "enough"},
	} {
		n := 0
		err := CallEach(t.Context(), path, "count", test.q, func(i int) error {
			if n == test.most {
				return enough
			}
			if i != n {
				t.Fatalf("got %d, want %d", i, n)
			}
			n++
			return nil
		})
		if n != test.got || fmt.Sprint(err) != test.want {
			t.Errorf("%+v gives %d values and %v, want %d and %s", test.q, n, err, test.got, test.want)
		}
	}
}

// An answer that ends because its Postern ends is an error.
func TestAnswerThatIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 4<<10))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n")
		_ = conn.Close()
	}()
	n := 0
	if err := CallEach(t.Context(), path, "count", testRequest{}, func(int) error { n++; return nil }); !errors.Is(err, io.ErrUnexpectedEOF) || n != 1 {
		t.Errorf("%d values and %v, want 1 and %v", n, err, io.ErrUnexpectedEOF)
	}
}

// Criterion: the control socket can be used by its owner, root and the members of the configured group, and by nobody else.
func TestSocketOfAGroup(t *testing.T) {
	proxytest.Need(t, "curl")
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root: it asks as another user")
	}
	const nobody, members = 65534, 54321
	dir, err := os.MkdirTemp("", "pt") // others can pass through its parents
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	ask := func(path string, groups ...uint32) bool {
		cmd := exec.Command("curl", "--silent", "--fail", "--max-time", "10", "--unix-socket", path, "--data", `{"A":2,"B":3}`, "http://postern/sum")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: groups}}
		out, err := cmd.Output()
		return err == nil && string(out) == "5\n"
	}
	for name, test := range map[string]struct {
		gid             int
		mode            os.FileMode
		member, another bool
	}{
		"none":  {-1, 0o600, false, false},
		"group": {members, 0o660, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name, "control.sock")
			ln, err := Listen(path, test.gid)
			if err != nil {
				t.Fatal(err)
			}
			serveOn(t, ln)
			if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|test.mode {
				t.Errorf("the socket is %v, %v, want mode %o", info.Mode(), err, test.mode)
			}
			if got := ask(path, members); got != test.member {
				t.Errorf("a member of the group may ask: %t, want %t", got, test.member)
			}
			if got := ask(path); got != test.another {
				t.Errorf("another one may ask: %t, want %t", got, test.another)
			}
		})
	}
}

// So an upgrade is answered by the process that it has replaced.
func TestServeEndsWithTheLastAnswer(t *testing.T) {
	path := filepath.Join(privateDir(t), "control")
	ln, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	requests, proceed := make(chan struct{}), make(chan struct{})
	var s Server
	Handle(&s, "slow", func(context.Context, struct{}) (int, error) {
		close(requests)
		<-proceed
		return 7, nil
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served, answered := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	go func() {
		var got int
		err := Call(t.Context(), path, "slow", struct{}{}, &got)
		if err == nil && got != 7 {
			err = fmt.Errorf("got %d", got)
		}
		answered <- err
	}()
	<-requests
	_ = ln.Close()
	select {
	case err := <-served:
		t.Fatalf("Serve has ended before the answer: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	stop()
	close(proceed)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestRoutineIsNotLogged(t *testing.T) {
	var log strings.Builder
	s := Server{Log: slog.New(slog.NewTextHandler(&log, nil)), Routine: []string{"often"}}
	for _, name := range []string{"often", "once"} {
		Handle(&s, name, func(context.Context, struct{}) (int, error) { return 1, nil })
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("POST", "/"+name, strings.NewReader("{}")))
		if got := strings.TrimSpace(w.Body.String()); got != "1" {
			t.Errorf("%s is answered %q", name, got)
		}
	}
	if got := log.String(); strings.Contains(got, "often") || !strings.Contains(got, "request=once") {
		t.Errorf("the log has %q", got)
	}
}
