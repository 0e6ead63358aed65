package guard_test

import (
	"net/netip"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// The numbers of accounts.
const (
	victim   = 0      // the account that is attacked, if it is one; colleagues have the accounts from 0
	accounts = 10_000 // that are attacked
	mallory  = 20_000 // the attacker's own
	guest    = 30_000 // the first of the guests
)

var (
	home     = netip.MustParseAddr("198.51.100.7") // also the office
	moved    = netip.MustParseAddr("192.0.2.7")    // where the office was before
	phone    = netip.MustParseAddr("203.0.113.80")
	attacker = netip.MustParseAddr("45.9.20.1")
)

// A location returns the address of a client at its nth attempt.
type location func(n int) netip.Addr

func fixed(a netip.Addr) location { return func(int) netip.Addr { return a } }

// neighbour returns one of 256 other addresses of the home's provider.
func neighbour(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(n), 99}) }

// abroad returns 24 addresses of different providers, from which no account has logged in.
func abroad(n int) netip.Addr { return netip.AddrFrom4([4]byte{byte(130 + n), 20, 30, 40}) }

// bot returns one of a million addresses in different networks.
func bot(n int) netip.Addr {
	x := scatter(uint32(n))
	return netip.AddrFrom4([4]byte{32 + byte(x>>24)%64, byte(x >> 16), byte(x >> 8), byte(x)})
}

// nearBot returns one of 200 addresses of the home's provider.
func nearBot(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(n % 200), 8}) }

// rotating returns an address in each /64 of an IPv6 /48.
func rotating(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 9, byte(n >> 8), byte(n), 15: 1})
}

func right(from netip.Addr, account int) attempt { return attempt{from: from, account: account} }

// wrong returns the nth guess.
func wrong(from netip.Addr, account, n int) attempt {
	return attempt{from: from, account: account, password: uint32(n) + 1}
}

// guessing returns one client that guesses the victim's password.
func guessing(every time.Duration, from location) group {
	return group{name: "guesses", every: thin * every, attempt: func(_, n int) attempt { return wrong(from(n), victim, n) }}
}

// botnet returns size clients that each guess the victim's password every so often.
func botnet(size int, every time.Duration, from location) group {
	size /= thin
	c := guessing(every/time.Duration(thin*size), func(n int) netip.Addr { return from(n % size) })
	c.stream = true
	return c
}

// spraying returns one client that tries a password at all accounts, and then the next
// password.
func spraying(every time.Duration, from location) group {
	return group{name: "guesses", every: thin * every, attempt: func(_, n int) attempt {
		return wrong(from(n), n%accounts, n/accounts)
	}}
}

// owner returns the victim, who logs in.
func owner(where string, every time.Duration, from location) group {
	return group{
		name: "owner refused " + where, every: every, metric: refused,
		attempt: func(_, n int) attempt { return right(from(n), victim) },
	}
}

func atHome() group   { return owner("at home", 5*time.Minute, fixed(home)) }
func nearHome() group { return owner("elsewhere with the same provider", time.Hour, neighbour) }
func travelling() group {
	return owner("on a journey, each time with a new provider", time.Hour, abroad)
}

// colleagues returns n accounts that log in from the office's address.
func colleagues(n int, every time.Duration) group {
	return group{
		name: "colleagues refused", clients: n, every: every, metric: refused,
		attempt: func(client, _ int) attempt { return right(home, client) },
	}
}

// oldDevices returns n devices at the office's address that try last year's password
// each minute.
func oldDevices(n int, to time.Duration) group {
	return group{
		name: "old devices throttled", clients: n, every: time.Minute, to: to, metric: throttled,
		attempt: func(client, _ int) attempt { return wrong(home, client, 0) },
	}
}

// atMost sets the bound with Postern, and about what the other models should get.
func (g group) atMost(most int, about ...int) group {
	g.most = most
	copy(g.others[:], about)
	return g
}

// doubtfulAnswers are the answers to a wrong password that do not say so.
var doubtfulAnswers = func() (all []error) {
	for _, reason := range []proxy.Reason{proxy.Unavailable, proxy.TooMany, proxy.InUse, proxy.MailboxFull, proxy.Maintenance} {
		r := proxy.NewRefusal(reason, nil)
		r.Doubtful = true
		all = append(all, r)
	}
	return append(all, proxy.NewRefusal(proxy.Suspended, nil))
}()

// with gives the nth attempt the nth variant.
func (g group) with(variants ...variant) group {
	inner := g.attempt
	g.attempt = func(client, n int) attempt {
		a := inner(client, n)
		a.variant = variants[n%len(variants)]
		return a
	}
	return g
}

// allVariants returns each protocol with each mechanism and each answer.
func allVariants() (all []variant) {
	for _, answer := range append(doubtfulAnswers, nil) {
		for _, protocol := range []string{proxy.IMAP, proxy.POP3, proxy.Submission, proxy.Sieve} {
			for _, mechanism := range []string{wire.MechanismPlain, wire.MechanismXOAuth2, wire.MechanismOAuthBearer} {
				all = append(all, variant{protocol, mechanism, answer})
			}
		}
	}
	return all
}

// doubtful returns a variant for each doubtful answer.
func doubtful() (all []variant) {
	for _, answer := range doubtfulAnswers {
		all = append(all, variant{answer: answer})
	}
	return all
}

// alternating makes every other attempt a.
func (g group) alternating(a attempt) group {
	inner := g.attempt
	g.attempt = func(client, n int) attempt {
		if n%2 == 0 {
			return a
		}
		return inner(client, n/2)
	}
	return g
}

// startingWithin sets the time in which all clients make their first attempt.
func (g group) startingWithin(within time.Duration) group {
	g.within = within
	return g
}

func (g group) during(from, to time.Duration) group {
	g.from, g.to = from, to
	return g
}

// staff returns logins of n accounts at an office.
func staff(n int, office netip.Addr) (known []attempt) {
	for i := range n {
		known = append(known, right(office, i))
	}
	return known
}

func scenarios() []scenario {
	atHomeBefore := []attempt{right(home, victim)}
	office := []group{
		colleagues(50, 5*time.Minute).atMost(0, 0, 0, 4791, 4800, 960, 14_377),
		oldDevices(50, 8*time.Hour),
	}
	newOffice := []group{office[0].atMost(1440), oldDevices(50, 8*time.Hour).atMost(anything)}
	return []scenario{
		{
			name: "A", title: "One address guesses at one account, once a second",
			known: atHomeBefore,
			groups: []group{
				guessing(time.Second, fixed(attacker)).atMost(40, 7856, 1224, 715, 24, 50, 101),
				atHome(),
			},
		},
		{
			name: "A'", title: "A on 50 connections",
			known: atHomeBefore, latency: 100 * time.Millisecond,
			groups: []group{{
				name: "guesses", clients: 50, every: thin * 15 * time.Second,
				attempt: func(client, n int) attempt { return wrong(attacker, victim, 50*n+client) },
				most:    40, others: [...]int{254_151, 2354, 720, 24, 50, 101},
			}},
		},
		{
			name: "B", title: "A slowly, each 31 s",
			known:  atHomeBefore,
			groups: []group{guessing(31*time.Second, fixed(attacker)).atMost(40, 2788, 1224, 584, 24, 50, 101)},
		},
		{
			name: "C", title: "A botnet guesses at one account: 10,000 addresses, each every ten minutes",
			known: atHomeBefore,
			groups: []group{
				botnet(10_000, 10*time.Minute, bot).atMost(130, 1_440_000, 1_433_050, 1_440_000, 1_440_000, 500_000, 10_100),
				atHome(), nearHome().atMost(2), travelling().atMost(2),
			},
		},
		{
			name: "D", title: "One address guesses at 10,000 accounts, once a second",
			groups: []group{spraying(time.Second, fixed(attacker)).atMost(80, 7856, 1224, 715, 24, 50, 101)},
		},
		{
			name: "D'", title: "D on the first day ever", cold: true,
			groups: []group{spraying(time.Second, fixed(attacker)).atMost(400)},
		},
		{
			name: "E", title: "An IPv6 /48 guesses at one account, every 2 s from another /64",
			known:  atHomeBefore,
			groups: []group{guessing(2*time.Second, rotating).atMost(60, 7856, 43_200, 43_200, 43_200, 150, 65_636)},
		},
		{
			name: "E2", title: "E at 10,000 accounts",
			groups: []group{spraying(2*time.Second, rotating).atMost(250, 7856, 43_200, 43_200, 43_200, 150, 86_400)},
		},
		{
			name: "F", title: "An office: an old device tries last year's password each minute, 51 others log in every five minutes",
			known: staff(51, home),
			groups: []group{
				colleagues(51, 5*time.Minute).atMost(0, 0, 0, 10_400, 14_495, 0, 13_668),
				oldDevices(1, day),
			},
		},
		{
			name: "F2", title: "F with five others, who come together every two hours",
			known: staff(5, home),
			groups: []group{
				colleagues(5, 2*time.Hour).startingWithin(10*time.Minute).atMost(0, 0, 0, 40, 60, 55, 55),
				oldDevices(1, day),
			},
		},
		{
			name: "G", title: "F with 50 old devices for eight hours, and 50 others",
			known: staff(50, home), groups: office,
		},
		{
			name: "G2", title: "An office of 50 has 30 guests, who mistype twice, each time differently, and then log in every minute",
			known: staff(50, home),
			groups: []group{{
				name: "guests refused", clients: 30, every: time.Minute, within: 30 * time.Minute, to: 2 * time.Hour, metric: refused,
				attempt: func(client, n int) attempt {
					if n < 2 {
						return wrong(home, guest+client, n)
					}
					return right(home, guest+client)
				},
			}},
		},
		{
			name: "H", title: "A, and before each guess a login to an account of the attacker's own",
			known: append(atHomeBefore, right(attacker, mallory)),
			groups: []group{
				guessing(time.Second, fixed(attacker)).alternating(right(attacker, mallory)).atMost(42, 12_343, 1224, 705, 24, 43_200, 101),
			},
		},
		{
			name: "H2", title: "D, and before each guess a login to such an account, which is new to the address",
			known: []attempt{right(phone, mallory)},
			groups: []group{
				spraying(time.Second, fixed(attacker)).alternating(right(attacker, mallory)).atMost(125),
			},
		},
		{
			name: "J", title: "100,000 addresses guess at one account, once each",
			known: atHomeBefore,
			groups: []group{
				botnet(100_000, day, bot).atMost(70, 43_200, 43_200, 43_200, 43_200, 100_000, 100_000),
				atHome(), nearHome(), travelling().atMost(anything),
			},
		},
		{
			name: "K", title: "200 bots with the owner's own provider guess, each once a minute",
			known: atHomeBefore,
			groups: []group{
				botnet(200, time.Minute, nearBot).atMost(130, 288_000, 243_660, 103_000, 4800, 4500, 300),
				atHome(), nearHome().atMost(2),
			},
		},
		{name: "L", title: "G on the first day ever", cold: true, groups: office},
		{
			name: "L'", title: "G on the day when the office moves to another provider",
			known: staff(50, moved), groups: newOffice,
		},
		{
			name: "M", title: "Stuffing: 10,000 addresses try a password at one of 10,000 accounts, one a second",
			groups: []group{{
				name: "guesses", every: thin * time.Second, stream: true,
				attempt: func(_, n int) attempt { return wrong(bot(n%10_000), int(scatter(uint32(n))%accounts), n) },
				most:    anything, others: [...]int{43_200, 43_200, 43_200, 43_200, 86_400, 86_400},
			}},
		},
		{
			name: "N", title: "A from the very address where the owner is at home",
			known: []attempt{right(home, victim), right(phone, victim)},
			groups: []group{
				guessing(time.Second, fixed(home)).atMost(164),
				atHome().atMost(anything),
				owner("on the phone, with another provider", 5*time.Minute, fixed(phone)),
			},
		},
		{
			name: "O", title: "With `strict_nist`: 10,000 bots elsewhere and 200 nearby guess for ten days, until the owner comes home",
			known: atHomeBefore, days: 11, strict: true,
			groups: []group{
				{
					name: "guesses", every: thin * 10 * time.Second, to: 10 * day, stream: true, most: 100,
					attempt: func(_, n int) attempt {
						if n%2 == 0 {
							return wrong(bot(n%10_000), victim, n)
						}
						return wrong(nearBot(n), victim, n)
					},
				},
				atHome().during(10*day, 11*day),
			},
		},
		{
			name: "P", title: "A with bearer tokens of up to 256 octets, which the server takes for passwords",
			known: atHomeBefore, posternOnly: true,
			groups: []group{guessing(time.Second, fixed(attacker)).with(variant{mechanism: wire.MechanismXOAuth2}, variant{mechanism: wire.MechanismOAuthBearer}).atMost(40), atHome()},
		},
		{
			name: "Q", title: "A at a server that answers wrong passwords as temporary",
			known: atHomeBefore, posternOnly: true,
			groups: []group{guessing(time.Second, fixed(attacker)).with(doubtful()...).atMost(40), atHome()},
		},
		{
			name: "R", title: "C with 2,000 addresses, through every protocol, mechanism and answer in turn",
			known: atHomeBefore, posternOnly: true,
			groups: []group{
				botnet(2_000, 10*time.Minute, bot).with(allVariants()...).atMost(130),
				atHome(), nearHome().atMost(2), travelling().atMost(2),
			},
		},
	}
}
