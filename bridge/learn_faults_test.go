package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

const learntMessages = 30

// An oldFault returns what an old server says instead of the answer to a line, or "".
type oldFault func(line string) string

// at says fault instead of the answers to a command.
func at(command, fault string) oldFault {
	return func(line string) string {
		if word, _, _ := strings.Cut(line, " "); word == command {
			return fault
		}
		return ""
	}
}

// atTOP says fault from the n-th TOP of the test on.
func atTOP(n int, fault string) oldFault {
	return func(line string) string {
		if strings.HasPrefix(line, "TOP") {
			if n--; n <= 0 {
				return fault
			}
		}
		return ""
	}
}

// manyRows returns an answer of several lines, without its end: "%d" is the number of the message.
func manyRows(row string, numbers ...int) string {
	var b strings.Builder
	b.WriteString("+OK\r\n")
	for _, n := range numbers {
		b.WriteString(strings.ReplaceAll(row, "%d", fmt.Sprint(n)) + "\r\n")
	}
	return b.String()
}

func upTo(n int) (numbers []int) {
	for i := range n {
		numbers = append(numbers, i+1)
	}
	return numbers
}

// Criterion: A fault of the old server or of the IMAP server at any step of learning gives the client a temporary refusal that charges nothing, and never a listing; nothing is recorded; without the fault a later attempt learns all unique ids.
func TestFaultsWhileLearning(t *testing.T) {
	const all = learntMessages
	onlyFor := func(command string) func(string) bool {
		return func(line string) bool { return strings.Contains(line, command) }
	}
	for _, test := range []struct {
		name string
		old  oldFault
		rtt  time.Duration
		imap func(m *model)
	}{
		{name: "old server, greeting: -ERR", old: at("", "-ERR too many connections\r\n")},
		{name: "old server, greeting: not POP3", old: at("", "220 mail.example.org ESMTP\r\n")},
		{name: "old server, greeting: closed", old: at("", faultGone)},
		{name: "old server, greeting: silence", old: at("", faultSilent)},
		{name: "old server, login: [IN-USE]", old: at("PASS", "-ERR [IN-USE] Mailbox is locked\r\n")},
		{name: "old server, login: [LOGIN-DELAY]", old: at("PASS", "-ERR [LOGIN-DELAY] Wait\r\n")},
		{name: "old server, login: [SYS/TEMP]", old: at("PASS", "-ERR [SYS/TEMP] Try again\r\n")},
		{name: "old server, login: [SYS/PERM]", old: at("PASS", "-ERR [SYS/PERM] Call us\r\n")},
		{name: "old server, login: [AUTH]", old: at("PASS", "-ERR [AUTH] Wrong password\r\n")},
		{name: "old server, login: -ERR without a code", old: at("PASS", "-ERR no\r\n")},
		{name: "old server, login: silence", old: at("PASS", faultSilent)},
		{name: "old server, STAT: -ERR", old: at("STAT", "-ERR\r\n")},
		{name: "old server, STAT: more than LIST shows", old: at("STAT", fmt.Sprintf("+OK %d 1\r\n", all+1))},
		{name: "old server, STAT: fewer than LIST shows", old: at("STAT", fmt.Sprintf("+OK %d 1\r\n", all-1))},
		{name: "old server, STAT: none", old: at("STAT", "+OK 0 0\r\n")},
		{name: "old server, LIST: -ERR", old: at("LIST", "-ERR\r\n")},
		{name: "old server, LIST: half, and closed", old: at("LIST", manyRows("%d 11", upTo(all/2)...)+faultGone)},
		{name: "old server, LIST: half, and silence", old: at("LIST", manyRows("%d 11", upTo(all/2)...))},
		{name: "old server, LIST: half", old: at("LIST", manyRows("%d 11", upTo(all/2)...)+".\r\n")},
		{name: "old server, LIST: a row twice", old: at("LIST", manyRows("%d 11", append(upTo(all-1), 1)...)+".\r\n")},
		{name: "old server, LIST: closed", old: at("LIST", faultGone)},
		{name: "old server, LIST: silence", old: at("LIST", faultSilent)},
		{name: "old server, UIDL: -ERR", old: at("UIDL", "-ERR\r\n")},
		{name: "old server, UIDL: -ERR [SYS/TEMP]", old: at("UIDL", "-ERR [SYS/TEMP] busy\r\n")},
		{name: "old server, UIDL: empty", old: at("UIDL", "+OK\r\n.\r\n")},
		{name: "old server, UIDL: shorter than LIST", old: at("UIDL", manyRows("%d UID%d-1700000000", upTo(all-1)...)+".\r\n")},
		{name: "old server, UIDL: half, and closed", old: at("UIDL", manyRows("%d UID%d-1700000000", upTo(all/2)...)+faultGone)},
		{name: "old server, UIDL: half, and silence", old: at("UIDL", manyRows("%d UID%d-1700000000", upTo(all/2)...))},
		{name: "old server, UIDL: a row twice", old: at("UIDL", manyRows("%d UID%d-1700000000", append(upTo(all-1), 1)...)+".\r\n")},
		{name: "old server, UIDL: closed", old: at("UIDL", faultGone)},
		{name: "old server, UIDL: silence", old: at("UIDL", faultSilent)},
		{name: "old server, TOP: -ERR to all", old: at("TOP", "-ERR\r\n")},
		{name: "old server, TOP: -ERR to half of them", old: atTOP(all/2, "-ERR\r\n")},
		{name: "old server, TOP: -ERR [SYS/TEMP] to the last one", old: atTOP(all, "-ERR [SYS/TEMP] busy\r\n")},
		{name: "old server, TOP: -ERR [IN-USE] to the last one", old: atTOP(all, "-ERR [IN-USE] lock lost\r\n")},
		{name: "old server, TOP: half a header, and closed", old: atTOP(all/2, "+OK\r\nMessage-ID: <"+faultGone)},
		{name: "old server, TOP: half a header, and silence", old: atTOP(all/2, "+OK\r\nMessage-ID: <")},
		{name: "old server, TOP: not an answer", old: atTOP(all/2, "Message-ID: <1@x>\r\n")},
		{name: "old server, TOP: closed", old: atTOP(all/2, faultGone)},
		{name: "old server, TOP: silence", old: atTOP(all/2, faultSilent)},
		{name: "old server: each answer is late", rtt: 61 * time.Second},

		{name: "IMAP, SELECT: NO", imap: func(m *model) { m.refused = onlyFor("SELECT") }},
		{name: "IMAP, SELECT: closed", imap: func(m *model) { m.cutAfter = onlyFor("SELECT") }},
		{name: "IMAP, SEARCH: NO", imap: func(m *model) { m.refused = onlyFor("SEARCH") }},
		{name: "IMAP, SEARCH: differs from EXISTS", imap: func(m *model) {
			mails := m.mails
			m.before = func(command string) {
				switch {
				case strings.HasPrefix(command, "SELECT"):
					m.mails = mails
				case strings.Contains(command, "SEARCH"):
					m.mails = mails[:all/2]
					m.told = slices.Clone(m.mails) // no EXPUNGE is told
				}
			}
		}},
		{name: "IMAP, FETCH of sizes: NO", imap: func(m *model) { m.refused = onlyFor("RFC822.SIZE") }},
		{name: "IMAP, FETCH of sizes: closed", imap: func(m *model) { m.cutAfter = onlyFor("RFC822.SIZE") }},
		{name: "IMAP, FETCH of headers: NO", imap: func(m *model) { m.refused = onlyFor("[HEADER]") }},
		{name: "IMAP, FETCH of headers: OK without rows", imap: func(m *model) { m.hidden = uidsFrom(m, 0) }},
		{name: "IMAP, FETCH of headers: half of the rows", imap: func(m *model) { m.hidden = uidsFrom(m, all/2) }},
		{name: "IMAP, FETCH of headers: closed", imap: func(m *model) { m.cutAfter = onlyFor("[HEADER]") }},
		{name: "IMAP, FETCH of headers: BYE after half of the rows", imap: func(m *model) {
			m.cut = func(uid uint32) bool { return uid > all/2 }
		}},
		{name: "IMAP, FETCH: silence", imap: func(m *model) { m.slow = time.Hour }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { learnWithFault(t, test.old, test.rtt, test.imap) })
		})
	}
}

func uidsFrom(m *model, n int) map[uint32]bool {
	uids := make(map[uint32]bool)
	for _, mail := range m.mails[n:] {
		uids[mail.uid] = true
	}
	return uids
}

// learnWithFault polls while there is a fault, and once without it.
func learnWithFault(t *testing.T, fault oldFault, rtt time.Duration, imap func(m *model)) {
	m := newModel("")
	m.deliver(learntMessages)
	mails := m.mails
	old := newSlowPOP3(m)
	old.faults, old.rtt = fault, cmp.Or(rtt, old.rtt)
	cache, record, events := &memory{}, &memory{}, &recorder{}
	b := &Backend{LogIn: m.dial(t), Cache: cache, Record: record, Observer: events}
	learnSlowly(b, old)
	if imap != nil {
		imap(m)
	}
	for range 2 {
		asked := time.Now()
		ids, err := learntBy(t, b)
		r, refused := errors.AsType[*proxy.Refusal](err)
		if !refused || r.Reason != proxy.Unavailable || !r.Verified {
			t.Fatalf("%d unique ids, %v; want a temporary refusal that is verified", len(ids), err)
		}
		if waited := time.Since(asked); waited > time.Minute {
			t.Errorf("the client waits %v", waited)
		}
		time.Sleep(learnTime) // the learning has ended, and the next one may begin
		if len(record.values) > 0 {
			t.Error("something is recorded")
		}
	}
	for _, e := range of[proxy.UIDLsLearnt](events) {
		if e.Err == nil {
			t.Errorf("learnt %d of %d", e.Found, e.Messages)
		}
	}
	old.mu.Lock()
	old.faults, old.rtt = nil, 0
	old.mu.Unlock()
	m.mu.Lock()
	m.mails, m.refused, m.cutAfter, m.before, m.hidden, m.cut, m.slow = mails, nil, nil, nil, nil, nil, 0
	m.mu.Unlock()
	ids, err := learntBy(t, b)
	if err != nil || len(ids) != learntMessages {
		t.Fatalf("without the fault: %d unique ids, %v", len(ids), err)
	}
	for i, id := range ids {
		if id != oldUIDL(i) {
			t.Errorf("message %d has the unique id %s", i, id)
		}
	}
	if old.dele > 0 {
		t.Errorf("%d commands that may change something", old.dele)
	}
	synctest.Wait()
}

// A message whose header a server does not give is taken for damaged, if it is the only one: it
// gets a new unique id, and the others keep theirs.
func TestADamagedMessageDoesNotStopLearning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(learntMessages)
		old := newSlowPOP3(m)
		old.faults = func(line string) string {
			if line == "TOP 3 0" {
				return "-ERR Message is damaged\r\n"
			}
			return ""
		}
		m.hidden = map[uint32]bool{3: true}
		b := &Backend{LogIn: m.dial(t), Cache: &memory{}, Record: &memory{}}
		learnSlowly(b, old)
		ids, err := learntBy(t, b)
		if err != nil || len(ids) != learntMessages {
			t.Fatalf("%d unique ids, %v", len(ids), err)
		}
		for i, id := range ids {
			if (id == oldUIDL(i)) != (i != 2) {
				t.Errorf("message %d has the unique id %s", i+1, id)
			}
		}
		synctest.Wait()
	})
}
