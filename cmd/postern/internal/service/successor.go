package service

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"postern/proxy/listen"
)

// A successor is a process that replaces this one.
type successor struct {
	*Peer
	cmd   *exec.Cmd
	files []*os.File    // copies of the sockets, until the successor serves
	back  chan struct{} // closed when the successor has failed to serve
	ended chan struct{}

	maildrops chan message // messages to send, in order
	outcomes  chan []byte  // batches to send
}

// startSuccessor starts binary with the arguments of this process and copies of
// its sockets.
func startSuccessor(binary string, sockets *listen.Sockets) (*successor, error) {
	files, environment, err := sockets.Files()
	if err != nil {
		return nil, err
	}
	next := &successor{files: files, back: make(chan struct{}), ended: make(chan struct{})}
	pair, err := socketpair()
	if err != nil {
		next.closeFiles()
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "successor")
	defer func() { _ = theirs.Close() }()
	if next.Peer, err = newPeer(os.NewFile(uintptr(pair[0]), "successor")); err != nil {
		next.closeFiles()
		return nil, err
	}
	next.cmd = exec.Command(binary, os.Args[1:]...)
	next.cmd.Stdout, next.cmd.Stderr = os.Stdout, os.Stderr
	next.cmd.ExtraFiles = slices.Concat(files, []*os.File{theirs})
	// The main process sends WATCHDOG. An inherited WATCHDOG_PID would name this process.
	next.cmd.Env = append(os.Environ(), environment, fmt.Sprintf("%s=%d", predecessorFD, 3+len(files)), "WATCHDOG_PID=")
	if err := next.cmd.Start(); err != nil {
		_ = next.conn.Close()
		next.closeFiles()
		return nil, err
	}
	go func() {
		defer close(next.ended)
		_ = next.cmd.Wait() // the successor logs its own error
	}()
	next.maildrops = make(chan message, 1<<14)
	next.outcomes = make(chan []byte, 1<<12) // more than all batches of a full Memory
	go next.sendQueued()
	return next, nil
}

// socketpair returns a pair of connected sockets that are closed on exec. Not all
// systems have SOCK_CLOEXEC.
func socketpair() (pair [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if pair, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0); err == nil {
		syscall.CloseOnExec(pair[0])
		syscall.CloseOnExec(pair[1])
	}
	return pair, err
}

// enqueue queues a message about a maildrop, without waiting. A successor that does
// not read loses messages: it takes these maildrops for locked until this process
// ends.
func (n *successor) enqueue(w message) {
	select {
	case n.maildrops <- w:
	default:
	}
}

// enqueueOutcomes queues a batch of outcomes, without waiting. A successor that does not
// read loses batches.
func (n *successor) enqueueOutcomes(batch []byte) {
	select {
	case n.outcomes <- batch:
	default:
	}
}

// sendQueued sends what enqueue and enqueueOutcomes have queued until the successor ends.
func (n *successor) sendQueued() {
	for {
		select {
		case w := <-n.maildrops:
			if n.send(w) != nil {
				return
			}
		case batch := <-n.outcomes:
			if n.send(message{Outcomes: batch}) != nil {
				return
			}
		case <-n.ended:
			return
		}
	}
}

func (n *successor) closeFiles() {
	for _, f := range n.files {
		_ = f.Close()
	}
}

// abort ends a successor that has failed to serve.
func (n *successor) abort() {
	_ = n.conn.Close()
	_ = n.cmd.Process.Kill()
	<-n.ended
}

// ownBinary returns the path by which this process was started. The file at that path may
// have been replaced since.
func ownBinary() string {
	path, err := exec.LookPath(os.Args[0])
	if err == nil && !strings.HasPrefix(path, "/") {
		path, err = os.Executable()
	}
	if err != nil {
		return os.Args[0]
	}
	return path
}
