package password

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/proxy"
)

// The limits of devices.
const (
	MaxDevices = 100 // of an account
	maxName    = 64  // octets of Device.Name
	maxLists   = 50  // Device.Networks, Device.Protocols
)

// The lengths of device passwords, in characters of 5 random bits.
const (
	Long  = 26 // 130 bits
	Short = 16 // 80 bits, for programs that cut a password off
)

// A Device is a password that Postern has made, for one program or machine of an account.
// The password itself is not stored, only a keyed hash of it.
type Device struct {
	Account   string         `json:"account"`
	ID        string         `json:"id"`   // unique in the account
	Name      string         `json:"name"` // the operator's
	Made      string         `json:"made"` // a day, 2026-11-29
	Protocols []string       `json:"protocols,omitempty"`
	Networks  []netip.Prefix `json:"networks,omitempty"`
	Expires   string         `json:"expires,omitempty"` // the last day; "": it does not expire
	LastUsed  string         `json:"last_used,omitempty"`
	Key       int            `json:"key_line"`          // of state.key_file, with whose key it was made; 0: that key is not there, and the password does not work
	Damaged   bool           `json:"damaged,omitempty"` // its record cannot be read: the ID is Postern's own, and nothing else is known
}

// A storedDevice is what the bucket has of a Device. Its account and its hash are the key
// in the bucket.
type storedDevice struct {
	ID, Name, Made             string
	Protocols                  []string
	Networks                   []netip.Prefix
	Expires, LastUsed, KeyMark string

	signed []byte // the fields as they were read
	seal   string // of them
}

// The value of a device is fields with a tab between them: it is read at each login, and
// encoding/json would take as long as all the rest. The last one is a seal of the others: who
// can write to the store, and has no key, cannot lift the limits of a device.
const deviceVersion, deviceFields = "2", 10

// encode returns the value of s in the bucket, at a key there.
func (s storedDevice) encode(key []byte, at string) []byte {
	networks := make([]string, len(s.Networks))
	for i, p := range s.Networks {
		networks[i] = p.String()
	}
	record := []byte(strings.Join([]string{
		deviceVersion, s.ID, s.Name, s.Made, strings.Join(s.Protocols, " "), strings.Join(networks, " "), s.Expires, s.LastUsed, s.KeyMark,
	}, "\t"))
	seal := sealOf(key, at, record)
	return append(append(record, '\t'), seal...)
}

// sealOf returns the seal of the fields of the device at a key in the bucket.
func sealOf(key []byte, at string, fields []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("seal of "))
	h.Write([]byte(at))
	h.Write([]byte{0})
	h.Write(fields)
	const octets = 16
	var sum [sha256.Size]byte
	return hex.EncodeToString(h.Sum(sum[:0])[:octets])
}

// sealedBy reports whether s was stored at a key in the bucket by who has key.
func (s storedDevice) sealedBy(key []byte, at string) bool {
	return hmac.Equal([]byte(s.seal), []byte(sealOf(key, at, s.signed)))
}

// open returns the device at a key in the bucket. Of a key that is not in Keys, the seal
// cannot be checked, and the password does not work.
func (d *Devices) open(at string, value []byte) (s storedDevice, err error) {
	if s, err = parseDevice(value); err != nil {
		return s, err
	}
	for _, key := range d.Keys {
		if keyMark(key) == s.KeyMark && !s.sealedBy(key, at) {
			return s, errDamaged
		}
	}
	return s, nil
}

func parseDevice(value []byte) (s storedDevice, err error) {
	f := strings.Split(string(value), "\t")
	if len(f) != deviceFields || f[0] != deviceVersion {
		return s, errDamaged
	}
	s = storedDevice{ID: f[1], Name: f[2], Made: f[3], Expires: f[6], LastUsed: f[7], KeyMark: f[8], seal: f[9]}
	s.signed = value[:bytes.LastIndexByte(value, '\t')]
	if f[4] != "" {
		s.Protocols = strings.Split(f[4], " ")
	}
	if f[5] == "" {
		return s, nil
	}
	for text := range strings.SplitSeq(f[5], " ") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return s, errDamaged
		}
		s.Networks = append(s.Networks, p)
	}
	return s, nil
}

var errDamaged = errors.New("the record is damaged, or of a newer Postern: postern password list shows it")

// damagedID is the ID of a device whose record at a key of the bucket cannot be read.
func damagedID(at string) string {
	sum := sha256.Sum256([]byte(at))
	return "damaged-" + hex.EncodeToString(sum[:4])
}

// A Bucket has the devices, by account and hash. Its methods are those of state.Bucket.
type Bucket interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
	Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error
}

// Devices are the device passwords of all accounts. They are a Check.
type Devices struct {
	Bucket Bucket
	Keys   [][]byte         // of the hashes, derived from state.key_file: new devices get the first one
	Now    func() time.Time // nil: time.Now; days are those of its time zone
}

func (d *Devices) today() string {
	now := d.Now
	if now == nil {
		now = time.Now
	}
	return now().Format(time.DateOnly)
}

// alphabet is Crockford's base 32: it has no i, l, o and u. What looks like a 0 or 1 is
// read as one.
const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// newText returns a password of n characters, and of 5 times as many random bits.
func newText(n int) []byte {
	text := make([]byte, n)
	_, _ = rand.Read(text) // it does not fail
	for i := range text {
		text[i] = alphabet[text[i]%32]
	}
	return text
}

// grouped returns a long text in groups of five characters and a dash between them, which
// Check does not count. A short one has no dashes: it is for programs that cut a password
// off.
func grouped(text []byte) []byte {
	if len(text) <= Short {
		return slices.Clone(text)
	}
	const group = 5
	var out []byte
	for rest := text; len(rest) > 0; {
		n := group
		if len(rest) < 2*group {
			n = len(rest)
		}
		if out = append(out, rest[:n]...); len(rest) > n {
			out = append(out, '-')
		}
		rest = rest[n:]
	}
	return out
}

// normalize writes what counts of typed to out: case, spaces and dashes do not count. It
// reports false if that is no device password.
func normalize(out *[Long]byte, typed []byte) (n int, ok bool) {
	const most = 4 * Long // with what does not count
	if len(typed) > most {
		return 0, false
	}
	for _, c := range typed {
		switch c {
		case ' ', '-':
			continue
		case 'o', 'O':
			c = '0'
		case 'i', 'I', 'l', 'L':
			c = '1'
		}
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if strings.IndexByte(alphabet, c) < 0 || n == len(out) {
			return 0, false
		}
		out[n] = c
		n++
	}
	return n, n == Long || n == Short
}

// index returns the key of a device in the bucket. Who has no key of state.key_file
// learns nothing about the password from it.
func index(key []byte, account string, text []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(account))
	h.Write([]byte{0})
	h.Write(text)
	var sum [sha256.Size]byte
	return prefix(account) + hex.EncodeToString(h.Sum(sum[:0]))
}

// prefix begins the keys of an account's devices. No account has a NUL.
func prefix(account string) string { return account + "\x00" }

// keyMark tells keys apart without revealing them.
func keyMark(key []byte) string {
	sum := sha256.Sum256(append([]byte("mark of "), key...))
	return hex.EncodeToString(sum[:4])
}

// Check implements Check: one hash and one look for each key, whether the account has
// devices or not. It sets l.Device if the password is right.
func (d *Devices) Check(ctx context.Context, l *proxy.Login) error {
	var text [Long]byte
	defer clear(text[:])
	n, ok := normalize(&text, l.Secret.Reveal())
	if !ok || strings.ContainsRune(l.Account, 0) {
		return wrong()
	}
	var found, by []byte
	var at string
	for _, key := range d.Keys {
		where := index(key, l.Account, text[:n])
		value, err := d.Bucket.Get(ctx, where)
		if err != nil {
			return unreadable(ctx, err)
		}
		if value != nil && found == nil {
			found, at, by = value, where, key
		}
	}
	if found == nil {
		return wrong()
	}
	s, err := parseDevice(found)
	if err == nil && !s.sealedBy(by, at) {
		err = errDamaged
	}
	if err != nil {
		return unreadable(ctx, err)
	}
	today := d.today()
	if err := s.limit(l.Client, today); err != nil {
		return err
	}
	l.Device = s.ID
	if s.LastUsed < today {
		d.noteUse(ctx, by, at, today)
	}
	return nil
}

// unreadable is the refusal if it is not known whether there is such a device.
func unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("device passwords: %w", err))
}

// limit returns the refusal of a right password that may not be used by the client today,
// or nil.
func (s storedDevice) limit(c proxy.Client, today string) error {
	addr := c.Addr.Addr().Unmap().WithZone("")
	var err error
	switch {
	case s.Expires != "" && today > s.Expires:
		err = fmt.Errorf("device %s: its last day was %s", s.ID, s.Expires)
	case s.Protocols != nil && !slices.Contains(s.Protocols, c.Protocol):
		err = fmt.Errorf("device %s: not for %s", s.ID, c.Protocol)
	case s.Networks != nil && !slices.ContainsFunc(s.Networks, func(p netip.Prefix) bool { return p.Contains(addr) }):
		err = fmt.Errorf("device %s: not from this network", s.ID)
	default:
		return nil
	}
	return &proxy.Refusal{Reason: proxy.Suspended, Verified: true, Err: err}
}

// noteUse stores the day of the last use. That it cannot be stored does not refuse a
// login: the store reports its errors itself.
func (d *Devices) noteUse(ctx context.Context, key []byte, at, today string) {
	const patience = time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = d.Bucket.Update(ctx, at, func(old []byte) ([]byte, error) {
		s, err := d.open(at, old)
		if old == nil || err != nil {
			return old, nil // removed meanwhile: it stays so
		}
		s.LastUsed = max(s.LastUsed, today)
		return s.encode(key, at), nil
	})
}

// A deviceLogin is what is kept of the Login of a session.
type deviceLogin struct {
	Account, Device string
	Client          proxy.Client
}

var errRemoved = errors.New("the device was removed")

// stands returns nil if the device of a session is there still, and may be used there.
func (d *Devices) stands(ctx context.Context, l deviceLogin) error {
	var found *storedDevice
	var damaged error // of a device that may be the one
	err := d.scan(ctx, prefix(l.Account), func(_, _ string, s storedDevice, err error) error {
		if err != nil {
			damaged = err
		} else if s.ID == l.Device {
			found = &s
		}
		return nil
	})
	switch {
	case found != nil:
		return found.limit(l.Client, d.today())
	case err != nil || damaged != nil:
		return unreadable(ctx, cmp.Or(err, damaged))
	}
	return proxy.NewRefusal(proxy.Wrong, errRemoved)
}

// scan calls each for the devices whose keys in the bucket begin with from; with an error for
// those whose record cannot be read.
func (d *Devices) scan(ctx context.Context, from string, each func(account, at string, s storedDevice, damaged error) error) error {
	return d.Bucket.Scan(ctx, from, func(at string, value []byte) error {
		account, _, _ := strings.Cut(at, "\x00")
		s, err := d.open(at, value)
		return each(account, at, s, err)
	})
}

// List calls each for the devices of an account in the order of their IDs, or of all
// accounts if account is "".
func (d *Devices) List(ctx context.Context, account string, each func(Device) error) error {
	var all []Device // of one account
	flush := func() error {
		slices.SortFunc(all, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
		for _, one := range all {
			if err := each(one); err != nil {
				return err
			}
		}
		all = all[:0]
		return nil
	}
	from := ""
	if account != "" {
		from = prefix(account)
	}
	err := d.scan(ctx, from, func(account, at string, s storedDevice, damaged error) error {
		if len(all) > 0 && all[0].Account != account {
			if err := flush(); err != nil {
				return err
			}
		}
		if damaged != nil {
			all = append(all, Device{Account: account, ID: damagedID(at), Damaged: true})
		} else {
			all = append(all, d.device(account, s))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

func (d *Devices) device(account string, s storedDevice) Device {
	line := slices.IndexFunc(d.Keys, func(key []byte) bool { return keyMark(key) == s.KeyMark }) + 1
	return Device{
		Account: account, ID: s.ID, Name: s.Name, Made: s.Made, Protocols: s.Protocols, Networks: s.Networks, Expires: s.Expires,
		LastUsed: s.LastUsed, Key: line,
	}
}

// Add makes a password for a device of an account, of Long or Short characters, and
// returns it. It is shown once: the store has only its hash. wanted has the Name and the
// limits.
func (d *Devices) Add(ctx context.Context, wanted Device, length int) (Device, *proxy.Secret, error) {
	if len(d.Keys) == 0 {
		return Device{}, nil, ErrNoKey
	}
	if err := wanted.check(d.today()); err != nil {
		return Device{}, nil, err
	}
	n := 0
	count := func(string, string, storedDevice, error) error { n++; return nil } // a damaged one counts as well
	if err := d.scan(ctx, prefix(wanted.Account), count); err != nil {
		return Device{}, nil, err
	}
	if n >= MaxDevices {
		return Device{}, nil, fmt.Errorf("%s has %d devices, and may have no more: remove one with postern password remove", wanted.Account, n)
	}
	text := newText(length)
	defer clear(text)
	s := storedDevice{
		ID: string(newText(8)), Name: wanted.Name, Made: d.today(), Protocols: wanted.Protocols, Networks: wanted.Networks,
		Expires: wanted.Expires, KeyMark: keyMark(d.Keys[0]),
	}
	at := index(d.Keys[0], wanted.Account, text)
	err := d.Bucket.Update(ctx, at, func([]byte) ([]byte, error) { return s.encode(d.Keys[0], at), nil })
	if err != nil {
		return Device{}, nil, err
	}
	shown := grouped(text)
	defer clear(shown)
	return d.device(wanted.Account, s), proxy.NewSecret(shown), nil
}

// ErrNoKey is the error of Add without Keys.
var ErrNoKey = errors.New("device passwords need state.key_file")

// check returns an error if a new device cannot be as wanted.
func (d Device) check(today string) error {
	switch {
	case d.Account == "" || strings.ContainsRune(d.Account, 0):
		return errors.New("a device belongs to an account")
	case d.Name == "" || len(d.Name) > maxName:
		return fmt.Errorf("the name of the device has %d octets, and must have 1 to %d: it says what to remove when the device is gone", len(d.Name), maxName)
	case !utf8.ValidString(d.Name) || strings.ContainsFunc(d.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("the name of the device has characters that cannot be printed")
	case slices.ContainsFunc(d.Protocols, func(p string) bool { return p == "" || strings.ContainsAny(p, " \t") }):
		return errors.New("a protocol has no spaces")
	case len(d.Networks) > maxLists || len(d.Protocols) > maxLists:
		return fmt.Errorf("a device may have %d networks or protocols", maxLists)
	case d.Expires == "":
		return nil
	}
	if _, err := time.Parse(time.DateOnly, d.Expires); err != nil {
		return fmt.Errorf("%.20q is not a day: write the last day as 2027-12-31", d.Expires)
	}
	if d.Expires < today {
		return fmt.Errorf("the last day %s is past", d.Expires)
	}
	return nil
}

// ErrNoDevice is wrapped by the error of Remove if there is no such device.
var ErrNoDevice = errors.New("there is no such device")

// Remove removes the device of an account that has the ID, which may be one that cannot be
// read.
func (d *Devices) Remove(ctx context.Context, account, id string) (Device, error) {
	var found Device
	at := ""
	err := d.scan(ctx, prefix(account), func(_, where string, s storedDevice, damaged error) error {
		switch {
		case damaged == nil && s.ID == id:
			at, found = where, d.device(account, s)
		case damaged != nil && damagedID(where) == id:
			at, found = where, Device{Account: account, ID: id, Damaged: true}
		}
		return nil
	})
	switch {
	case err != nil:
		return Device{}, err
	case at == "":
		return Device{}, fmt.Errorf("%w of %s: postern password list %s has their ids", ErrNoDevice, account, account) // id may be a password
	}
	return found, d.Bucket.Update(ctx, at, func([]byte) ([]byte, error) { return nil, nil })
}

// Forget removes all devices of an account, also those that cannot be read, and returns
// their number.
func (d *Devices) Forget(ctx context.Context, account string) (int, error) {
	var all []string
	err := d.Bucket.Scan(ctx, prefix(account), func(at string, _ []byte) error {
		all = append(all, at)
		return nil
	})
	for _, at := range all {
		err = errors.Join(err, d.Bucket.Update(ctx, at, func([]byte) ([]byte, error) { return nil, nil }))
	}
	return len(all), err
}
