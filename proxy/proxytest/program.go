package proxytest

import (
	"bytes"
	"embed"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 20 * time.Second
	maxLogShown  = 32 << 10
)

//go:embed conf
var conf embed.FS

// Need skips the test if one of the programs is not installed, and names it. With
// POSTERN_ALL=1, as make test sets it, Need fails the test instead. A program is
// a name in $PATH or a path.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			skipOrFail(t, "%s is not installed", program)
		}
	}
}

// needRoot is Need for programs that only root can start.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		skipOrFail(t, "needs root: the mail servers change their user")
	}
}

func skipOrFail(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("POSTERN_ALL") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// shortDir makes a folder for a server: other users may pass through it, and a
// unix socket in it has a path below 108 bytes. The end of the test removes it.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// freePort returns a port of 127.0.0.1 that nobody listens on. It is outside
// the range that the kernel takes client ports from, so that it also stays free
// while a server is restarted.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func address(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// FreeAddress returns an address of 127.0.0.1 on which nobody listens, of a port that
// the kernel gives to no client.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return address(freePort(t))
}

// lookupUser returns the numeric ids of a system user.
func lookupUser(t testing.TB, name string) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ = strconv.Atoi(u.Uid)
	gid, _ = strconv.Atoi(u.Gid)
	return uid, gid
}

// lookupGroup returns the numeric id of a system group.
func lookupGroup(t testing.TB, name string) int {
	t.Helper()
	g, err := user.LookupGroup(name)
	if err != nil {
		t.Fatal(err)
	}
	gid, _ := strconv.Atoi(g.Gid)
	return gid
}

// mkdir makes a folder with this owner and this mode, whatever the umask.
func mkdir(t testing.TB, path string, uid, gid int, mode uint32) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Chmod(path, mode); err != nil { // os.Chmod knows no set-gid in a number
		t.Fatal(err)
	}
}

// writeConf fills in a template of the folder conf.
func writeConf(t testing.TB, path, name string, data any) {
	t.Helper()
	tmpl, err := template.New(name).Option("missingkey=error").ParseFS(conf, "conf/"+name)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, data); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, b.Bytes())
}

// writeFile writes a file that every user may read, whatever the umask.
func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

// copyFile copies a file so that only one user can read it.
func copyFile(t testing.TB, from, to string, uid, gid int) {
	t.Helper()
	content, err := os.ReadFile(filepath.Clean(from))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(to, uid, gid); err != nil {
		t.Fatal(err)
	}
}

// A program is a server in the foreground, with a log file of its own.
type program struct {
	args     []string
	env      []string // beside that of the test
	log      string
	output   string // its standard output and error; empty: log + ".output"
	ready    string // the address to connect to
	greeting string // what it says first there; empty: to take the connection is enough
	cmd      *exec.Cmd
	done     chan struct{}
	err      error // of Wait, once done is closed
}

// run starts the program and stops it at the end of the test. A failed test
// shows its log.
func (p *program) run(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		p.stop(t)
		if !t.Failed() {
			return
		}
		t.Logf("%s:\n%s", p.log, tail(p.log))
		if p.output != p.log {
			t.Logf("%s:\n%s", p.output, tail(p.output))
		}
	})
	p.start(t)
}

// start starts the program and waits until it greets.
func (p *program) start(t testing.TB) {
	t.Helper()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true,            // Postfix signals its whole process group
		Pdeathsig: syscall.SIGTERM, // a test that is killed runs no cleanup
	}
	if p.output == "" {
		p.output = p.log + ".output"
	}
	// A file and no pipe: Wait would wait for children that keep a pipe open.
	output, err := os.OpenFile(p.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }()
	p.cmd.Stdout, p.cmd.Stderr = output, output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := greets(p.ready, p.greeting)
		if err == nil {
			return
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended at once: %v\n%s", p.args[0], p.err, tail(output.Name()))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not greet: %v", p.args[0], err)
		}
	}
}

// stop ends the program by its process id and waits until it is gone. What it
// has started goes with it: Dovecot's login processes outlive their master as
// long as they have clients. To stop what has ended is no error.
func (p *program) stop(t testing.TB) {
	t.Helper()
	if p.done == nil {
		return
	}
	defer func() { p.done = nil }()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
		t.Errorf("%s did not end within %v of SIGTERM", p.args[0], stopTimeout)
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	for deadline := time.Now().Add(stopTimeout); greets(p.ready, p.greeting) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s is gone, but somebody still answers at %s", p.args[0], p.ready)
			return
		}
	}
}

func greets(addr, greeting string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if greeting == "" {
		return nil
	}
	_ = conn.SetDeadline(time.Now().Add(stepTimeout))
	line, err := readLine(conn)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(line), greeting) {
		return fmt.Errorf("greeting is %q", line)
	}
	return nil
}

// tail returns the end of a log.
func tail(path string) string {
	log, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-maxLogShown):])
}
