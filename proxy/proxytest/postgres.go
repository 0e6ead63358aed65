package proxytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Postgres is a real PostgreSQL on a free port of 127.0.0.1, with TLS, and on a unix
// socket. It has the database postern, which belongs to the user postern.
type Postgres struct {
	// Addr is where it listens: host:port.
	Addr string
	// Socket is the directory of its unix socket.
	Socket string
	// CA is a file with the certificate of the authority that issued that of the server.
	CA string
	// Password is that of the user postern, and PasswordFile a file with it.
	Password, PasswordFile string

	bin, dir string
	program  program
}

// StartPostgres starts a PostgreSQL with further lines of postgresql.conf, which need root:
// it runs as the user postgres. The end of the test stops it.
func StartPostgres(t testing.TB, more ...string) *Postgres {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		skipOrFail(t, "postgresql is not installed")
	}
	needRoot(t)
	p := &Postgres{bin: found[len(found)-1], dir: shortDir(t), Password: "pg-correct-horse"}
	uid, gid := lookupUser(t, "postgres")
	data := filepath.Join(p.dir, "data")
	mkdir(t, data, uid, gid, 0o700)
	port := freePort(t)
	p.Addr, p.Socket = address(port), p.dir
	mkdir(t, p.dir, uid, gid, 0o711)
	p.as(t, filepath.Join(p.bin, "initdb"), "-D", data, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
	cert, key, ca := CertFiles(t)
	copyFile(t, cert, filepath.Join(data, "server.crt"), uid, gid)
	copyFile(t, key, filepath.Join(data, "server.key"), uid, gid)
	p.CA = ca
	p.PasswordFile = filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(p.PasswordFile, []byte(p.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The postmaster's own user is trusted on the socket: for psql. postern needs its password.
	writeFile(t, filepath.Join(data, "pg_hba.conf"), []byte("local all postgres trust\nlocal all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n"+
		"hostssl replication postgres 127.0.0.1/32 trust\n"))
	lines := append([]string{
		"listen_addresses = '127.0.0.1'", "port = " + strconv.Itoa(port), "unix_socket_directories = '" + p.dir + "'", "ssl = on",
		"shared_buffers = 16MB", "max_connections = 60", "password_encryption = 'scram-sha-256'",
	}, more...)
	conf, err := os.ReadFile(filepath.Clean(filepath.Join(data, "postgresql.conf")))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(data, "postgresql.conf"), append(conf, strings.Join(lines, "\n")+"\n"...))
	p.program = program{
		args: []string{"setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=INT", filepath.Join(p.bin, "postgres"), "-D", data},
		log:  filepath.Join(p.dir, "log"), ready: p.Addr,
	}
	p.program.output = p.program.log
	p.program.run(t)
	t.Cleanup(func() { p.Stop(t) })
	p.await(t)
	p.SQL(t, "postgres", fmt.Sprintf("CREATE USER postern PASSWORD '%s'", p.Password))
	p.SQL(t, "postgres", "CREATE DATABASE postern OWNER postern")
	return p
}

// URL returns the URL of the database postern, without the password.
func (p *Postgres) URL() string { return "postgres://postern@" + p.Addr + "/postern" }

// as runs a program as the user postgres and returns its output.
func (p *Postgres) as(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("setpriv", append([]string{"--reuid=postgres", "--regid=postgres", "--init-groups"}, args...)...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// SQL runs a statement as the superuser in a database, and returns what psql prints.
func (p *Postgres) SQL(t testing.TB, database, statement string) string {
	t.Helper()
	_, port, _ := strings.Cut(p.Addr, ":")
	return strings.TrimSpace(p.as(t, filepath.Join(p.bin, "psql"), "-h", p.Socket, "-p", port, "-U", "postgres", "-d", database, "-AtqX", "-v", "ON_ERROR_STOP=1", "-c", statement))
}

// Kill ends all processes of PostgreSQL at once, as a crash does.
func (p *Postgres) Kill(t testing.TB) {
	t.Helper()
	_ = syscall.Kill(p.program.cmd.Process.Pid, syscall.SIGSTOP) // no more children
	pids := p.pids()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.program.done
	for _, pid := range pids[1:] { // PostgreSQL does not start beside one that is left
		for end := time.Now().Add(stopTimeout); syscall.Kill(pid, 0) == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(state), ") Z ") {
				break // nobody reaps it here
			}
		}
	}
	p.program.stop(t)
}

// Freeze stops all processes of PostgreSQL, which do not answer any more, until Thaw.
func (p *Postgres) Freeze(t testing.TB) { t.Helper(); p.signal(t, syscall.SIGSTOP) }

// Thaw ends Freeze.
func (p *Postgres) Thaw(t testing.TB) { t.Helper(); p.signal(t, syscall.SIGCONT) }

// signal sends a signal to all processes of PostgreSQL.
func (p *Postgres) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	for _, pid := range p.pids() {
		_ = syscall.Kill(pid, s)
	}
}

// pids returns the processes of PostgreSQL, the first one first.
func (p *Postgres) pids() []int {
	first := p.program.cmd.Process.Pid
	pids := []int{first}
	if children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", first)); err == nil {
		for one := range strings.FieldsSeq(string(children)) {
			pid, _ := strconv.Atoi(one)
			pids = append(pids, pid)
		}
	}
	return pids
}

// Stop stops PostgreSQL, whoever is connected. To stop what has ended is no error.
func (p *Postgres) Stop(t testing.TB) {
	t.Helper()
	if p.program.done == nil {
		return
	}
	p.signal(t, syscall.SIGCONT)
	_ = p.program.cmd.Process.Signal(syscall.SIGINT) // SIGTERM would wait for clients
	select {
	case <-p.program.done:
	case <-t.Context().Done():
	}
	p.program.stop(t)
}

// Start starts a stopped PostgreSQL again on the same port.
func (p *Postgres) Start(t testing.TB) {
	t.Helper()
	p.program.start(t)
	p.await(t)
}

// await waits until PostgreSQL has recovered and answers.
func (p *Postgres) await(t testing.TB) {
	t.Helper()
	_, port, _ := strings.Cut(p.Addr, ":")
	for end := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := exec.Command(filepath.Join(p.bin, "pg_isready"), "-q", "-h", p.Socket, "-p", port).Run()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("PostgreSQL does not answer: %v\n%s", err, tail(p.program.log))
		}
	}
}
