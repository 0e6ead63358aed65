package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/admin"
)

// An upgrade replaces the process without a client that notices. The old one
// starts the new one with copies of its listening sockets, and the two talk over
// a pair of sockets:
//
//	new -> old   Built     the configuration is good
//	old -> new   Yours     nobody accepts now, the state is closed: take it
//	new -> old   Serving   accepting; the sessions that are left are yours
//	old -> new   Take      a login that was under way has opened a maildrop
//	old -> new   Free      a session has ended its maildrop
//	new -> old   Evict     somebody takes a maildrop over
//
// An old one that has a predecessor of its own passes Take, Free and Evict on, and
// ends after it: the end of a process is the end of all locks that came from it.
//
// Until Serving the old one can take everything back. Then its sessions go on,
// with their memory in the new one's hands, until they end or timeouts.upgrade.

const (
	// predecessorFD is the variable with the descriptor of the pair.
	predecessorFD = "POSTERN_PREDECESSOR_FD"
	// buildTime and serveTime are what a successor gets for its steps.
	buildTime = time.Minute
	serveTime = time.Minute
)

func upgradeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the running Postern by the binary that is installed now",
		Long: `Replace the running Postern by the binary that is installed now, as SIGUSR2 does.
The new process reads the configuration and takes over the listening sockets
and the state; no connection is refused. Sessions that are open stay with the
old process, for as long as timeouts.upgrade allows. After a mistake nothing
has changed.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return askForChange(cmd.Context(), *path, "upgrade", "SIGUSR2")
	}
	return cmd
}

// A word is what the two processes say.
type word struct {
	Built    bool           `json:",omitempty"`
	Control  string         `json:",omitempty"` // with Built: the control socket
	Mistakes configs.Errors `json:",omitempty"`
	Error    string         `json:",omitempty"`
	Yours    *legacy        `json:",omitempty"`
	Serving  bool           `json:",omitempty"`
	Take     *maildropName  `json:",omitempty"`
	Free     *maildropName  `json:",omitempty"`
	Evict    *maildropName  `json:",omitempty"`
}

// A legacy is what goes from one memory to another.
type legacy struct {
	Locks map[string][]string // maildrops that are open, by backend
	Guard []byte              // nil: it is in the state
}

type maildropName struct{ Backend, Maildrop string }

// A relative is the other process.
type relative struct {
	conn net.Conn
	in   *json.Decoder

	mu   sync.Mutex // of writing
	gone atomic.Bool
}

func newRelative(f *os.File) (*relative, error) {
	conn, err := net.FileConn(f)
	_ = f.Close() // conn has its own
	if err != nil {
		return nil, err
	}
	return &relative{conn: conn, in: json.NewDecoder(conn)}, nil
}

func (r *relative) say(w word) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.conn.SetWriteDeadline(time.Now().Add(serveTime)); err != nil { // one that has stopped takes nothing
		return err
	}
	return json.NewEncoder(r.conn).Encode(w)
}

// hear returns the next word, which has to come in time.
func (r *relative) hear(patience time.Duration) (w word, err error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return w, err
	}
	err = r.in.Decode(&w)
	_ = r.conn.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, io.EOF):
		return w, errors.New("the other process has ended: its last lines in the log say why")
	case err != nil:
		return w, fmt.Errorf("the other process: %w", err)
	case w.Mistakes != nil:
		return w, w.Mistakes
	case w.Error != "":
		return w, errors.New(w.Error)
	}
	return w, nil
}

// expect hears words until one is what is meant. Those about maildrops may come
// before it, and go to meanwhile.
func (r *relative) expect(patience time.Duration, meant func(word) bool, meanwhile func(word)) (w word, err error) {
	for {
		if w, err = r.hear(patience); err != nil || meant(w) {
			return w, err
		}
		if w.Take == nil && w.Free == nil && w.Evict == nil {
			return w, errors.New("the other process says what was not asked")
		}
		meanwhile(w)
	}
}

// listen hands each word to f until the other process is gone.
func (r *relative) listen(f func(word)) {
	for {
		var w word
		if err := r.in.Decode(&w); err != nil {
			return
		}
		f(w)
	}
}

// predecessor returns the process that this one is to replace, or nil.
func predecessor() (*relative, error) {
	fd, err := strconv.Atoi(os.Getenv(predecessorFD))
	if err != nil {
		return nil, nil
	}
	if err := os.Unsetenv(predecessorFD); err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return newRelative(os.NewFile(uintptr(fd), "predecessor"))
}

// A successor is a process that replaces this one.
type successor struct {
	*relative
	cmd   *exec.Cmd
	files []*os.File    // copies of the sockets, until it serves
	back  chan struct{} // closed when it has not come to serve
	ended chan struct{}

	maildrops chan word // to be said, in their order
}

// launch starts a successor.
func (s *site) launch() (*successor, error) {
	files, environment, err := s.sockets.Files()
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
	if next.relative, err = newRelative(os.NewFile(uintptr(pair[0]), "successor")); err != nil {
		next.closeFiles()
		return nil, err
	}
	next.cmd = exec.Command(s.binary, os.Args[1:]...)
	next.cmd.Stdout, next.cmd.Stderr = os.Stdout, os.Stderr
	next.cmd.ExtraFiles = slices.Concat(files, []*os.File{theirs})
	// The watchdog is for whoever has the main process; WATCHDOG_PID names us.
	next.cmd.Env = append(os.Environ(), environment, fmt.Sprintf("%s=%d", predecessorFD, 3+len(files)), "WATCHDOG_PID=")
	if err := next.cmd.Start(); err != nil {
		_ = next.conn.Close()
		next.closeFiles()
		return nil, err
	}
	go func() {
		defer close(next.ended)
		_ = next.cmd.Wait() // how it ended is in its own log
	}()
	next.maildrops = make(chan word, 1<<14)
	go next.sayMaildrops()
	return next, nil
}

// socketpair is one that no child gets unasked. Not all systems can make it so.
func socketpair() (pair [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if pair, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0); err == nil {
		syscall.CloseOnExec(pair[0])
		syscall.CloseOnExec(pair[1])
	}
	return pair, err
}

// tell says a word about a maildrop, without waiting. One that does not listen
// misses some: it believes them locked until this process ends.
func (n *successor) tell(w word) {
	select {
	case n.maildrops <- w:
	default:
	}
}

// sayMaildrops says what tell is given until the successor ends.
func (n *successor) sayMaildrops() {
	for {
		select {
		case w := <-n.maildrops:
			if n.say(w) != nil {
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

// giveUp ends a successor that has not come to serve.
func (n *successor) giveUp() {
	_ = n.conn.Close()
	_ = n.cmd.Process.Kill()
	<-n.ended
}

// upgrade starts a successor and gives it everything but the sessions. After an
// error this process serves as before.
func (s *site) upgrade(background context.Context) error {
	s.log.Info("upgrade begins", "binary", s.binary)
	defer s.stayAlive()()
	err := errors.Join(upgradable(os.Getpid()), s.memory.broken()) // a file that is broken cannot be given away
	var next *successor
	if err == nil {
		next, err = s.launch()
	}
	if err == nil {
		err = s.handOver(background, next)
	}
	if err != nil {
		s.log.Error("not upgraded: this process goes on", "err", err)
		return err
	}
	s.log.Info("upgraded: the sessions that are left are this process's", "successor", next.cmd.Process.Pid)
	s.successor = next
	return nil
}

// upgradable is an error for the first process of a container: with it all others
// end, a successor too.
func upgradable(pid int) error {
	if pid != 1 {
		return nil
	}
	return errors.New("the container ends with this process: start another container in place of it")
}

func (s *site) handOver(background context.Context, next *successor) error {
	defer next.closeFiles()
	w, err := next.expect(buildTime, func(w word) bool { return w.Built }, s.heed)
	if err == nil {
		err = s.reachable(w.Control)
	}
	if err == nil && !s.memory.asked.TryLock() {
		err = errAsked // it would be in the way for as long as it likes
	}
	if err != nil {
		next.giveUp()
		return err
	}
	defer s.memory.asked.Unlock()
	left, err := s.letGo(next)
	if err == nil {
		err = next.say(word{Yours: left})
	}
	if err == nil {
		_, err = next.expect(serveTime, func(w word) bool { return w.Serving }, s.heed)
	}
	if err == nil {
		go next.listen(s.heed)
		return nil
	}
	close(next.back)
	next.giveUp()
	if s.fallen = s.takeBack(background, next); s.fallen != nil {
		s.fallen = fmt.Errorf("serve again after an upgrade that failed: %w", s.fallen)
	}
	return errors.Join(err, s.fallen)
}

var errAsked = errors.New("a command is reading the state: upgrade again when it has ended")

// reachable is an error if sessions that stay would lose what they are to
// remember: they ask the successor at control, its control socket.
func (s *site) reachable(control string) error {
	here := s.house.Load().cfg
	switch {
	case s.memory.used == nil || control == here.Control.Socket && control != "":
		return nil
	case here.Control.Socket == "":
		return configs.Errors{here.Errorf("control.socket", "it is off, and without it an upgrade would lose what open sessions remember: restart Postern, or set it first")}
	}
	return configs.Errors{here.Errorf("control.socket", "an upgrade can not change this, nor its default by state.path: restart Postern")}
}

// letGo ends accepting, and all that has to be one process's.
func (s *site) letGo(next *successor) (*legacy, error) {
	if err := s.server.Apply(nil); err != nil {
		return nil, err
	}
	for key, w := range s.webs {
		_ = w.server.Close()
		delete(s.webs, key)
	}
	if s.asking != nil {
		_ = s.asking.Close() // who has asked for the upgrade still gets the answer
	}
	s.endKeeping()
	left := &legacy{Locks: make(map[string][]string)}
	if s.memory.guard == nil {
		left.Guard = s.guard.Snapshot()
	}
	for name, shared := range s.house.Load().pop3.shared {
		left.Locks[name] = shared.locks.HandOver(func(maildrop string, open bool) {
			w := word{Free: &maildropName{name, maildrop}}
			if open {
				w = word{Take: w.Free}
			}
			next.tell(w)
		})
	}
	socket := s.house.Load().cfg.Control.Socket
	return left, s.memory.handOver(func(name string) bridge.Book { return newRemoteBook(socket, name, next.back) })
}

// takeBack serves again, after a successor that could not.
func (s *site) takeBack(background context.Context, next *successor) error {
	h := s.house.Load()
	for _, shared := range h.pop3.shared {
		shared.locks.HandOver(nil)
	}
	if err := s.sockets.Give(next.files); err != nil {
		return err
	}
	if s.memory.used != nil {
		if err := s.memory.takeBack(background, h.cfg); err != nil {
			return err
		}
	}
	if err := s.openControl(h); err != nil {
		return err
	}
	if err := s.apply(background, h); err != nil {
		return err
	}
	s.keep(background)
	return nil
}

// heed ends the session that a successor wants ended.
func (s *site) heed(w word) {
	if w.Evict == nil {
		return
	}
	if shared, ok := s.house.Load().pop3.shared[w.Evict.Backend]; ok {
		shared.locks.Evict(w.Evict.Maildrop)
	}
}

// inherit waits for what a predecessor leaves to h, which is built.
func (s *site) inherit(h *house, from *relative) error {
	if err := from.say(word{Built: true, Control: h.cfg.Control.Socket}); err != nil {
		return err
	}
	var early []word
	w, err := from.expect(serveTime, func(w word) bool { return w.Yours != nil }, func(w word) { early = append(early, w) })
	if err != nil {
		return err
	}
	s.predecessor, s.inherited, s.before = from, w.Yours.Guard, make(chan struct{})
	changes := make(map[string]func(string, bool))
	var ends []func()
	for name, maildrops := range w.Yours.Locks {
		change, end := h.maildropsOf(name).locks.Hold(maildrops, func(maildrop string) {
			_ = from.say(word{Evict: &maildropName{name, maildrop}})
		})
		changes[name], ends = change, append(ends, end)
	}
	heed := func(w word) {
		if m := cmp.Or(w.Take, w.Free); m != nil && changes[m.Backend] != nil {
			changes[m.Backend](m.Maildrop, w.Take != nil)
		}
	}
	for _, w := range early {
		heed(w)
	}
	go func() {
		from.listen(heed)
		from.gone.Store(true)
		for _, end := range ends { // the predecessor has ended, and its sessions with it
			end()
		}
		close(s.before)
	}()
	return nil
}

// explain tells a predecessor why this process cannot replace it.
func (r *relative) explain(err error) {
	w := word{Error: err.Error()}
	if mistakes, ok := errors.AsType[configs.Errors](err); ok {
		w = word{Mistakes: mistakes}
	}
	_ = r.say(w)
}

// askGet, askSwap and askScan are what sessions of a predecessor ask.
const (
	askGet  = "state/get"
	askSwap = "state/swap"
	askScan = "state/scan"
)

// askTime is how long a successor is asked.
const askTime = time.Minute

// askAgain is the pause before the state is asked again, askTimes how often
// that is while it comes back from a successor.
const (
	askAgain = 50 * time.Millisecond
	askTimes = 200
)

// A remoteBook is a bucket in the successor's hands. It is asked through the
// control socket.
type remoteBook struct {
	socket, bucket string
	back           <-chan struct{} // closed when the files will be ours again
}

// newRemoteBook returns the bucket of a name in the hands of the Postern that
// answers at socket. back is closed when the files are this process's again.
func newRemoteBook(socket, name string, back <-chan struct{}) bridge.Book {
	return remoteBook{socket, name, back}
}

// A cell is a key of a bucket, or the beginning of keys, and what is or shall be
// there.
type cell struct {
	Bucket, Key string
	Old, New    []byte
}

var errTakenBack = errors.New("the state is not the successor's")

// Get implements bridge.Store.
func (b remoteBook) Get(ctx context.Context, key string) (value []byte, err error) {
	return value, b.ask(ctx, askGet, cell{Bucket: b.bucket, Key: key}, &value)
}

// Put implements bridge.Store.
func (b remoteBook) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update implements bridge.Store.
func (b remoteBook) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll implements bridge.Book.
func (b remoteBook) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	for {
		cells := make([]cell, len(keys))
		for i, key := range keys {
			old, err := b.Get(ctx, key)
			if err != nil {
				return err
			}
			value, err := change(key, old)
			if err != nil {
				return err
			}
			cells[i] = cell{b.bucket, key, old, value}
		}
		var done bool
		if err := b.ask(ctx, askSwap, cells, &done); err != nil || done {
			return err
		}
	}
}

// Scan implements bridge.Book.
func (b remoteBook) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	var cells []cell
	if err := b.ask(ctx, askScan, cell{Bucket: b.bucket, Key: prefix}, &cells); err != nil {
		return err
	}
	for _, c := range cells {
		if err := each(c.Key, c.Old); err != nil {
			return err
		}
	}
	return nil
}

// ask waits for a successor that is not there yet. What it asks can be asked
// twice.
func (b remoteBook) ask(ctx context.Context, name string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for {
		err := admin.Call(ctx, b.socket, name, in, out)
		if err == nil || !slices.ContainsFunc(gone, func(one error) bool { return errors.Is(err, one) }) {
			return err
		}
		select {
		case <-b.back:
			return errTakenBack
		case <-time.After(askAgain):
		case <-ctx.Done():
			return err
		}
	}
}

// gone are the errors of asking a process that ends meanwhile, or is no more.
var gone = []error{admin.ErrNotRunning, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE}

// answerPredecessor answers the sessions of the process before.
func (s *site) answerPredecessor(c *admin.Server) {
	admin.Handle(c, askGet, func(ctx context.Context, in cell) ([]byte, error) {
		b, err := s.memory.bucket(in.Bucket)
		if err != nil {
			return nil, err
		}
		return b.Get(ctx, in.Key)
	})
	admin.Handle(c, askScan, func(ctx context.Context, in cell) (cells []cell, err error) {
		b, err := s.memory.bucket(in.Bucket)
		if err != nil {
			return nil, err
		}
		err = b.Scan(ctx, in.Key, func(key string, value []byte) error {
			cells = append(cells, cell{Key: key, Old: bytes.Clone(value)})
			return nil
		})
		return cells, err
	})
	admin.Handle(c, askSwap, s.memory.swap)
}

// swap puts values in the place of others, of one bucket, if all of those are
// there still.
func (m *memory) swap(ctx context.Context, cells []cell) (bool, error) {
	if len(cells) == 0 {
		return true, nil
	}
	b, err := m.bucket(cells[0].Bucket)
	if err != nil {
		return false, err
	}
	keys, byKey := make([]string, len(cells)), make(map[string]cell, len(cells))
	for i, c := range cells {
		keys[i], byKey[c.Key] = c.Key, c
	}
	err = b.UpdateAll(ctx, keys, func(key string, old []byte) ([]byte, error) {
		c := byKey[key]
		if !bytes.Equal(old, c.Old) {
			return nil, errSwapped
		}
		return c.New, nil
	})
	if errors.Is(err, errSwapped) {
		return false, nil
	}
	return err == nil, err
}

var errSwapped = errors.New("another was faster")

func (m *memory) bucket(name string) (*bucket, error) {
	if b := m.used[name]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("there is no bucket %q", name)
}

// ownBinary returns how this process was started. The file at that path may be
// another one by the time it is asked for.
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
