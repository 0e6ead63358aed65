package ledger

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"postern/proxy"
)

// A Migration is what is known of an account's way from an old POP3 server to Postern's
// own POP3. Each fact has its time, to the second. A fact that is zero is not known, which
// says nothing for an account and nothing against it.
type Migration struct {
	Backend string    `json:"backend,omitempty"`   // of the last POP3 session; "": not known
	Mode    string    `json:"mode,omitempty"`      // proxy.Mode... of the last POP3 session; "": not known
	Since   time.Time `json:"mode_since,omitzero"` // the end of the first session of those in Mode without another mode between
	Learnt  Learnt    `json:"learnt,omitzero"`     // zero: never
	Compare Compared  `json:"compared,omitzero"`   // by uidl compare; zero: never
	Shadow  Compared  `json:"shadow,omitzero"`     // after a session with the old server; zero: never
	Failed  Failure   `json:"failed,omitzero"`     // zero: nothing has failed since the last time that it was done
	Stores  time.Time `json:"same_store,omitzero"` // when a comparison found that what the bridge has deleted was deleted on the old server as well; zero: not known

	// What clients have done since the last of Learnt, Compare and Shadow, in messages.
	KeptOld    int `json:"kept_old,omitempty"`    // downloaded from the old server and left there
	DeletedOld int `json:"deleted_old,omitempty"` // deleted on the old server
	KeptNew    int `json:"kept_new,omitempty"`    // downloaded from the bridge and left there
	DeletedNew int `json:"deleted_new,omitempty"` // deleted by the bridge
}

// Learnt says that the unique-ids of an old server were recorded.
type Learnt struct {
	At       time.Time `json:"at"`
	By       string    `json:"by"`       // By...
	Messages int       `json:"messages"` // that the old server has shown
	Found    int       `json:"found"`    // of Messages: those whose unique-id is carried over
}

// The values of Learnt.By.
const (
	BySession = "session"          // learn_from, at a session of the account
	ByOld     = "import --old"     // and the following: uidl import
	ByMaildir = "import --maildir" //
	ByCSV     = "import --csv"     //
	ByExport  = "import"           // from what uidl export has written
)

// Compared is the outcome of a comparison of the maildrop on an old server with INBOX as
// Postern shows it. Numbers are of messages.
type Compared struct {
	At       time.Time `json:"at"`
	Result   string    `json:"result"`             // proxy.ShadowClean, ShadowDiffers, ShadowUnproven, ShadowNoUIDLs or ShadowNotCopied
	Recorded bool      `json:"recorded,omitempty"` // the account had a record; false: its unique-ids were computed
	Messages int       `json:"messages"`           // on the old server
	Late     int       `json:"late,omitempty"`     // of Messages: newer than all in INBOX, and not there
	Unproven int       `json:"unproven,omitempty"`
	Missing  int       `json:"missing,omitempty"` // of Messages: not in INBOX
	Extra    int       `json:"extra,omitempty"`   // only in INBOX
	UIDLs    int       `json:"uidls,omitempty"`   // with another unique-id
	Sizes    int       `json:"sizes,omitempty"`   // with another size
	Order    int       `json:"order,omitempty"`   // in another place
}

// A Failure says that something was tried and did not come to a result.
type Failure struct {
	At   time.Time `json:"at"`
	Step string    `json:"step"` // StepLearn or StepCompare
	Text string    `json:"text"` // of the error, printable, at most maxFailure octets
}

// The values of Failure.Step.
const (
	StepLearn   = "learn"
	StepCompare = "compare"
)

// shadowFirst is how long before the end of a session is recorded the comparison of that
// session may be: both are recorded at about the same time, in any order.
const shadowFirst = 2 * time.Second

// maxFailure bounds Failure.Text, and maxBackend Migration.Backend.
const maxFailure, maxBackend = 160, 64

// NewFailure returns the Failure of a step. The text of err may have what a server has sent.
func NewFailure(at time.Time, step string, err error) Failure {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r <= 0x9f || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, err.Error())
	return Failure{at, step, cut(text, maxFailure)}
}

// cut returns the beginning of s, of at most n octets, that is whole in UTF-8.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// migration returns what the end of a POP3 session says.
func (s Session) migration(at time.Time, backend string) Migration {
	m := Migration{Backend: cut(backend, maxBackend), Mode: s.Mode, Since: seconds(at)}
	switch s.Mode {
	case "":
		return Migration{}
	case proxy.ModeBridge:
		m.KeptNew, m.DeletedNew = max(0, s.Kept), max(0, s.Deleted)
	default:
		m.KeptOld, m.DeletedOld = max(0, s.Kept), max(0, s.Deleted)
	}
	return m
}

// merge adds what came later.
func (m *Migration) merge(later Migration) {
	if later.Backend != "" {
		m.Backend = later.Backend
	}
	if later.Shadow.Result == proxy.ShadowNoUIDLs && m.proven() {
		later.Shadow = Compared{} // a client that asks for none says nothing of another one's
	}
	if since := later.Since.Sub(m.Shadow.At); later.Mode == proxy.ModeShadow && since >= 0 && since < shadowFirst && m.Shadow.Result != proxy.ShadowNoUIDLs {
		later.KeptOld, later.DeletedOld = 0, 0
	}
	if later.Mode != "" {
		if later.Mode != m.Mode {
			m.Mode, m.Since = later.Mode, later.Since
		}
		if later.Mode == proxy.ModeBridge {
			m.Failed = Failure{} // the account is served
		}
	}
	if later.Compare.Result == proxy.ShadowClean && later.Compare.Extra == 0 && m.DeletedNew > 0 {
		m.Stores = later.Compare.At
	}
	if !later.Stores.IsZero() {
		m.Stores = later.Stores
	}
	if later.learns() {
		m.KeptOld, m.DeletedOld, m.KeptNew, m.DeletedNew = 0, 0, 0, 0
	}
	if !later.Learnt.At.IsZero() {
		m.Learnt, m.Failed = later.Learnt, Failure{}
	}
	if !later.Compare.At.IsZero() {
		m.Compare = later.Compare
	}
	if !later.Shadow.At.IsZero() {
		m.Shadow, m.Failed = later.Shadow, Failure{}
	}
	if !later.Failed.At.IsZero() {
		m.Failed = later.Failed
	}
	m.KeptOld, m.KeptNew = add(m.KeptOld, later.KeptOld), add(m.KeptNew, later.KeptNew)
	m.DeletedOld, m.DeletedNew = add(m.DeletedOld, later.DeletedOld), add(m.DeletedNew, later.DeletedNew)
}

// proven reports whether m has a fact that says something of unique-ids, or a failure to get one.
func (m *Migration) proven() bool {
	return m.learns() || !m.Failed.At.IsZero()
}

// learns reports whether m has a fact after which messages are counted anew.
func (m *Migration) learns() bool {
	return !m.Learnt.At.IsZero() || !m.Compare.At.IsZero() || !m.Shadow.At.IsZero() && m.Shadow.Result != proxy.ShadowNoUIDLs
}

func add(a, b int) int { return min(a+b, math.MaxInt32) }

// seconds returns t as it is read again after it was stored.
func seconds(t time.Time) time.Time {
	if t.IsZero() || t.Unix() <= 0 || t.Unix() > math.MaxUint32 {
		return time.Time{}
	}
	return time.Unix(t.Unix(), 0).UTC()
}

// shadowed returns what a comparison says; the zero Migration if nothing was compared.
func shadowed(at time.Time, e proxy.ShadowCompared) Migration {
	switch e.Result {
	case proxy.ShadowFailed:
		return Migration{Failed: NewFailure(seconds(at), StepCompare, orUnknown(e.Err))}
	case proxy.ShadowClean, proxy.ShadowDiffers, proxy.ShadowUnproven, proxy.ShadowNoUIDLs, proxy.ShadowNotCopied:
		return Migration{Shadow: Compared{
			At: seconds(at), Result: e.Result, Recorded: e.Learnt > 0, Messages: max(0, e.Messages), Late: e.Late, Unproven: e.Unproven,
			Missing: e.Missing, Extra: e.Extra, UIDLs: e.UIDLs, Sizes: e.Sizes, Order: e.Order,
		}}
	}
	return Migration{}
}

// learnt returns what the end of a learning says.
func learnt(at time.Time, e proxy.UIDLsLearnt) Migration {
	if e.Err != nil {
		return Migration{Failed: NewFailure(seconds(at), StepLearn, e.Err)}
	}
	return Migration{Learnt: Learnt{seconds(at), BySession, e.Messages, e.Found}}
}

type unknownError struct{}

func (unknownError) Error() string { return "no reason was given" }

func orUnknown(err error) error {
	if err == nil {
		return unknownError{}
	}
	return err
}

// The places in these lists are stored: append, and change nothing.
var (
	storedModes   = []string{"", proxy.ModeBridge, proxy.ModePassthrough, proxy.ModeShadow}
	storedBys     = []string{"", BySession, ByOld, ByMaildir, ByCSV, ByExport}
	storedResults = []string{"", proxy.ShadowClean, proxy.ShadowDiffers, proxy.ShadowUnproven, proxy.ShadowNoUIDLs, proxy.ShadowNotCopied}
	storedSteps   = []string{"", StepLearn, StepCompare}
)

// A coder writes the fields of a Migration as numbers of variable length, or reads them:
// one list of the fields serves both.
type coder struct {
	b       []byte
	reading bool
	wrong   bool
}

func (c *coder) number(n uint64) uint64 {
	if !c.reading {
		c.b = binary.AppendUvarint(c.b, n)
		return n
	}
	n, size := binary.Uvarint(c.b)
	if size <= 0 {
		c.wrong = true
		return 0
	}
	c.b = c.b[size:]
	return n
}

func (c *coder) count(n *int) {
	v := c.number(uint64(max(0, min(*n, math.MaxInt32))))
	c.wrong = c.wrong || v > math.MaxInt32
	*n = int(min(v, math.MaxInt32))
}

func (c *coder) time(t *time.Time) {
	v := uint64(0)
	if s := seconds(*t); !s.IsZero() {
		v = uint64(s.Unix())
	}
	v = c.number(v)
	if c.wrong = c.wrong || v > math.MaxUint32; c.wrong || v == 0 {
		*t = time.Time{}
		return
	}
	*t = time.Unix(int64(v), 0).UTC()
}

func (c *coder) word(s *string, words []string) {
	v := c.number(uint64(max(0, slices.Index(words, *s))))
	if v >= uint64(len(words)) {
		c.wrong = true
		v = 0
	}
	*s = words[v]
}

func (c *coder) text(s *string, most int) {
	*s = cut(*s, most)
	n := c.number(uint64(len(*s)))
	switch {
	case !c.reading:
		c.b = append(c.b, *s...)
	case c.wrong || n > uint64(most) || n > uint64(len(c.b)):
		c.wrong = true
	default:
		*s, c.b = string(c.b[:n]), c.b[n:]
	}
}

func (c *coder) compared(m *Compared) {
	c.time(&m.At)
	if m.At.IsZero() {
		*m = Compared{} // most accounts have none: one octet
		return
	}
	recorded := 0
	if m.Recorded {
		recorded = 1
	}
	c.word(&m.Result, storedResults)
	c.count(&recorded)
	m.Recorded = recorded > 0
	for _, n := range []*int{&m.Messages, &m.Late, &m.Unproven, &m.Missing, &m.Extra, &m.UIDLs, &m.Sizes, &m.Order} {
		c.count(n)
	}
}

func (c *coder) migration(m *Migration) {
	c.text(&m.Backend, maxBackend)
	c.word(&m.Mode, storedModes)
	c.time(&m.Since)
	if c.time(&m.Learnt.At); !m.Learnt.At.IsZero() {
		c.word(&m.Learnt.By, storedBys)
		c.count(&m.Learnt.Messages)
		c.count(&m.Learnt.Found)
	} else {
		m.Learnt = Learnt{}
	}
	c.compared(&m.Compare)
	c.compared(&m.Shadow)
	if c.time(&m.Failed.At); !m.Failed.At.IsZero() {
		c.word(&m.Failed.Step, storedSteps)
		c.text(&m.Failed.Text, maxFailure)
	} else {
		m.Failed = Failure{}
	}
	c.time(&m.Stores)
	c.count(&m.KeptOld)
	c.count(&m.KeptNew)
	c.count(&m.DeletedNew)
	if m.DeletedOld > 0 || len(c.b) > 0 && c.reading { // an entry without it ends here
		c.count(&m.DeletedOld)
	}
}

// Note adds what is known of an account to its entry of POP3. A running Ledger must have
// written all before.
func Note(ctx context.Context, store Store, account string, m Migration) error {
	return store.UpdateAll(ctx, []string{key(id{account, proxy.POP3})}, func(_ string, old []byte) ([]byte, error) {
		return update(old, pending{Usage: Usage{Migration: m}})
	})
}

// Disprove removes what was learnt and compared of accounts, because their unique-ids
// are not recorded any more. What served their last session stays.
func Disprove(ctx context.Context, store Store, match func(account string) bool) error {
	var keys []string
	err := Entries(ctx, store, "", func(e Entry) error {
		if e.Protocol == proxy.POP3 && e.Migration != nil && match(e.Account) {
			keys = append(keys, key(id{e.Account, e.Protocol}))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for some := range slices.Chunk(keys, batch) {
		err := store.UpdateAll(ctx, some, func(_ string, old []byte) ([]byte, error) {
			var u Usage
			if u.decode(old) != nil {
				return old, nil
			}
			u.Migration = Migration{Backend: u.Migration.Backend, Mode: u.Migration.Mode, Since: u.Migration.Since}
			if u == (Usage{}) {
				return nil, nil
			}
			return u.encode(), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
