package proxytest

import (
	"bytes"
	"cmp"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// serversDir is where .ci/packages unpacks servers, unless $POSTERN_SERVERS
// names another folder.
const serversDir = "/var/cache/postern-test"

// An unpacked server could not be installed beside Dovecot and Postfix. It runs
// from the folder of its packages, in a mount namespace of its own where paths
// that it insists on are folders of the test. What it says to syslog becomes
// its log.
type unpacked struct {
	root string // its packages are unpacked here
	dir  string // the folder of the test
	log  string
}

// unpack is [Need] and [shortDir] for an unpacked server.
func unpack(t testing.TB, name string) unpacked {
	t.Helper()
	needRoot(t)
	Need(t, "unshare", "mount")
	root := filepath.Join(cmp.Or(os.Getenv("POSTERN_SERVERS"), serversDir), name)
	if _, err := os.Stat(filepath.Join(root, "packages")); err != nil {
		skipOrFail(t, "%s is not unpacked in %s: .ci/packages does it", name, root)
	}
	dir := shortDir(t)
	u := unpacked{root: root, dir: dir, log: filepath.Join(dir, "log")}
	startSyslog(t, filepath.Join(dir, "syslog"), u.log)
	mkdir(t, filepath.Join(dir, "dev"), 0, 0, 0o755)
	return u
}

// path returns the path of one of the server's own files.
func (u unpacked) path(name string) string { return filepath.Join(u.root, name) }

// env lets the loader find the libraries that are unpacked with the server.
func (u unpacked) env() []string {
	dirs := []string{u.path("usr/lib")}
	for _, pattern := range []string{"usr/lib/*-linux-gnu*", "lib/*-linux-gnu*"} {
		found, _ := filepath.Glob(u.path(pattern))
		dirs = append(dirs, found...)
	}
	return []string{"LD_LIBRARY_PATH=" + strings.Join(dirs, ":")}
}

// command returns the arguments that run args with each first path of binds in
// the place of its second. The process id is that of the server: nothing forks.
func (u unpacked) command(binds [][2]string, args ...string) []string {
	// A /dev with these devices and our socket for syslog.
	script := `
		cd "$0"
		mount -t tmpfs -o mode=755 dev dev
		ln -s "$0/syslog" dev/log
		for device in null zero full random urandom; do
			: >dev/$device
			mount --bind /dev/$device dev/$device
		done
		mount --rbind dev /dev
		while [ "$1" != -- ]; do
			mount --bind "$1" "$2"
			shift 2
		done
		shift
		exec "$@"
	`
	command := []string{"unshare", "--mount", "sh", "-ec", script, u.dir}
	for _, bind := range binds {
		command = append(command, bind[:]...)
	}
	return append(append(command, "--"), args...)
}

// startSyslog writes what comes to a socket into a file, a line a datagram,
// until the end of the test.
func startSyslog(t testing.TB, socket, path string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o666); err != nil { // the servers are not root when they log
		t.Fatal(err)
	}
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 8<<10)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			_, _ = log.Write(append(bytes.TrimRight(b[:n], "\x00\n"), '\n'))
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		wg.Wait()
		_ = log.Close()
	})
}
