package guard

import (
	"net/netip"
	"reflect"
	"time"
)

// A Rate is a token bucket: it has at most Burst tokens and gets one more after every
// Every, which must be positive. A Burst of 0 is no limit.
type Rate struct {
	Burst int
	Every time.Duration
}

// A Config has the limits of a Guard. There are no defaults here: operators have those of
// package configs. Zero is an ordinary value, except where a comment says otherwise.
type Config struct {
	// The token buckets of guesses. A password from a known-good network of the account
	// needs a token of Known only. Any other attempt needs a token of Pair, Network and
	// Account. If the area, an IPv4 /16 or IPv6 /32, is also new to the account, the
	// attempt needs a token of each wider network, too.
	Known     Rate // of an account, for one known-good network
	Pair      Rate // of an account, for one other network
	Network   Rate // of an IPv4 address or IPv6 /64; larger if accounts use the network
	Account   Rate // of an account, one for each Tier but KnownGood
	Network24 Rate // of an IPv4 /24
	Network56 Rate // of an IPv6 /56
	Network48 Rate // of an IPv6 /48
	OAuth     Rate // of a network, or of an account for one known-good network, for bearer tokens of more than 256 octets, which need no other tokens

	Sessions   int           // of one account from one network
	Delay      time.Duration // from an attempt to its refusal, with a jitter of a tenth
	DryRun     bool          // decide and report, but refuse no attempt
	StrictNIST bool          // after 100 wrong passwords in a row, only attempts from known-good networks

	// Services has other limits by name of the service. Only the fields above are used.
	// A field that is zero, or false, has the value of the Guard's Config.
	Services map[string]Config

	Connections           int // in all
	Reserve               int // of Connections: not for strangers, except while the guard learns
	ConnectionsPerNetwork int // and 20 more for each account that uses the network
	LoginsPerNetwork      int // connections that are not logged in, and 4 more for each such account

	Attempts int           // at the backends at once; strangers may have three quarters, or all while the guard learns
	Wait     time.Duration // of an attempt for other attempts, from the accept of its connection; but at least 5 s, or Wait if that is less

	Trusted []netip.Prefix // webmail, monitoring: no limits per network, only those per account

	Learning time.Duration    // after a start without a snapshot: the budgets of networks are five times as large
	Entries  int              // token buckets in memory, of 60 octets each
	KnownFor time.Duration    // a network stays known-good for so long after the account's last login; at most ten years
	Pairs    int              // pairs of an account and a known network in memory, of 110 octets each
	Now      func() time.Time // nil: time.Now
}

// inherit returns c with d's values in fields that are zero.
func (c Config) inherit(d Config) Config {
	fill(reflect.ValueOf(&c).Elem(), reflect.ValueOf(d))
	return c
}

func fill(fields, defaults reflect.Value) {
	for i := range fields.NumField() {
		switch field := fields.Field(i); {
		case field.Kind() == reflect.Struct:
			fill(field, defaults.Field(i))
		case field.IsZero():
			field.Set(defaults.Field(i))
		}
	}
}
