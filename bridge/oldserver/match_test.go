package oldserver

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// A letter is a message as both servers may have it.
type letter struct {
	content  uint64 // 0: the server does not give it
	header   uint64
	distinct bool
	unread   bool // the server refuses the header
	size     int64
}

// A box is a maildrop. It counts what is read of it.
type box struct {
	letters           []letter
	headers, contents int
	err               error
}

func (b *box) side() Side {
	s := Side{
		Headers: func(_ context.Context, indexes []int) (all []Header, err error) {
			for _, i := range indexes {
				l := b.letters[i]
				all = append(all, Header{Known: !l.unread, Hash: l.header, Distinct: l.distinct})
			}
			b.headers += len(indexes)
			return all, b.err
		},
		Contents: func(_ context.Context, indexes []int) (all []Sum, err error) {
			for _, i := range indexes {
				var sum Sum
				binary.BigEndian.PutUint64(sum[:], b.letters[i].content)
				all = append(all, sum)
			}
			b.contents += len(indexes)
			return all, b.err
		},
	}
	for _, l := range b.letters {
		s.Sizes = append(s.Sizes, l.size)
	}
	return s
}

// ordinary returns n letters with headers of their own, and sizes from least on.
func ordinary(n int, least int64) (letters []letter) {
	for i := range n {
		letters = append(letters, letter{content: uint64(i + 1), header: uint64(i + 1), distinct: true, size: least + int64(i)})
	}
	return letters
}

func match(t *testing.T, old, new *box, o Options) Matching {
	t.Helper()
	result, err := Match(t.Context(), old.side(), new.side(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range result.Pairs {
		if a, b := old.letters[p.Old], new.letters[p.New]; a.content != b.content {
			t.Fatalf("%v: %v and %v are not the same message", p, a, b)
		}
	}
	if len(result.Pairs)+len(result.Left) != len(old.letters) {
		t.Fatalf("%d pairs and %d left of %d messages", len(result.Pairs), len(result.Left), len(old.letters))
	}
	return result
}

// Criterion: Of a mailbox that was moved in order, every 50th header is read, and all messages are found again.
func TestAMoveInOrder(t *testing.T) {
	letters := ordinary(1000, 500)
	old, new := &box{letters: letters}, &box{letters: letters}
	result := match(t, old, new, Options{Sample: true})
	if len(result.Pairs) != 1000 || !result.Constant || result.Offset != 0 {
		t.Errorf("%d pairs, offset %d %v", len(result.Pairs), result.Offset, result.Constant)
	}
	if want := 1000/probeEvery + 1; old.headers != want || new.headers != want || old.contents != 0 {
		t.Errorf("%d and %d headers and %d contents were read, want %d headers", old.headers, new.headers, old.contents, want)
	}
}

func TestMessagesThatAreMissingOrNew(t *testing.T) {
	letters := ordinary(300, 500)
	old := &box{letters: slices.Concat(letters[:100], letters[110:])}
	new := &box{letters: slices.Concat(letters[:50], letters[60:])}
	result := match(t, old, new, Options{Sample: true})
	if len(result.Pairs) != 280 || len(result.Left) != 10 || result.Left[50] != Missing {
		t.Errorf("%d pairs, left: %v", len(result.Pairs), result.Left)
	}
}

// One header that disagrees makes Match read all headers.
func TestSizesThatMislead(t *testing.T) {
	letters := ordinary(200, 500)
	moved := slices.Clone(letters)
	for i := range moved { // the same sizes in the same order, but of other messages
		moved[i], moved[i].size = letters[(i+7)%200], letters[i].size
	}
	old, new := &box{letters: letters}, &box{letters: moved}
	result := match(t, old, new, Options{Sample: true})
	if !result.Disagreed || old.headers != 200 || len(result.Pairs) != 200 {
		t.Errorf("disagreed: %v, %d headers, %d pairs", result.Disagreed, old.headers, len(result.Pairs))
	}
}

// Criterion: A difference in size between two servers is learnt from headers, and then proposes; it is never assumed.
func TestAConstantOffset(t *testing.T) {
	letters := ordinary(400, 500)
	for i := range letters {
		letters[i].size = 500 + 13*int64(i)
	}
	larger := slices.Clone(letters)
	for i := range larger {
		larger[i].size += 27
	}
	old, new := &box{letters: letters}, &box{letters: larger}
	result := match(t, old, new, Options{})
	if len(result.Pairs) != 400 || !result.Constant || result.Offset != 27 || old.headers != 400 {
		t.Fatalf("%d pairs, offset %d %v, %d headers", len(result.Pairs), result.Offset, result.Constant, old.headers)
	}
	old.headers = 0
	result = match(t, old, new, Options{Offset: 27, Sample: true})
	if len(result.Pairs) != 400 || old.headers > 20 {
		t.Errorf("with the offset: %d pairs, %d headers", len(result.Pairs), old.headers)
	}
}

// Criterion: Messages with the same header and size are told apart by their contents, and exact copies are matched in order.
func TestCronMailsInAnotherOrder(t *testing.T) {
	var letters []letter
	for i := range 60 {
		letters = append(letters, letter{content: uint64(i/2 + 1), header: 7, size: 900}) // two copies of each
	}
	shuffled := slices.Clone(letters)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	result := match(t, &box{letters: letters}, &box{letters: shuffled}, Options{})
	if len(result.Pairs) != 60 {
		t.Errorf("%d pairs", len(result.Pairs))
	}
	last := make(map[uint64]int)
	for _, p := range result.Pairs {
		content := shuffled[p.New].content
		if before, again := last[content]; again && p.Old < before {
			t.Errorf("copies %d and %d are not in order", before, p.Old)
		}
		last[content] = p.Old
	}
}

// Absence is not a fact: what a server does not answer, matches nothing.
func TestWhatAServerDoesNotAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		spoil  func(old, new []letter)
		left   int
		reason Reason
	}{
		"a header of the old server":     {func(old, _ []letter) { old[0].unread = true }, 1, Unread},
		"a header of the new server":     {func(_, new []letter) { new[0].unread = true }, 1, Missing},
		"the headers of the old server":  {func(old, _ []letter) { spoilAll(old, func(l *letter) { l.unread = true }) }, 20, Unread},
		"contents of the old server":     {func(old, _ []letter) { spoilAll(old, func(l *letter) { l.content, l.distinct = 0, false }) }, 20, Ambiguous},
		"contents of both":               {func(old, new []letter) { spoilAll(old, noContent); spoilAll(new, noContent) }, 20, Ambiguous},
		"a size of the old server":       {func(old, _ []letter) { old[3].size = 0 }, 0, ""},
		"sizes of the old server at all": {func(old, _ []letter) { spoilAll(old, func(l *letter) { l.size = 0 }) }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			old, new := ordinary(20, 100), ordinary(20, 100)
			test.spoil(old, new)
			result, err := Match(t.Context(), (&box{letters: old}).side(), (&box{letters: new}).side(), Options{})
			if err != nil || len(result.Left) != test.left {
				t.Fatalf("left: %v, %v", result.Left, err)
			}
			for i, reason := range result.Left {
				if reason != test.reason {
					t.Errorf("message %d: reason %q, want %q", i, reason, test.reason)
				}
			}
		})
	}
	old := &box{letters: ordinary(20, 100), err: errors.New("lost")}
	if _, err := Match(t.Context(), old.side(), (&box{letters: ordinary(20, 100)}).side(), Options{}); !errors.Is(err, old.err) {
		t.Errorf("a lost connection: %v", err)
	}
}

func noContent(l *letter) { l.content, l.distinct = 0, false }

func spoilAll(letters []letter, spoil func(*letter)) {
	for i := range letters {
		spoil(&letters[i])
	}
}

func TestContentsAreBounded(t *testing.T) {
	letters := ordinary(20, 100)
	spoilAll(letters, func(l *letter) { l.header, l.distinct = 5, false })
	letters = append(letters, ordinary(2, 40)...)
	spoilAll(letters[20:], func(l *letter) { l.header, l.distinct = 6, false })
	old, new := &box{letters: letters}, &box{letters: letters}
	result := match(t, old, new, Options{MaxContent: 1000})
	if len(result.Pairs) != 2 || len(result.Left) != 20 || result.Left[0] != Ambiguous || old.contents != 2 {
		t.Errorf("%d pairs, left: %v; %d contents were read", len(result.Pairs), result.Left, old.contents)
	}
}

func TestAMessageThatNeedsItsContent(t *testing.T) {
	letters := ordinary(20, 100)
	letters[4].content = 0
	old, new := &box{letters: letters}, &box{letters: letters}
	result := match(t, old, new, Options{ByContent: map[int]bool{3: true, 4: true}})
	if len(result.Pairs) != 19 || result.Left[4] != Ambiguous || result.Pairs[3].Proof != ByContent {
		t.Errorf("%v, left: %v", result.Pairs, result.Left)
	}
}

// Another message of the same size is in the place of one that has moved to the end.
func TestASizeThatTwoNewMessagesHave(t *testing.T) {
	letters := ordinary(20, 100)
	moved := append(slices.Clone(letters), letters[10])
	moved[10] = letter{content: 99, header: 99, distinct: true, size: letters[10].size}
	result := match(t, &box{letters: letters}, &box{letters: moved}, Options{Sample: true})
	if len(result.Pairs) != 20 {
		t.Errorf("%d pairs, left: %v", len(result.Pairs), result.Left)
	}
}

// Headers that say nothing prove no sample.
func TestASampleOfEqualHeaders(t *testing.T) {
	letters := ordinary(20, 100)
	spoilAll(letters, func(l *letter) { l.header, l.distinct = 7, false })
	others := slices.Clone(letters)
	others[10].content = 99
	result := match(t, &box{letters: letters}, &box{letters: others}, Options{Sample: true})
	if len(result.Pairs) != 19 || result.Left[10] != Ambiguous {
		t.Errorf("%d pairs, left: %v", len(result.Pairs), result.Left)
	}
}

// Criterion: Whatever was shuffled, copied, cut off or delivered since, no old message is taken for another one.
func TestNoMessageIsTakenForAnother(t *testing.T) {
	for name, boxes := range map[string]func(*rand.Rand) (old, new *box, o Options){"all headers": drifted, "a sample": moved} {
		t.Run(name, func(t *testing.T) {
			found, messages := 0, 0
			for seed := range uint64(*boxesFlag) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					old, new, o := boxes(rand.New(rand.NewPCG(seed, 15)))
					found, messages = found+len(match(t, old, new, o).Pairs), messages+len(old.letters)
				})
				if t.Failed() {
					return
				}
			}
			t.Logf("%d of %d messages were found again", found, messages)
			if found*2 < messages {
				t.Error("few messages are found again")
			}
		})
	}
}

var boxesFlag = flag.Int("boxes", 5000, "pairs of boxes of TestNoMessageIsTakenForAnother")

// drifted returns what two servers might have of the same mail after both were used.
func drifted(r *rand.Rand) (old, new *box, o Options) {
	letters, others := universe(r)
	before, after := some(r, letters), disturb(r, some(r, letters))
	for range r.IntN(5) {
		after = slices.Insert(after, r.IntN(len(after)+1), others())
		before = slices.Insert(before, r.IntN(len(before)+1), others())
	}
	return spoiled(r, before, after, o)
}

// moved returns what a new server might have of the mail of the old one.
func moved(r *rand.Rand) (old, new *box, o Options) {
	before, others := universe(r)
	after := disturb(r, slices.Clone(before))
	if r.IntN(2) == 0 {
		after = some(r, after)
	}
	for range r.IntN(5) {
		after = append(after, others())
	}
	o.Sample = true
	return spoiled(r, before, after, o)
}

// universe returns letters, many of them alike, and what makes more of them.
func universe(r *rand.Rand) (letters []letter, others func() letter) {
	n := 1 + r.IntN(60)
	sizes, headers := 1+r.IntN(200), 1+r.IntN(2*n)
	others = func() letter {
		l := letter{content: r.Uint64(), header: r.Uint64(), distinct: true, size: 100 + int64(r.IntN(sizes))}
		if r.IntN(3) == 0 { // without a Message-ID, many are alike
			l.header, l.distinct = uint64(r.IntN(headers)), false
		}
		return l
	}
	for i := range n {
		l := others()
		if r.IntN(20) == 0 && i > 0 {
			l = letters[r.IntN(i)]
		}
		letters = append(letters, l)
	}
	return letters, others
}

// some returns most of the letters, and some of them twice.
func some(r *rand.Rand, letters []letter) (kept []letter) {
	for _, l := range letters {
		switch r.IntN(12) {
		case 0:
		case 1:
			kept = append(kept, l, l)
		default:
			kept = append(kept, l)
		}
	}
	return kept
}

// disturb changes the order of letters, or cuts some off.
func disturb(r *rand.Rand, letters []letter) []letter {
	swap := func(i, j int) { letters[i], letters[j] = letters[j], letters[i] }
	switch n := len(letters); {
	case n == 0:
	case r.IntN(4) == 0:
		r.Shuffle(n, swap)
	case r.IntN(3) == 0:
		swap(r.IntN(n), r.IntN(n))
	case r.IntN(2) == 0:
		return letters[:r.IntN(n+1)]
	}
	return letters
}

// spoiled makes boxes of letters, whose sizes and answers are not always of use.
func spoiled(r *rand.Rand, before, after []letter, o Options) (old, new *box, _ Options) {
	if r.IntN(3) == 0 {
		spoilAll(after, func(l *letter) { l.size += 27 })
	}
	for _, letters := range [][]letter{before, after} {
		if r.IntN(4) == 0 && len(letters) > 0 {
			letters[r.IntN(len(letters))].unread = true
		}
	}
	if r.IntN(3) == 0 {
		o.Offset = int64(r.IntN(3)) * 27
	}
	return &box{letters: before}, &box{letters: after}, o
}
