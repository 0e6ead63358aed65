package guard

import (
	"net/netip"
	"reflect"
	"time"
)

// A Rate is a budget: Burst at once, and one more after every Every.
type Rate struct {
	Burst int
	Every time.Duration
}

// Config says how much a Guard allows. A zero field takes its value from
// DefaultConfig.
type Config struct {
	// What one attempt may take, at the most. An attempt from a known-good
	// network of its account, one that it logged in from within KnownFor,
	// needs a token of Known only. All others need one of Pair, of Network and of
	// Account, and those from an area that is new to the account, an IPv4 /16 or
	// IPv6 /32, one of each wider network as well.
	Known     Rate // wrong passwords for one account from a known-good network
	Pair      Rate // for one account from one network
	Network   Rate // from one network, an IPv4 address or IPv6 /64; grows with the accounts that use it
	Account   Rate // for one account from anywhere, in each of four pools: area known or not, network fresh or used
	Network24 Rate // from an IPv4 /24, for accounts that are new to the area
	Network56 Rate // from an IPv6 /56, likewise
	Network48 Rate // from an IPv6 /48, likewise
	OAuth     Rate // refused bearer tokens of more than 256 octets from one network: they spend none of the above; shorter ones are passwords

	Sessions   int           // of one account from one network, at once
	Delay      time.Duration // from an attempt to its refusal, give or take a tenth
	DryRun     bool          // decide and report, but let all attempts through
	StrictNIST bool          // after 100 wrong passwords in a row, only known-good networks may try

	// Services has, by name of the service, what is different there. Only the
	// fields above are looked at; zeros, and false, are those of the whole.
	Services map[string]Config

	Connections           int // open at once, from anywhere
	Reserve               int // of them, for networks that are known-good for an account, once the guard has learnt; zero: a fifth
	ConnectionsPerNetwork int // logged in or not; 20 more for each account that uses the network
	LoginsPerNetwork      int // of them, not logged in; 4 more for each such account

	Attempts int           // at the backends at once; three quarters of them for strangers, all while the guard learns
	Wait     time.Duration // for attempts under way, counted from when the connection was accepted; 5 s at least, or Wait if that is less

	Trusted []netip.Prefix // webmail, monitoring: no limit per network; the account's stays

	Learning time.Duration    // while budgets of networks are five times as large, after a start without memory; negative: never
	Entries  int              // budgets in use that are remembered: 60 octets each
	KnownFor time.Duration    // a network stays known-good after an account's last login from there
	Pairs    int              // known-good networks that are remembered, of all accounts: 110 octets each
	Now      func() time.Time // nil: time.Now
}

// DefaultConfig returns the values used where a Config has zeros.
func DefaultConfig() Config {
	return Config{
		Known:     Rate{Burst: 20, Every: 10 * time.Minute},
		Pair:      Rate{Burst: 5, Every: 30 * time.Minute},
		Network:   Rate{Burst: 20, Every: 30 * time.Minute},
		Account:   Rate{Burst: 8, Every: time.Hour},
		Network24: Rate{Burst: 60, Every: 10 * time.Minute},
		Network56: Rate{Burst: 40, Every: 15 * time.Minute},
		Network48: Rate{Burst: 60, Every: 10 * time.Minute},
		OAuth:     Rate{Burst: 100, Every: 10 * time.Second},

		Sessions: 50,
		Delay:    2 * time.Second,

		Connections:           10_000,
		ConnectionsPerNetwork: 200,
		LoginsPerNetwork:      40,
		Attempts:              1024,
		Wait:                  30 * time.Second,
		Learning:              72 * time.Hour,
		KnownFor:              30 * 24 * time.Hour,
		Entries:               1 << 19,
		Pairs:                 3 << 18,
		Now:                   time.Now,
	}
}

// withDefaults returns c with d's values for its zeros.
func (c Config) withDefaults(d Config) Config {
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
