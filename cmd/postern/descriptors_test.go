package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: a Postern that has no file descriptor left goes on, and serves
// again as soon as it has some.
func TestNoDescriptorsAreLeft(t *testing.T) {
	proxytest.Need(t, "prlimit")
	imap, _ := inMemory(t, "mail", "alice")
	p := launch(t, []string{`protocol: imap`}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", imap)}, "timeouts: {handshake: 3s}\n")
	out, err := exec.CommandContext(t.Context(), "prlimit", "--pid", strconv.Itoa(p.cmd.Process.Pid), "--nofile=40:40").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var crowd []net.Conn
	for i := range 60 { // the kernel takes them all, Postern has no descriptor for the last ones
		crowd = append(crowd, dialFrom(t, fmt.Sprintf("127.4.0.%d", 1+i), p.imap))
	}
	within(t, patience, "Postern has no descriptor left", func() bool {
		used, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
		return err == nil && len(used) >= 40
	})
	select {
	case <-p.done:
		t.Fatalf("Postern has ended: %v", p.err)
	default:
	}
	for _, c := range crowd {
		_ = c.Close()
	}
	talk(t, p.imap, p.ca, lines("S: \\* OK *", `C: a LOGIN alice "secret of alice"`, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
}
