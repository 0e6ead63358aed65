package guard_test

import (
	"bytes"
	"cmp"
	"container/heap"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The simulation is a discrete-event simulation of days in seconds. The clients of each
// scenario (simulation_scenarios_test.go) attempt to log in at the Guard, and at models of
// other login guards (simulation_models_test.go). `make simulation` writes the results into
// docs/guard.md.

const day = 24 * time.Hour

// An attempt is one attempt to log in.
type attempt struct {
	from     netip.Addr
	account  int
	password uint32 // 0 is the right one of every account
	variant  variant
	state    any // of the model, from try to settle
}

func (a *attempt) right() bool { return a.password == 0 }

// A variant is how an attempt is made and how the server answers a wrong password.
type variant struct {
	protocol, mechanism string // "": IMAP, PLAIN
	answer              error  // nil: wrong
}

// A model is a login guard.
type model interface {
	// try decides whether the server checks the password, and after what wait.
	try(now time.Duration, a *attempt) (wait time.Duration, d decision)

	// settle is called after the wait for each attempt whose password is checked.
	settle(now time.Duration, a *attempt)

	// delay returns how long the answer to a wrong password is delayed.
	delay() time.Duration
}

type decision int

const (
	refuse     decision = iota
	knownWrong          // the guard answers that the password is wrong
	check               // the server checks the password
)

// A scenario is what happens on one or more days.
type scenario struct {
	name, title string
	days        int           // 0: one
	latency     time.Duration // of the backend
	strict      bool          // Config.StrictNIST
	cold        bool          // no attempts in the past
	posternOnly bool          // the other models do not distinguish the variants
	known       []attempt     // made on each day of the past
	groups      []group
}

// past is the time before a scenario. It is longer than Config.Learning.
const past = 4 * day

// A group is clients of one kind.
type group struct {
	name     string
	clients  int           // 0: one
	every    time.Duration // from an attempt of a client to its next; the next one is later if the answer is
	within   time.Duration // the first attempts of all clients are within it; 0: within every
	from, to time.Duration // in the scenario; to 0: until its end
	stream   bool          // the client stands for many clients, which do not wait for each other's answers
	attempt  func(client, n int) attempt

	metric metric
	most   int    // with Postern
	others [6]int // about, with the other models, in the order of columns; zeros: anything
}

// A metric is the value that the table shows for a group.
type metric int

const (
	guesses   metric = iota // wrong passwords that were checked
	refused                 // right passwords that were not checked
	throttled               // refused attempts, with right or wrong passwords
)

const anything = -1

// A tally counts the results of a group's attempts.
type tally struct{ attempts, right, guesses, refused, throttled, slow int }

func (t tally) of(m metric) int { return [...]int{t.guesses, t.refused, t.throttled}[m] }

// total returns the number of attempts that could count in a metric.
func (t tally) total(m metric) int { return [...]int{t.attempts, t.right, t.attempts}[m] }

// add counts an attempt.
func (t *tally) add(right bool, wait time.Duration, d decision) {
	t.attempts++
	if right {
		t.right++
	}
	if d == refuse {
		t.throttled++
	}
	switch {
	case !right && d == check:
		t.guesses++
	case right && d != check:
		t.refused++
	case right && wait > 10*time.Second:
		t.slow++
	}
}

// A simulation is a run of a scenario with a model.
type simulation struct {
	*scenario
	model     model
	begin     time.Duration
	queue     eventQueue
	scheduled int
	tallies   []tally // of groups
}

// simulate returns the tally of each group.
func simulate(sc *scenario, m model) []tally {
	s := &simulation{scenario: sc, model: m, tallies: make([]tally, len(sc.groups))}
	if !s.cold {
		s.simulatePast()
	}
	for i, c := range s.groups {
		for client := range max(1, c.clients) {
			e := &event{group: i, client: client}
			phase := time.Duration(scatter(uint32(client+1000*i)) >> 16)
			s.schedule(e, s.begin+c.from+cmp.Or(c.within, c.every)*phase>>16)
			heap.Push(&s.queue, e)
		}
	}
	for len(s.queue) > 0 {
		if s.handle(s.queue[0]) {
			heap.Fix(&s.queue, 0)
		} else {
			heap.Pop(&s.queue)
		}
	}
	return s.tallies
}

// simulatePast makes the known attempts on each day of the past.
func (s *simulation) simulatePast() {
	for s.begin = 0; s.begin < past; s.begin += day {
		for i, a := range s.known {
			now := s.begin + time.Duration(i)*10*time.Second
			if _, d := s.model.try(now, &a); d == check {
				s.model.settle(now, &a)
			}
		}
	}
}

// An event is a client's next attempt, or the end of its present attempt.
type event struct {
	at        time.Duration
	order     int           // of events at the same time
	begun     time.Duration // when the attempt was made
	group     int
	client, n int
	attempt   attempt
	ends      bool // the attempt ends
	last      bool // no attempt follows
}

func (s *simulation) schedule(e *event, at time.Duration) {
	s.scheduled++
	e.at, e.order = at, s.scheduled
}

// handle handles an event and reports whether it has been scheduled again.
func (s *simulation) handle(e *event) bool {
	g, now := &s.groups[e.group], e.at
	if e.ends {
		s.model.settle(now, &e.attempt)
		e.ends = false
		return !e.last && s.scheduleNext(e, now)
	}
	e.attempt, e.begun = g.attempt(e.client, e.n), now
	e.n++
	wait, d := s.model.try(now, &e.attempt)
	s.tallies[e.group].add(e.attempt.right(), wait, d)
	wait += s.latency
	switch {
	case d != check:
	case wait == 0:
		s.model.settle(now, &e.attempt)
	case g.stream:
		end := &event{group: e.group, attempt: e.attempt, ends: true, last: true}
		s.schedule(end, now+wait)
		heap.Push(&s.queue, end)
	default:
		e.ends = true
		s.schedule(e, now+wait)
		return true
	}
	return s.scheduleNext(e, now)
}

// scheduleNext schedules the client's next attempt, and reports false if there is none.
func (s *simulation) scheduleNext(e *event, now time.Duration) bool {
	g := &s.groups[e.group]
	at := e.begun + g.every
	if !g.stream {
		if !e.attempt.right() {
			now += s.model.delay()
		}
		at = max(at, now)
	}
	s.schedule(e, at)
	return at < s.begin+cmp.Or(g.to, time.Duration(max(1, s.days))*day)
}

// An eventQueue is a heap.
type eventQueue []*event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(*event)) }
func (q *eventQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}

var update = flag.Bool("update", false, "write the table of the simulation into docs/guard.md")

// Criterion: A botnet of 10,000 addresses gets at most 130 guesses a day at an account, one of 100,000 that come once 70, one with the owner's own provider 130.
// Criterion: In the middle of such attacks an owner is never refused in a network where he logged in before, and elsewhere twice a day at most, unless the bots are all new.
// Criterion: An office whose old devices try last year's password all day is refused no login, on the first day either.
// Criterion: With strict_nist ten days of guessing from 10,200 addresses get 100 guesses.
// Criterion: The same bounds hold through every protocol, for bearer tokens that a server may take for passwords, for answers that are told as temporary, and for all of them mixed.
// Criterion: docs/guard.md says what each attack that is simulated gets, with Postern and with six others.
func TestSimulation(t *testing.T) {
	t.Parallel()
	all := scenarios()
	results := make([]result, len(all))
	t.Run("of", func(t *testing.T) {
		for i := range all {
			t.Run(all[i].name, func(t *testing.T) {
				t.Parallel()
				results[i] = run(&all[i])
				results[i].check(t, all[i].groups)
			})
		}
	})
	partial := slices.ContainsFunc(results, func(r result) bool { return r.ours == nil }) // by -run
	if !partial && !race {
		document(t, "../../docs/guard.md", table(all, results))
	}
}

// A result has the tallies of a scenario's groups, with Postern and with each of the
// other models.
type result struct {
	ours   []tally
	others [len(columns)][]tally
}

func run(s *scenario) (r result) {
	r.ours = simulate(s, newPostern(s))
	if !race && !s.posternOnly {
		for i, m := range others() {
			r.others[i] = simulate(s, m)
		}
	}
	return r
}

// check compares Postern's results with their bounds, and the other models' results with
// the known order of magnitude, so that the models stay faithful.
func (r *result) check(t *testing.T, groups []group) {
	for i, g := range groups {
		ours := r.ours[i]
		if got := ours.of(g.metric); g.most != anything && got > g.most {
			t.Errorf("%s: %d of %d with Postern, want at most %d", g.name, got, ours.total(g.metric), g.most)
		}
		if ours.slow > 0 {
			t.Errorf("%s: %d waited for more than 10 s with Postern", g.name, ours.slow)
		}
		if race || g.others == [len(columns)]int{} {
			continue
		}
		for j, about := range g.others {
			if got := r.others[j][i].of(g.metric); got > 4*about+20 || about > 4*got+20 {
				t.Errorf("%s: %d with %s, want about %d", g.name, got, columns[j], about)
			}
		}
	}
}

// table returns the results in Markdown.
func table(all []scenario, results []result) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "| | Postern | %s |\n|---|%s\n", strings.Join(columns[:], " | "), strings.Repeat("---:|", 1+len(columns)))
	for i, s := range all {
		fmt.Fprintf(&b, "| **%s** %s |%s\n", s.name, s.title, strings.Repeat(" |", 1+len(columns)))
		for j, g := range s.groups {
			fmt.Fprintf(&b, "| %s | **%s** |", g.name, tableCell(g, results[i].ours[j]))
			for _, tallies := range results[i].others {
				if tallies == nil {
					fmt.Fprint(&b, " – |")
					continue
				}
				fmt.Fprintf(&b, " %s |", tableCell(g, tallies[j]))
			}
			fmt.Fprintln(&b)
		}
	}
	return b.Bytes()
}

func tableCell(g group, t tally) string {
	switch {
	case g.metric == guesses:
		return thousands(t.guesses)
	case t.slow > 0:
		return fmt.Sprintf("%s of %s, %s wait", thousands(t.of(g.metric)), thousands(t.total(g.metric)), thousands(t.slow))
	}
	return fmt.Sprintf("%s of %s", thousands(t.of(g.metric)), thousands(t.total(g.metric)))
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// document compares the table in a file with table, or replaces it with -update.
func document(t *testing.T, name string, table []byte) {
	const begin, end = "<!-- make simulation -->\n", "<!-- end of simulation -->\n"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	old, after, ok2 := bytes.Cut(rest, []byte(end))
	switch {
	case !ok || !ok2:
		t.Fatalf("%s: the table is not there", name)
	case bytes.Equal(old, table):
	case *update:
		text = slices.Concat(before, []byte(begin), table, []byte(end), after)
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table in %s is old: run 'make simulation'. The new one:\n%s", name, table)
	}
}
