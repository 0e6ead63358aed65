package guard

// A requirement is a token, or a place among a limited number of attempts, that an
// attempt needs.
type requirement struct {
	bucket Bucket
	key    key
	rate   Rate  // zero: no token
	limit  int32 // attempts under way at once; zero: unlimited
}

// A subject is who attempts what.
type subject struct {
	limits  *Config
	from    origin
	trusted bool
	account key
	token   bool // a bearer token that cannot be a password
	sieve   bool // of ManageSieve
}

func (s *subject) pair() key { return s.account.with(s.from.network) }

// sessionsOf returns the key by which sessions are counted. Those of ManageSieve count apart:
// clients open one for each script, beside those of IMAP.
func (s *subject) sessionsOf(sec secret) key {
	if s.sieve {
		return s.pair().with(key(sipHash(sec, ofSieve, "")))
	}
	return s.pair()
}

// A demand is everything an attempt requires, except a slot at the backends.
type demand struct {
	subject
	history
	tier         Tier
	requirements [7]requirement
	count        int
}

func (d *demand) require(r requirement) {
	d.requirements[d.count] = r
	d.count++
}

func (d *demand) all() []requirement { return d.requirements[:d.count] }
