package bridge

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

// A bucketWith calls before, once, before a value is read.
type bucketWith struct {
	Bucket
	before func()
}

func (b *bucketWith) Get(ctx context.Context, key string) ([]byte, error) {
	if f := b.before; f != nil {
		b.before = nil
		f()
	}
	return b.Bucket.Get(ctx, key)
}

// Criterion: a message that comes while two sessions of an account open INBOX, and that only the second one sees, changes no UIDL: the lower UIDNEXT of the first one is no change of UIDs.
func TestASessionThatAnotherOneOvertakes(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, _, notices := m.bases(t)
	before := shown(t, b)
	*notices = nil
	b.Record = &bucketWith{b.Record, func() {
		m.deliver(1)
		if ids := shown(t, b); len(ids) != 4 {
			t.Errorf("the second session shows %v", ids)
		}
	}}
	if got := shown(t, b); !maps.Equal(got, before) {
		t.Errorf("the first session shows %v, want %v", got, before)
	}
	for _, n := range *notices {
		t.Errorf("notice %s", n.Kind)
	}
	m.deliver(1)
	if got := shown(t, b); len(got) != 5 || got[4] != "0000000400000007" || got[5] != "0000000500000007" {
		t.Errorf("then there are %v", got)
	}
}

// Criterion: mail that comes while the UIDLs of an old server are learnt changes no UIDL.
func TestMailComesWhileUIDLsAreLearnt(t *testing.T) {
	s, b := serve(t, learnable(2), learnable(1))
	old := proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}, {UIDL: "two", Raw: learnable(2)}})
	learnFrom(b, old, nil)
	logIn := b.Learner.LogIn
	b.Learner.LogIn = func(ctx context.Context, l *proxy.Login) (OldMaildrop, error) {
		if err := s.Append("alice", []byte(learnable(3))); err != nil {
			t.Error(err)
		}
		return logIn(ctx, l)
	}
	r := run(t, b)
	proxytest.Transcript(t, r.conn, `
		C: UIDL
		S: +OK *
		S: 1 two
		S: 2 one
		S: .
		C: QUIT
		S: +OK *
	`)
	<-r.done
	_ = r.session.Close()
	if err := s.Append("alice", []byte(learnable(4))); err != nil {
		t.Fatal(err)
	}
	proxytest.Transcript(t, run(t, b).conn, `
		C: UIDL
		S: +OK *
		S: 1 two
		S: 2 one
		S: 3 0000000300000007
		S: 4 0000000400000007
		S: .
	`)
	if n := len(recordOf(t, b.Record, "alice").Generations); n != 1 {
		t.Errorf("%d generations, want 1", n)
	}
}

// Criterion: after the old server has served an account again, its next session with the bridge asks it for the unique ids of what came meanwhile; the ids that the bridge has shown stay.
func TestAnAccountThatWasBackAtTheOldServerIsLearntAgain(t *testing.T) {
	s, b := serve(t, learnable(1))
	b.Cache = new(state.Memory)
	old := proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}})
	learnFrom(b, old, nil)
	deliver := func(i int) {
		t.Helper()
		if err := s.Append("alice", []byte(learnable(i))); err != nil {
			t.Fatal(err)
		}
	}
	want := func(ids ...string) {
		t.Helper()
		r := run(t, b)
		dialogue := "C: UIDL\nS: +OK *\n"
		for i, id := range ids {
			dialogue += fmt.Sprintf("S: %d %s\n", i+1, id)
		}
		proxytest.Transcript(t, r.conn, dialogue+"S: .\nC: QUIT\nS: +OK *")
		<-r.done
		_ = r.session.Close()
	}
	if err := ServedByOld(t.Context(), b.Cache, b.Record, "alice"); err != nil { // there is no record, and so no note
		t.Fatal(err)
	}
	want("one")
	deliver(2)
	want("one", "0000000200000007")
	want("one", "0000000200000007")
	if n := old.Commands("PASS"); n != 1 {
		t.Errorf("the old server was asked %d times, want once", n)
	}

	deliver(3)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}, {UIDL: "two", Raw: learnable(2)}, {UIDL: "three", Raw: learnable(3)}})
	for range 2 {
		if err := ServedByOld(t.Context(), b.Cache, b.Record, "alice"); err != nil {
			t.Fatal(err)
		}
	}
	password := old.Password
	old.Password = "another"
	b.Learner.Retry = time.Nanosecond
	refused(t, b)
	old.Password = password
	want("one", "0000000200000007", "three")
	deliver(4)
	want("one", "0000000200000007", "three", "0000000400000007")
	if n := old.Commands("PASS"); n != 3 {
		t.Errorf("the old server was asked %d times, want 3", n)
	}
}

// Criterion: while the old server cannot be asked, nobody is told that the record is at fault.
func TestALearningThatFailsIsNoFaultOfTheRecord(t *testing.T) {
	_, b := serve(t, learnable(1))
	learnFrom(b, &proxytest.POP3Server{Addr: "127.0.0.1:1"}, nil)
	learnt := 0
	b.Observer = observerFunc(func(e proxy.Event) {
		switch e := e.(type) {
		case proxy.MaildropNoticed:
			t.Errorf("notice %s: %v", e.Kind, e.Err)
		case proxy.UIDLsLearnt:
			learnt++
		}
	})
	refused(t, b)
	if learnt != 1 {
		t.Errorf("%d events about learning, want one", learnt)
	}
}
