package ledger

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// A Class says what stands for an account, or against it, if the old POP3 server is
// switched off now.
type Class string

// The classes of accounts against which nothing stands.
const (
	Off       Class = "off"           // policy.file has switched POP3 off
	Bridged   Class = "bridged"       // Postern serves it already
	Clean     Class = "shadow_clean"  // the last comparison after a session was clean
	Equal     Class = "compared"      // uidl compare found both equal, with a record
	Computed  Class = "computed"      // uidl compare found both equal, without a record: the format gives the unique-ids
	Taken     Class = "learnt"        // all unique-ids are recorded
	KeepsNone Class = "keeps_nothing" // clients delete what they download, and the maildrop was empty after the last session
	NoUIDLs   Class = "no_uidls"      // the client does not ask for unique-ids
)

// The classes of accounts against which something stands.
const (
	NotLearnt   Class = "not_learnt"   // learning or comparing has failed, or learning has not carried all over
	Differs     Class = "differs"      // clients would notice a difference
	NotCopied   Class = "not_copied"   // messages are on the old server alone
	NotCompared Class = "not_compared" // a comparison was not completed
	Changed     Class = "changed"      // clients have downloaded from the old server, or deleted there, since the last fact
	TooOld      Class = "too_old"      // the last fact is older than the period
	NotKnown    Class = "not_known"    // there is no fact
)

// Classes returns the classes, first those against which nothing stands.
func Classes() (fine, against []Class) {
	return []Class{Bridged, Clean, Equal, Computed, Taken, KeepsNone, NoUIDLs, Off},
		[]Class{NotKnown, NotLearnt, Differs, NotCopied, NotCompared, Changed, TooOld}
}

// Words returns a class in words.
func (c Class) Words() string {
	switch c {
	case Off:
		return "POP3 is off by policy.file"
	case Bridged:
		return "served by Postern's own POP3 already"
	case Clean:
		return "compared after a session, clean"
	case Equal:
		return "compared, equal, with recorded unique ids"
	case Computed:
		return "compared, equal, with computed unique ids"
	case Taken:
		return "unique ids learnt"
	case KeepsNone:
		return "keeps no mail on the old server"
	case NoUIDLs:
		return "the client does not ask for unique ids"
	case NotLearnt:
		return "unique ids not learnt, or not all"
	case Differs:
		return "clients would notice differences"
	case NotCopied:
		return "messages are on the old server alone"
	case NotCompared:
		return "comparison not completed"
	case Changed:
		return "messages downloaded from the old server, or deleted there, since"
	case TooOld:
		return "learnt or compared too long ago"
	}
	return "not known"
}

// Conditions are what a judgement depends on beside the account.
type Conditions struct {
	Now   time.Time
	Since string                    // the first day of the period; accounts active on it or later are judged
	Off   func(account string) bool // whether policy.file has switched POP3 off; nil: for none
	Learn bool                      // pop3.learn_from is set
}

// A Judgement says what becomes of an account when the old server is switched off now.
type Judgement struct {
	Class   Class  `json:"class"`
	Against bool   `json:"against"`           // something stands against switching the old server off
	Reason  string `json:"reason,omitempty"`  // with Against
	Effect  string `json:"effect,omitempty"`  // with Against: what would happen
	Again   *int   `json:"again,omitempty"`   // messages that clients would download again, at most; nil: not known, or none
	Missing int    `json:"missing,omitempty"` // messages that only the old server has
}

// Active reports whether an account has used POP3 in the period: it has logged in, or its
// unique-ids could not be learnt, so that it could not log in.
func (c Conditions) Active(e Entry) bool {
	return e.Last != "" && e.Last >= c.Since ||
		e.Migration != nil && !e.Migration.Failed.At.IsZero() && Day(e.Migration.Failed.At) >= c.Since
}

// Judge judges an account by its entry of POP3.
func (c Conditions) Judge(e Entry) Judgement {
	if c.Off != nil && c.Off(e.Account) {
		return Judgement{Class: Off}
	}
	m := e.Migration
	if m == nil {
		m = &Migration{}
	}
	m = m.until(c.Now)
	if m.Mode == proxy.ModeBridge && m.Failed.At.IsZero() {
		return Judgement{Class: Bridged}
	}
	if fine, ok := c.fine(e, m); ok {
		return Judgement{Class: fine}
	}
	j := c.against(e, m)
	j.Against = true
	j.Effect = c.effect(m, j)
	return j
}

// until returns m without facts that are later than now: the clock was wrong, and a fact with a
// wrong date would outweigh those that come after it.
func (m *Migration) until(now time.Time) *Migration {
	known := *m
	if known.Learnt.At.After(now) {
		known.Learnt = Learnt{}
	}
	if known.Stores.After(now) {
		known.Stores = time.Time{}
	}
	for _, d := range []*Compared{&known.Compare, &known.Shadow} {
		if d.At.After(now) {
			*d = Compared{}
		}
	}
	return &known
}

// fine returns the class of an account against which nothing stands.
func (c Conditions) fine(e Entry, m *Migration) (Class, bool) {
	last := m.last()
	if m.Failed.At.IsZero() || last.After(m.Failed.At) {
		switch {
		case m.Shadow.Result == proxy.ShadowNoUIDLs && !e.leaves() && c.fresh(m.Shadow.At) && m.Shadow.At.Equal(last):
			return NoUIDLs, true
		case m.Compare.clean() && !m.Compare.Recorded && c.fresh(m.Compare.At) && m.Compare.At.Equal(last):
			return Computed, true // messages that came since have unique-ids of the same format
		case m.KeptOld > 0 || m.DeletedOld > 0 && !c.fresh(m.Stores): // a copy still has what was deleted
		case m.Shadow.clean() && c.fresh(m.Shadow.At) && m.Shadow.At.Equal(last):
			return Clean, true
		case m.Compare.clean() && c.fresh(m.Compare.At) && m.Compare.At.Equal(last):
			return Equal, true
		case !m.Learnt.At.IsZero() && m.Learnt.Found >= m.Learnt.Messages && c.fresh(m.Learnt.At) && m.Learnt.At.Equal(last):
			return Taken, true
		}
	}
	// An empty maildrop has nothing to download again, unless INBOX is known to have other messages.
	if s := e.Sessions; m.Mode != "" && s != nil && s.Habit == HabitDeletes && s.Left != nil && *s.Left == 0 && !m.differed(last) {
		return KeepsNone, true
	}
	return "", false
}

// leaves reports whether clients leave mail on the server.
func (e Entry) leaves() bool {
	return e.Sessions != nil && slices.Contains([]string{HabitLeaves, HabitLater, HabitMixed}, e.Sessions.Habit)
}

// differed reports whether the last fact is a comparison that has found a difference.
func (m *Migration) differed(last time.Time) bool {
	return m.Shadow.Result == proxy.ShadowDiffers && m.Shadow.At.Equal(last) || m.Compare.Result == proxy.ShadowDiffers && m.Compare.At.Equal(last)
}

// clean reports whether clients would notice nothing, and all messages are in INBOX.
func (c Compared) clean() bool {
	return c.Result == proxy.ShadowClean && c.Late == 0 && c.Missing == 0 && c.UIDLs == 0 && c.Unproven == 0
}

// last returns the time of the last fact; zero: there is none.
func (m *Migration) last() (t time.Time) {
	for _, at := range []time.Time{m.Learnt.At, m.Compare.At, m.Shadow.At} {
		if at.After(t) {
			t = at
		}
	}
	return t
}

func (c Conditions) fresh(at time.Time) bool { return !at.IsZero() && Day(at) >= c.Since }

// against returns the class of an account of which fine has none, with the reason.
func (c Conditions) against(e Entry, m *Migration) Judgement {
	last := m.last()
	switch {
	case !m.Failed.At.IsZero() && !last.After(m.Failed.At):
		what, class := "learning the unique ids failed", NotLearnt
		if m.Failed.Step == StepCompare {
			what, class = "the comparison after a session failed", NotCompared
		}
		return Judgement{Class: class, Reason: fmt.Sprintf("%s on %s: %s", what, Day(m.Failed.At), m.Failed.Text), Again: e.left()}
	case last.IsZero():
		reason := "nothing is known of its unique ids: never learnt, never compared"
		if m.Mode == "" {
			reason = "no POP3 session has ended since Postern records what served it"
		}
		return Judgement{Class: NotKnown, Reason: reason, Again: e.left()}
	case m.Shadow.At.Equal(last):
		return c.differs(e, m, m.Shadow, "after a session")
	case m.Compare.At.Equal(last):
		return c.differs(e, m, m.Compare, "by uidl compare")
	case !c.fresh(last):
		return Judgement{Class: TooOld, Reason: "unique ids were learnt on " + Day(last), Again: e.left()}
	case m.Learnt.Found < m.Learnt.Messages:
		n := m.Learnt.Messages - m.Learnt.Found
		again := add(n, m.KeptOld)
		return Judgement{Class: NotLearnt, Reason: fmt.Sprintf("%d of %d unique ids were learnt on %s", m.Learnt.Found, m.Learnt.Messages, Day(last)), Again: &again}
	}
	return m.changed("since unique ids were learnt on " + Day(last))
}

// differs returns what a comparison says against an account.
func (c Conditions) differs(e Entry, m *Migration, d Compared, how string) Judgement {
	day := Day(d.At)
	switch {
	case d.Result == proxy.ShadowNotCopied:
		return Judgement{Class: NotCopied, Reason: fmt.Sprintf("INBOX had none of the %d messages on %s, %s", d.Messages, day, how), Missing: d.Messages}
	case d.Result == proxy.ShadowNoUIDLs && e.leaves():
		return Judgement{Class: NotCompared, Reason: fmt.Sprintf("a client did not ask for unique ids on %s, and mail is left on the old server: another client may keep them", day), Again: e.left()}
	case d.Missing > 0 || d.UIDLs > 0 || d.Result == proxy.ShadowDiffers:
		again := add(add(d.UIDLs, d.Extra), m.KeptOld)
		return Judgement{Class: Differs, Reason: fmt.Sprintf("differences on %s, %s: %s", day, how, d.differences()), Again: &again, Missing: d.Missing}
	case d.Unproven > 0 || d.Result == proxy.ShadowUnproven:
		again := add(d.Unproven, m.KeptOld)
		return Judgement{Class: NotCompared, Reason: fmt.Sprintf("%s could not be matched yet on %s, %s", messages(d.Unproven), day, how), Again: &again}
	case d.Late > 0:
		return Judgement{Class: NotCopied, Reason: fmt.Sprintf("the newest %d messages were not in INBOX yet on %s, %s", d.Late, day, how), Missing: d.Late}
	case !c.fresh(d.At):
		return Judgement{Class: TooOld, Reason: fmt.Sprintf("compared on %s, %s", day, how), Again: e.left()}
	}
	return m.changed("since the comparison of " + day)
}

// changed returns what stands against an account whose clients have used the old server since the last fact.
func (m *Migration) changed(since string) Judgement {
	did := "downloaded " + messages(m.KeptOld) + " from the old server"
	switch {
	case m.KeptOld == 0:
		did = "deleted " + messages(m.DeletedOld) + " on the old server, which INBOX may still have,"
	case m.DeletedOld > 0:
		did += fmt.Sprintf(" and deleted %d there", m.DeletedOld)
	}
	again := add(m.KeptOld, m.DeletedOld)
	return Judgement{Class: Changed, Reason: "its clients " + did + " " + since, Again: &again}
}

// differences lists the differences that are not zero.
func (c Compared) differences() string {
	var all []string
	for _, d := range []struct {
		n    int
		what string
	}{{c.Missing, "not in INBOX"}, {c.Extra, "only in INBOX"}, {c.UIDLs, "with another unique id"}, {c.Sizes, "with another size"}, {c.Order, "in another place"}} {
		if d.n > 0 {
			all = append(all, fmt.Sprintf("%d %s", d.n, d.what))
		}
	}
	if all == nil {
		return "of an unknown kind"
	}
	return strings.Join(all, ", ")
}

// left returns how many messages clients would download again at most, if no unique-id is
// the same; nil: not known.
func (e Entry) left() *int {
	if e.Sessions == nil {
		return nil
	}
	return e.Sessions.Left
}

// effect says what happens to an account that c.against has judged.
func (c Conditions) effect(m *Migration, j Judgement) string {
	var all []string
	if c.Learn && m.Mode != proxy.ModeBridge { // it is asked before the account is served
		all = append(all, "gets [SYS/TEMP] until pop3.learn_from is removed")
	}
	switch {
	case j.Again != nil && *j.Again > 0:
		all = append(all, fmt.Sprintf("may download %s again", messages(*j.Again)))
	case j.Again == nil && j.Missing == 0:
		all = append(all, "may download all its messages again")
	}
	if j.Missing > 0 {
		all = append(all, fmt.Sprintf("no longer reaches %s that only the old server has", messages(j.Missing)))
	}
	if all == nil {
		return "may miss or download again messages that came since"
	}
	return strings.Join(all, "; ")
}

// messages returns a number of messages in words.
func messages(n int) string {
	if n == 1 {
		return "1 message"
	}
	return fmt.Sprintf("%d messages", n)
}

func were(n int) string {
	if n == 1 {
		return "1 message was"
	}
	return messages(n) + " were"
}

// freshForBack is how old a comparison may be for an account to move back: messages that
// were delivered since then are not known.
const freshForBack = 24 * time.Hour

// MovesBack reports whether an account that is Bridged can be moved back to the old
// server without a client that notices, and why, or why that is not known.
func (c Conditions) MovesBack(e Entry) (safe bool, why string) {
	m := e.Migration
	if m == nil {
		m = &Migration{}
	}
	m = m.until(c.Now)
	switch {
	case !m.Stores.IsZero() && c.fresh(m.Stores):
		return true, fmt.Sprintf("same store: on %s the old server no longer had what Postern had deleted", Day(m.Stores))
	case !m.Compare.clean() || m.Compare.At.Before(m.last()):
		return false, "not compared equal since the move"
	case m.Compare.Extra > 0:
		return false, fmt.Sprintf("%s only in INBOX on %s", were(m.Compare.Extra), Day(m.Compare.At))
	case m.KeptNew > 0 || m.DeletedNew > 0:
		return false, fmt.Sprintf("%s downloaded and %d deleted since the comparison of %s", messages(m.KeptNew), m.DeletedNew, Day(m.Compare.At))
	case c.Now.Sub(m.Compare.At) > freshForBack:
		return false, fmt.Sprintf("the comparison of %s is older than a day", Day(m.Compare.At))
	}
	return true, fmt.Sprintf("compared equal on %s, and nothing downloaded or deleted since", m.Compare.At.UTC().Format("2006-01-02 15:04"))
}

// The stages of an account on its way from an old POP3 server.
const (
	StageUnknown     = "unknown"     // no session has ended since what served it is recorded
	StagePassthrough = "passthrough" // the last session was on the old server
	StageShadow      = "shadow"      // the same, and the bridge compares
	StageLearnt      = "learnt"      // the last session was on the old server, and nothing stands against the bridge
	StageBridged     = "bridged"     // the last session was on the bridge
	StageGone        = "gone"        // no login in the period any more, or POP3 is off
)

// Stages returns the stages, the last one first.
func Stages() []string {
	return []string{StageGone, StageBridged, StageLearnt, StageShadow, StagePassthrough, StageUnknown}
}

// Stage returns the stage of an account; "" if it has never used POP3.
func (c Conditions) Stage(e Entry) string {
	active := c.Active(e)
	if !active && e.Last == "" {
		return ""
	}
	j := c.Judge(e)
	switch {
	case !active || j.Class == Off:
		return StageGone
	case j.Class == Bridged:
		return StageBridged
	case !j.Against:
		return StageLearnt
	case e.Migration == nil || e.Migration.Mode == "":
		return StageUnknown
	case e.Migration.Mode == proxy.ModeShadow:
		return StageShadow
	case e.Migration.Mode == proxy.ModePassthrough:
		return StagePassthrough
	}
	return StageUnknown
}
