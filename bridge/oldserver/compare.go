package oldserver

import (
	"context"
	"slices"
)

// A Finding is what Compare has found out about a message.
type Finding string

// What Compare finds. Clients that leave mail on the server notice all but Later,
// OtherSize and Moved.
const (
	OtherMessage Finding = "its unique id is that of another message here: clients would never download one of them"
	OtherUIDL    Finding = "it has another unique id here: clients download it again"
	NotHere      Finding = "it is not here"
	OtherContent Finding = "its content is another one here"
	NotCompared  Finding = "a server did not give what is to be compared"
	Later        Finding = "it is only here: it came later, or was deleted on the old server"
	OtherSize    Finding = "LIST shows another size here"
	Moved        Finding = "it is in another place of the order here"
)

// grave are the findings that clients notice, the worst first.
var grave = []Finding{OtherMessage, OtherUIDL, NotHere, OtherContent, NotCompared}

// A Comparison is the result of Compare.
type Comparison struct {
	Old      int             `json:"old"`  // messages of the old server
	New      int             `json:"new"`  // messages of the new one
	Same     int             `json:"same"` // messages that both show alike, but for size and order
	Findings map[Finding]int `json:"findings,omitempty"`
	Examples []Difference    `json:"examples,omitempty"` // up to 20, the worst first
}

// A Difference is a message that the servers show in different ways.
type Difference struct {
	Finding Finding `json:"finding"`
	Old     int     `json:"old,omitempty"`      // number on the old server; 0: not there
	New     int     `json:"new,omitempty"`      // number on the new one; 0: not there
	UIDL    string  `json:"uidl"`               // on the old server, if it is there
	NewUIDL string  `json:"new_uidl,omitempty"` // if another one
}

// Equal reports whether clients would notice nothing.
func (c *Comparison) Equal() bool {
	return !slices.ContainsFunc(grave, func(f Finding) bool { return c.Findings[f] > 0 })
}

// Weight returns how many messages clients would notice. One that is never downloaded
// counts a million times.
func (c *Comparison) Weight() (n int) {
	for _, f := range grave {
		n += c.Findings[f]
	}
	return n + c.Findings[OtherMessage]*1_000_000
}

// Compare compares what two servers show of one mailbox: unique ids, sizes, order and
// headers, and with bodies whole messages.
func Compare(ctx context.Context, old, new *Maildrop, bodies bool) (Comparison, error) {
	c := &comparer{old: old, new: new, result: Comparison{Old: len(old.Messages), New: len(new.Messages), Findings: make(map[Finding]int)}}
	c.pairUp()
	unclear, err := c.compareHeaders(ctx)
	if err != nil {
		return Comparison{}, err
	}
	if bodies {
		unclear = c.pairs
	}
	if err := c.compareContents(ctx, unclear); err != nil {
		return Comparison{}, err
	}
	if err := c.explainOthers(ctx); err != nil {
		return Comparison{}, err
	}
	for _, p := range c.pairs {
		if !p.bad {
			c.result.Same++
		}
	}
	slices.SortStableFunc(c.found, func(a, b Difference) int { return rank(a.Finding) - rank(b.Finding) })
	c.result.Examples = c.found[:min(len(c.found), maxExamples)]
	return c.result, nil
}

func rank(f Finding) int {
	if i := slices.Index(grave, f); i >= 0 {
		return i
	}
	return len(grave)
}

type comparer struct {
	old, new *Maildrop
	pairs    []*uidlPair
	onlyOld  []int // indexes
	onlyNew  []int
	found    []Difference
	result   Comparison
}

// A uidlPair has the indexes of messages with the same UIDL.
type uidlPair struct {
	old, new int
	bad      bool // a grave finding
}

func (c *comparer) find(f Finding, old, new int) {
	d := Difference{Finding: f}
	if new >= 0 {
		d.New, d.UIDL = new+1, c.new.Messages[new].UIDL
	}
	if old >= 0 {
		d.NewUIDL = d.UIDL
		d.Old, d.UIDL = old+1, c.old.Messages[old].UIDL
		if d.NewUIDL == d.UIDL {
			d.NewUIDL = ""
		}
	}
	c.result.Findings[f]++
	c.found = append(c.found, d)
}

// pairUp pairs the messages with the same UIDL; those that share one, in order.
func (c *comparer) pairUp() {
	at := make(map[string][]int)
	for j, m := range c.new.Messages {
		at[m.UIDL] = append(at[m.UIDL], j)
	}
	taken := make([]bool, len(c.new.Messages))
	for i, m := range c.old.Messages {
		some := at[m.UIDL]
		if m.UIDL == "" || len(some) == 0 {
			c.onlyOld = append(c.onlyOld, i)
			continue
		}
		c.pairs, taken[some[0]] = append(c.pairs, &uidlPair{old: i, new: some[0]}), true
		at[m.UIDL] = some[1:]
	}
	for j, done := range taken {
		if !done {
			c.onlyNew = append(c.onlyNew, j)
		}
	}
	last := -1
	for _, p := range c.pairs {
		if p.new < last {
			c.find(Moved, p.old, p.new)
		}
		last = max(last, p.new)
		if c.old.Messages[p.old].Size != c.new.Messages[p.new].Size {
			c.find(OtherSize, p.old, p.new)
		}
	}
}

func indexes(pairs []*uidlPair) (old, new []int) {
	for _, p := range pairs {
		old, new = append(old, p.old), append(new, p.new)
	}
	return old, new
}

// compareHeaders returns the pairs about which the headers say nothing.
func (c *comparer) compareHeaders(ctx context.Context) (unclear []*uidlPair, err error) {
	old, new := indexes(c.pairs)
	a, err := c.old.Headers(ctx, old)
	if err != nil {
		return nil, err
	}
	b, err := c.new.Headers(ctx, new)
	if err != nil {
		return nil, err
	}
	for k, p := range c.pairs {
		switch {
		case !a[k].Known || !b[k].Known:
			p.bad = true
			c.find(NotCompared, p.old, p.new)
		case a[k].Hash != b[k].Hash:
			p.bad = true
			c.find(OtherMessage, p.old, p.new)
		case a[k].Hash == 0:
			unclear = append(unclear, p)
		}
	}
	return unclear, nil
}

func (c *comparer) compareContents(ctx context.Context, pairs []*uidlPair) error {
	old, new := indexes(pairs)
	a, err := c.old.Contents(ctx, old)
	if err != nil {
		return err
	}
	b, err := c.new.Contents(ctx, new)
	if err != nil {
		return err
	}
	for k, p := range pairs {
		if p.bad || a[k] == b[k] && a[k] != (Sum{}) {
			continue
		}
		p.bad = true
		if a[k] == (Sum{}) || b[k] == (Sum{}) {
			c.find(NotCompared, p.old, p.new)
			continue
		}
		c.find(OtherContent, p.old, p.new)
	}
	return nil
}

// explainOthers finds the messages whose UIDL only one server shows by their headers.
func (c *comparer) explainOthers(ctx context.Context) error {
	matching, err := Match(ctx, c.old.Side().only(c.onlyOld), c.new.Side().only(c.onlyNew), Options{})
	if err != nil {
		return err
	}
	again := make(map[int]bool)
	for _, p := range matching.Pairs {
		again[p.New] = true
		c.find(OtherUIDL, c.onlyOld[p.Old], c.onlyNew[p.New])
	}
	for k, i := range c.onlyOld {
		switch matching.Left[k] {
		case Missing:
			c.find(NotHere, i, -1)
		case Unread, Ambiguous:
			c.find(NotCompared, i, -1)
		}
	}
	for k, j := range c.onlyNew {
		if !again[k] {
			c.find(Later, -1, j)
		}
	}
	return nil
}

// only returns the Side with some of the messages.
func (s Side) only(indexes []int) Side {
	places := func(some []int) (all []int) {
		for _, k := range some {
			all = append(all, indexes[k])
		}
		return all
	}
	part := Side{
		Headers:  func(ctx context.Context, some []int) ([]Header, error) { return s.Headers(ctx, places(some)) },
		Contents: func(ctx context.Context, some []int) ([]Sum, error) { return s.Contents(ctx, places(some)) },
	}
	for _, i := range indexes {
		part.Sizes = append(part.Sizes, s.Sizes[i])
	}
	return part
}
