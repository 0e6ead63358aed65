package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/bridge/oldserver"
	"postern/proxy"
)

// A slowPOP3 is an old server that takes one command at a time, rtt after the one before.
// Its messages are those of a model.
type slowPOP3 struct {
	rtt    time.Duration
	life   time.Duration // of a session; 0: for ever
	inUse  int           // the login that gets [IN-USE]; 0: none
	sizes  []int64
	faults func(line string) (fault string) // what is said instead of the answer to line, "" for the greeting; faultSilent; what ends in faultGone; "": none

	mu     sync.Mutex
	logins int
	tops   map[string]int // that were answered, by UIDL
	dele   int            // commands that may change something
	conns  []net.Conn
}

func newSlowPOP3(m *model) *slowPOP3 {
	s := &slowPOP3{rtt: 20 * time.Millisecond, tops: make(map[string]int)}
	for _, x := range m.mails {
		s.sizes = append(s.sizes, x.size)
	}
	return s
}

func (s *slowPOP3) dial(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, near, far)
	go s.serve(far)
	return tcpDeadlines{near}, nil
}

// tcpDeadlines is a pipe whose deadline can be set after the other end was closed, as that of
// a TCP connection: what has come until then can still be read.
type tcpDeadlines struct{ net.Conn }

// SetDeadline implements net.Conn.
func (c tcpDeadlines) SetDeadline(t time.Time) error {
	if err := c.Conn.SetDeadline(t); !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return nil
}

// closeAll ends all sessions, as a process that is killed does.
func (s *slowPOP3) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
	s.conns = nil
}

func (s *slowPOP3) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if s.life > 0 {
		defer time.AfterFunc(s.life, func() { _ = conn.Close() }).Stop()
	}
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	reply, line := s.answer(""), ""
	for gone := false; !gone; {
		if reply == faultSilent {
			_, _ = in.ReadString('\n') // until the client closes
			return
		}
		reply, gone = strings.CutSuffix(reply, faultGone)
		_, _ = out.WriteString(reply)
		if out.Flush() != nil || gone {
			return
		}
		s.answered(line)
		var err error
		line, err = in.ReadString('\n')
		if err != nil || in.Buffered() > 0 { // no PIPELINING
			return
		}
		time.Sleep(s.rtt)
		reply = s.answer(strings.TrimRight(line, "\r\n"))
	}
}

// answered counts a TOP whose answer has gone to the client.
func (s *slowPOP3) answered(line string) {
	var n, lines int
	if _, err := fmt.Sscanf(line, "TOP %d %d", &n, &lines); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tops[oldUIDL(n-1)]++
	}
}

// Faults of a slowPOP3: the connection goes, also within an answer; nothing more comes.
const faultGone, faultSilent = "gone", "silent"

// answer returns the answer to a command or, to "", the greeting.
func (s *slowPOP3) answer(line string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	word, _, _ := strings.Cut(line, " ")
	if s.faults != nil {
		if fault := s.faults(line); fault != "" {
			return fault
		}
	}
	switch word {
	case "":
		return "+OK old server\r\n"
	case "CAPA":
		return "+OK\r\nTOP\r\nUIDL\r\nUSER\r\n.\r\n"
	case "PASS":
		if s.logins++; s.logins == s.inUse {
			return "-ERR [IN-USE] Mailbox is locked\r\n"
		}
	case "STAT":
		return fmt.Sprintf("+OK %d %d\r\n", len(s.sizes), len(s.sizes))
	case "LIST", "UIDL":
		var b strings.Builder
		b.WriteString("+OK\r\n")
		for i, size := range s.sizes {
			if word == "LIST" {
				fmt.Fprintf(&b, "%d %d\r\n", i+1, size)
			} else {
				fmt.Fprintf(&b, "%d %s\r\n", i+1, oldUIDL(i))
			}
		}
		return b.String() + ".\r\n"
	case "TOP":
		var n, lines int
		_, _ = fmt.Sscanf(line, "TOP %d %d", &n, &lines)
		return fmt.Sprintf("+OK\r\nMessage-ID: <%d@x>\r\nStatus: RO\r\n\r\n.\r\n", n-1) // as the model shows it
	case "USER", "NOOP", "RSET":
	case "QUIT":
		return "+OK\r\n"
	default:
		s.dele++
		return "-ERR\r\n"
	}
	return "+OK\r\n"
}

// oldUIDL returns the UIDL of a message of a slowPOP3.
func oldUIDL(i int) string { return fmt.Sprintf("UID%d-1700000000", i+1) }

// learnSlowly makes b learn UIDLs from s.
func learnSlowly(b *Backend, s *slowPOP3) {
	server := &oldserver.Server{Dial: s.dial, Timeout: 30 * time.Second}
	b.Learner = &Learner{LogIn: func(ctx context.Context, l *proxy.Login) (OldMaildrop, error) {
		d, err := server.Open(context.WithoutCancel(ctx), l.Account, l.Secret)
		if err != nil {
			return nil, err
		}
		return oldMaildrop{d, nil}, nil
	}}
}

// Criterion: 50,000 messages, 5,000 of them of equal size, are learnt from an old server 20 ms away, without pipelining, by a client that waits for a minute and polls every 5 minutes, with at most 3 refused polls and no TOP asked twice: also if the old server ends sessions after 2 minutes, says [IN-USE] at the second login, or Postern is killed in the middle.
func TestLearnFromAHugeOldServer(t *testing.T) {
	const messages, equal = 50_000, 5_000
	for _, test := range []struct {
		name   string
		life   time.Duration // of a session
		inUse  int
		kill   time.Duration // after which Postern is killed
		refuse int           // polls
	}{
		{name: "as it should be", refuse: 1},
		{name: "sessions end after 2 minutes", life: 2 * time.Minute, refuse: 1},
		{name: "sessions end after a minute, [IN-USE] at the second login", life: time.Minute, inUse: 2, refuse: 3},
		{name: "Postern is killed", kill: time.Minute, refuse: 2},
		{name: "Postern is killed, and the old server keeps the lock for a while", kill: time.Minute, inUse: 2, life: 2 * time.Minute, refuse: 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel("")
				m.deliver(messages)
				for i := range equal {
					m.mails[i*messages/equal+i%7].size = 777
				}
				old := newSlowPOP3(m)
				old.life, old.inUse = test.life, test.inUse
				cache, record := &memory{}, &memory{}
				b := &Backend{LogIn: m.dial(t), Cache: cache, Record: record}
				learnSlowly(b, old)
				var mu sync.Mutex // of cache, record and b
				if test.kill > 0 {
					time.AfterFunc(test.kill, func() {
						mu.Lock()
						defer mu.Unlock()
						if len(record.values) > 0 {
							t.Error("something is recorded before all is learnt")
						}
						cache, record = &memory{values: maps.Clone(cache.values)}, &memory{}
						b = &Backend{LogIn: m.dial(t), Cache: cache, Record: record}
						learnSlowly(b, old)
						old.closeAll()
					})
				}
				refused := 0
				var ids []string
				for began := time.Now(); ; time.Sleep(time.Until(began.Add(time.Duration(refused) * 5 * time.Minute))) {
					polled := time.Now()
					var err error
					mu.Lock()
					now := b
					mu.Unlock()
					ids, err = learntBy(t, now)
					if time.Since(polled) > time.Minute {
						t.Errorf("the client waits %v", time.Since(polled))
					}
					if err == nil {
						break
					}
					if refused++; proxy.ReasonOf(err) != proxy.Unavailable || refused > 10 {
						t.Fatalf("after %d polls: %v", refused, err)
					}
					mu.Lock()
					recorded := len(record.values)
					mu.Unlock()
					if recorded > 0 {
						t.Errorf("poll %d is refused, and something is recorded", refused)
					}
				}
				synctest.Wait()
				for i, id := range ids {
					if id != oldUIDL(i) {
						t.Fatalf("message %d has the unique id %s", i, id)
					}
				}
				twice := 0
				for _, n := range old.tops {
					twice += n - 1
				}
				most := 0
				if test.kill > 0 {
					most = int(5 * time.Second / old.rtt) // were not saved yet
				}
				t.Logf("%d refused polls, %d TOP, %d of them again, %d logins", refused, len(old.tops)+twice, twice, old.logins)
				if len(ids) != messages || refused > test.refuse || twice > most || len(old.tops) < equal || len(old.tops) > messages/4 || old.dele > 0 {
					t.Errorf("%d unique ids, %d refused polls, want %d; %d TOP, %d of them again, want %d; %d other commands", len(ids), refused, test.refuse, len(old.tops), twice, most, old.dele)
				}
				for k := range cache.values {
					if k == learntKey("alice") {
						t.Error("the headers are kept")
					}
				}
			})
		})
	}
}

// learntBy returns what a session of alice shows.
func learntBy(t *testing.T, b *Backend) (ids []string, err error) {
	t.Helper()
	opened, err := b.Login(t.Context(), &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*session)
	if _, err := s.Open(t.Context()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.readUIDLs(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range s.maildrop.messages {
		ids = append(ids, string(s.uniqueID(nil, &s.maildrop.messages[i])))
	}
	return slices.Clip(ids), s.Close()
}

// Criterion: a message that is copied after its account was learnt gets the unique id that the old server showed, for 90 days, and no other message does.
func TestALateCopyGetsItsUIDL(t *testing.T) {
	for _, days := range []int{0, 5, 60, 89, 120} {
		synctest.Test(t, func(t *testing.T) {
			m := newModel("")
			m.deliver(10)
			old := newSlowPOP3(m)
			m.mails = m.mails[:8] // the others are not copied yet
			b := &Backend{LogIn: m.dial(t), Cache: &memory{}, Record: &memory{}}
			learnSlowly(b, old)
			if ids, err := learntBy(t, b); err != nil || len(ids) != 8 {
				t.Fatalf("%q, %v", ids, err)
			}
			time.Sleep(time.Duration(days) * 24 * time.Hour)
			m.deliver(1) // a new message
			m.deliver(1)
			m.content[m.uidNext-1] = 8 // a late copy
			ids, err := learntBy(t, b)
			if err != nil || len(ids) != 10 {
				t.Fatalf("%q, %v", ids, err)
			}
			if late := ids[9] == oldUIDL(8); ids[0] != oldUIDL(0) || late != (days <= 90) || ids[8] == oldUIDL(8) || ids[8] == oldUIDL(9) {
				t.Errorf("after %d days: %q", days, ids)
			}
			m.deliver(1)
			m.content[m.uidNext-1] = 9 // and another one
			again, err := learntBy(t, b)
			if err != nil || len(again) != 11 || !slices.Equal(again[:10], ids) || (again[10] == oldUIDL(9)) != (days <= 90) {
				t.Errorf("after %d days: %q, %v", days, again, err)
			}
			synctest.Wait()
		})
	}
}
