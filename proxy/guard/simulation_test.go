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

// The simulation lets days go by in seconds. The same clients
// (simulation_scenarios_test.go) meet the Guard, and then models of what others
// do (simulation_models_test.go). What comes of it stands in docs/guard.md;
// `make simulation` writes it there.

const day = 24 * time.Hour

// An attempt is to log in, once.
type attempt struct {
	from     netip.Addr
	account  int
	password uint32 // 0 is the right one of every account
	how      how
	kept     any // by the model, from ask to learn
}

func (a *attempt) right() bool { return a.password == 0 }

// A how is the way in which an attempt is made and, if it is wrong, answered.
type how struct {
	protocol, mechanism string // "": IMAP, PLAIN
	answer              error  // nil: wrong
}

// A model decides whose password is looked at.
type model interface {
	// ask says whether the password is looked at, and after what wait.
	ask(now time.Duration, a *attempt) (wait time.Duration, is answer)

	// learn follows each ask that was answered by looksAt, after the wait.
	learn(now time.Duration, a *attempt)

	// delay is how long the answer to a wrong password is held back.
	delay() time.Duration
}

type answer int

const (
	refuses answer = iota
	knows          // that it is wrong, without looking
	looksAt
)

// A scenario is what happens on a day, or on some.
type scenario struct {
	name, title string
	days        int           // 0: one
	latency     time.Duration // of the backend
	strict      bool          // Config.StrictNIST
	cold        bool          // nothing has been before
	alone       bool          // Postern's: the others' answers are their servers'
	known       []attempt     // were made on each of the four days before
	crowds      []crowd
}

// past is the time before a scenario, longer than a Guard learns.
const past = 4 * day

// A crowd is clients of one kind.
type crowd struct {
	who      string
	clients  int           // 0: one
	every    time.Duration // from an attempt of a client to its next, or to the answer if that is later
	within   time.Duration // in which all have begun; 0: every
	from, to time.Duration // of the scenario; 0: its end
	stream   bool          // its client is many, who do not wait for each other's answers
	tries    func(client, n int) attempt

	counts count
	most   int    // that Postern may count
	others [6]int // about what the others count, in their columns; zeros: anything
}

// A count is what is told of a crowd.
type count int

const (
	guesses   count = iota // wrong passwords that were looked at
	refused                // right passwords that were not
	throttled              // passwords that were refused, right or wrong
)

const anything = -1

// A tally is what came of a crowd's attempts.
type tally struct{ offered, right, guesses, refused, throttled, slow int }

func (t tally) of(c count) int { return [...]int{t.guesses, t.refused, t.throttled}[c] }

// among returns of how many.
func (t tally) among(c count) int { return [...]int{t.offered, t.right, t.offered}[c] }

// add counts an attempt.
func (t *tally) add(right bool, wait time.Duration, is answer) {
	t.offered++
	if right {
		t.right++
	}
	if is == refuses {
		t.throttled++
	}
	switch {
	case !right && is == looksAt:
		t.guesses++
	case right && is != looksAt:
		t.refused++
	case right && wait > 10*time.Second:
		t.slow++
	}
}

// A simulation is a scenario that meets a model.
type simulation struct {
	*scenario
	model   model
	begin   time.Duration
	turns   turns
	planned int
	tallies []tally // of crowds
}

// simulate returns the tally of each crowd.
func simulate(sc *scenario, m model) []tally {
	s := &simulation{scenario: sc, model: m, tallies: make([]tally, len(sc.crowds))}
	if !s.cold {
		s.remember()
	}
	for i, c := range s.crowds {
		for client := range max(1, c.clients) {
			t := &turn{crowd: i, client: client}
			phase := time.Duration(scatter(uint32(client+1000*i)) >> 16)
			s.plan(t, s.begin+c.from+cmp.Or(c.within, c.every)*phase>>16)
			heap.Push(&s.turns, t)
		}
	}
	for len(s.turns) > 0 {
		if s.take(s.turns[0]) {
			heap.Fix(&s.turns, 0)
		} else {
			heap.Pop(&s.turns)
		}
	}
	return s.tallies
}

// remember makes the known attempts, on each day of the past.
func (s *simulation) remember() {
	for s.begin = 0; s.begin < past; s.begin += day {
		for i, a := range s.known {
			now := s.begin + time.Duration(i)*10*time.Second
			if _, is := s.model.ask(now, &a); is == looksAt {
				s.model.learn(now, &a)
			}
		}
	}
}

// A turn is a client's to do the next thing: to make an attempt, or to have
// its password looked at.
type turn struct {
	at, since time.Duration // since: of the attempt
	planned   int           // the order of turns at one time
	crowd     int
	client, n int
	attempt   attempt
	waits     bool // to be looked at
	once      bool // makes no attempt after it
}

func (s *simulation) plan(t *turn, at time.Duration) {
	s.planned++
	t.at, t.planned = at, s.planned
}

// take lets the client do it, and reports whether there is another turn.
func (s *simulation) take(t *turn) bool {
	c, now := &s.crowds[t.crowd], t.at
	if t.waits {
		s.model.learn(now, &t.attempt)
		t.waits = false
		return !t.once && s.next(t, now)
	}
	t.attempt, t.since = c.tries(t.client, t.n), now
	t.n++
	wait, is := s.model.ask(now, &t.attempt)
	s.tallies[t.crowd].add(t.attempt.right(), wait, is)
	wait += s.latency
	switch {
	case is != looksAt:
	case wait == 0:
		s.model.learn(now, &t.attempt)
	case c.stream:
		apart := &turn{crowd: t.crowd, attempt: t.attempt, waits: true, once: true}
		s.plan(apart, now+wait)
		heap.Push(&s.turns, apart)
	default:
		t.waits = true
		s.plan(t, now+wait)
		return true
	}
	return s.next(t, now)
}

// next plans the client's next attempt, now that the last one was decided.
func (s *simulation) next(t *turn, now time.Duration) bool {
	c := &s.crowds[t.crowd]
	at := t.since + c.every
	if !c.stream {
		if !t.attempt.right() {
			now += s.model.delay()
		}
		at = max(at, now)
	}
	s.plan(t, at)
	return at < s.begin+cmp.Or(c.to, time.Duration(max(1, s.days))*day)
}

// turns is a heap.
type turns []*turn

func (t turns) Len() int { return len(t) }
func (t turns) Less(i, j int) bool {
	return t[i].at < t[j].at || t[i].at == t[j].at && t[i].planned < t[j].planned
}
func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *turns) Push(x any)   { *t = append(*t, x.(*turn)) }
func (t *turns) Pop() any {
	last := len(*t) - 1
	x := (*t)[last]
	*t = (*t)[:last]
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
	all := scenarios()
	results := make([]result, len(all))
	t.Run("of", func(t *testing.T) {
		for i := range all {
			t.Run(all[i].name, func(t *testing.T) {
				t.Parallel()
				results[i] = run(&all[i])
				results[i].check(t, all[i].crowds)
			})
		}
	})
	some := slices.ContainsFunc(results, func(r result) bool { return r.ours == nil }) // were asked for, by -run
	if !some && !race {
		document(t, "../../docs/guard.md", table(all, results))
	}
}

// A result has the tallies of a scenario's crowds: with Postern, and with each
// of the others.
type result struct {
	ours   []tally
	others [len(columns)][]tally
}

func run(s *scenario) (r result) {
	r.ours = simulate(s, newPostern(s))
	if !race && !s.alone {
		for i, m := range others() {
			r.others[i] = simulate(s, m)
		}
	}
	return r
}

// check holds Postern to its bounds, and the models of others to the order of
// magnitude that is known of them, so that they stay honest.
func (r *result) check(t *testing.T, crowds []crowd) {
	for i, c := range crowds {
		ours := r.ours[i]
		if got := ours.of(c.counts); c.most != anything && got > c.most {
			t.Errorf("%s: %d of %d with Postern, want at most %d", c.who, got, ours.among(c.counts), c.most)
		}
		if ours.slow > 0 {
			t.Errorf("%s: %d waited for more than 10 s with Postern", c.who, ours.slow)
		}
		if race || c.others == [len(columns)]int{} {
			continue
		}
		for j, about := range c.others {
			if got := r.others[j][i].of(c.counts); got > 4*about+20 || about > 4*got+20 {
				t.Errorf("%s: %d with %s, want about %d", c.who, got, columns[j], about)
			}
		}
	}
}

// table writes Markdown.
func table(all []scenario, results []result) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "| | Postern | %s |\n|---|%s\n", strings.Join(columns[:], " | "), strings.Repeat("---:|", 1+len(columns)))
	for i, s := range all {
		fmt.Fprintf(&b, "| **%s** %s |%s\n", s.name, s.title, strings.Repeat(" |", 1+len(columns)))
		for j, c := range s.crowds {
			fmt.Fprintf(&b, "| %s | **%s** |", c.who, cell(c, results[i].ours[j]))
			for _, tallies := range results[i].others {
				if tallies == nil {
					fmt.Fprint(&b, " – |")
					continue
				}
				fmt.Fprintf(&b, " %s |", cell(c, tallies[j]))
			}
			fmt.Fprintln(&b)
		}
	}
	return b.Bytes()
}

func cell(c crowd, t tally) string {
	switch {
	case c.counts == guesses:
		return thousands(t.guesses)
	case t.slow > 0:
		return fmt.Sprintf("%s of %s, %s wait", thousands(t.of(c.counts)), thousands(t.among(c.counts)), thousands(t.slow))
	}
	return fmt.Sprintf("%s of %s", thousands(t.of(c.counts)), thousands(t.among(c.counts)))
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// document compares the table in a file with this one, or puts this one there.
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
		t.Fatalf("%s: no place for the table", name)
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
