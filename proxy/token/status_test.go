package token

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// Criterion: A provider that gives no tokens is known to be down, or misconfigured, since its first failure, also while nobody logs in: an application's token is requested at the start, and again until one comes; the first good answer ends that. Before the first request nothing is claimed.
func TestStatusOfAProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		p := newProvider(t, e, 1)
		expect := func(what string, down, misconfigured bool, since time.Duration, tokens int) {
			t.Helper()
			synctest.Wait()
			s := p.Status()
			if (s.Fault != nil) != down || s.Misconfigured() != misconfigured || p.Tokens() != tokens || down && time.Since(s.Since) != since {
				t.Errorf("%s: %+v, %d tokens, since %v; want down %v, misconfigured %v, since %v, %d tokens", what, s, p.Tokens(), time.Since(s.Since), down, misconfigured, since, tokens)
			}
		}
		if expect("before the first request", false, false, 0, 0); p.Status().Known() {
			t.Error("a provider that nobody has asked is known")
		}
		p.Look()
		if expect("a token came", false, false, 0, 1); !p.Status().Known() || !p.Status().Last.Equal(time.Now()) {
			t.Errorf("%+v", p.Status())
		}

		e.fail(refuse(503, "", "{}"))
		time.Sleep(55 * time.Minute)
		take(t, p, "a@example.org", false) // an old token, and a request behind it
		expect("away, with a token", true, false, 0, 1)
		for range 20 { // nobody logs in
			time.Sleep(30 * time.Second)
			p.Look()
		}
		expect("away for 10 minutes", true, false, 10*time.Minute, 0)
		if n := e.count(); n < 5 || n > 12 {
			t.Errorf("%d requests in ten minutes", n)
		}
		e.fail(refuse(401, "", `{"error":"invalid_client"}`))
		time.Sleep(5 * time.Minute)
		p.Look()
		expect("misconfigured", true, true, 15*time.Minute, 0)
		before := e.count()
		time.Sleep(30 * time.Second)
		p.Look()
		if synctest.Wait(); e.count() != before {
			t.Error("a provider that refuses the application is asked twice within a minute")
		}
		e.fail(nil)
		time.Sleep(time.Minute)
		p.Look()
		expect("mended", false, false, 0, 1)
		before = e.count()
		time.Sleep(10 * time.Minute)
		p.Look()
		if synctest.Wait(); e.count() != before {
			t.Error("a provider that answers is asked without need")
		}
	})
}

func TestNoLookForATokenOfAMailbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		p := newProvider(t, e, 1)
		p.Grant = &ServiceAccount{KeyFile: "absent"}
		if p.Look(); e.count() != 0 || p.Status().Known() {
			t.Error("a token was requested, for no mailbox")
		}
	})
}

// Criterion: That there is no token for one mailbox does not make a provider down, and does not make one well that refuses the application.
func TestOneMailboxIsNoStateOfAProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t, &endpoint{}, 1)
		e := &entry{}
		account, temporary, configuration := p.fail(Account, "x"), p.fail(Temporary, "y"), p.fail(Configuration, "z")
		for _, step := range []struct {
			fault *Fault
			want  *Fault
		}{
			{account, nil}, {temporary, temporary}, {account, nil}, {configuration, configuration}, {account, configuration}, {nil, nil},
		} {
			p.note(e, "", step.fault)
			if got := p.Status().Fault; got != step.want {
				t.Errorf("after %v: %v, want %v", step.fault, got, step.want)
			}
		}
	})
}

// BenchmarkTokenMemory reports what the token of one mailbox takes, as Google gives them.
func BenchmarkTokenMemory(b *testing.B) {
	const mailboxes, octets = 20_000, 1500
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	text := bytes.Repeat([]byte("x"), octets)
	for b.Loop() {
		before := heap()
		p := &Provider{Grant: &ServiceAccount{}}
		p.init()
		for i := range mailboxes {
			e, _ := p.entryFor(fmt.Sprintf("user%05d@mail.customer.example", i))
			p.record(e, "", answer{token: proxy.NewSecret(text), life: time.Hour}, nil)
		}
		b.ReportMetric(float64(heap()-before)/mailboxes, "B/mailbox")
		runtime.KeepAlive(p)
	}
}
