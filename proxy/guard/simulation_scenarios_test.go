package guard_test

import (
	"net/netip"
	"time"

	"postern/proxy"
)

// Accounts are numbers. That which is attacked is the victim's, where it is
// only one; colleagues have the first ones.
const (
	victim   = 0
	accounts = 10_000
	mallory  = 20_000 // the attacker's own
	guest    = 30_000 // and more
)

var (
	home     = netip.MustParseAddr("198.51.100.7") // also the office
	moved    = netip.MustParseAddr("192.0.2.7")    // where the office was before
	phone    = netip.MustParseAddr("203.0.113.80")
	attacker = netip.MustParseAddr("45.9.20.1")
)

// place says where somebody is, each time.
type place func(n int) netip.Addr

func at(a netip.Addr) place { return func(int) netip.Addr { return a } }

// neighbour is somewhere else at the home's provider, at one of 256 addresses.
func neighbour(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(n), 99}) }

// abroad is each of 24 times with a provider where nobody of us ever was.
func abroad(n int) netip.Addr { return netip.AddrFrom4([4]byte{byte(130 + n), 20, 30, 40}) }

// bot is one of a million addresses all over the place, none near another.
func bot(n int) netip.Addr {
	x := scatter(uint32(n))
	return netip.AddrFrom4([4]byte{32 + byte(x>>24)%64, byte(x >> 16), byte(x >> 8), byte(x)})
}

// nearBot is one of 200 at the home's provider.
func nearBot(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(n % 200), 8}) }

// rotating goes through all /64 of an IPv6 /48.
func rotating(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 9, byte(n >> 8), byte(n), 15: 1})
}

func right(from netip.Addr, account int) attempt { return attempt{from: from, account: account} }

// wrong is the nth guess.
func wrong(from netip.Addr, account, n int) attempt {
	return attempt{from: from, account: account, password: uint32(n) + 1}
}

// guessing is one client that guesses the victim's password.
func guessing(every time.Duration, from place) crowd {
	return crowd{who: "guesses", every: thin * every, tries: func(_, n int) attempt { return wrong(from(n), victim, n) }}
}

// botnet is many, of which each comes every so often.
func botnet(size int, every time.Duration, from place) crowd {
	size /= thin
	c := guessing(every/time.Duration(thin*size), func(n int) netip.Addr { return from(n % size) })
	c.stream = true
	return c
}

// spraying is one client that guesses a password for all accounts, and then
// another one.
func spraying(every time.Duration, from place) crowd {
	return crowd{who: "guesses", every: thin * every, tries: func(_, n int) attempt {
		return wrong(from(n), n%accounts, n/accounts)
	}}
}

// owner is the victim who logs in.
func owner(where string, every time.Duration, from place) crowd {
	return crowd{
		who: "owner refused " + where, every: every, counts: refused,
		tries: func(_, n int) attempt { return right(from(n), victim) },
	}
}

func atHome() crowd   { return owner("at home", 5*time.Minute, at(home)) }
func nearHome() crowd { return owner("elsewhere with the same provider", time.Hour, neighbour) }
func travelling() crowd {
	return owner("on a journey, each time with a new provider", time.Hour, abroad)
}

// colleagues share the office's address.
func colleagues(n int, every time.Duration) crowd {
	return crowd{
		who: "colleagues refused", clients: n, every: every, counts: refused,
		tries: func(client, _ int) attempt { return right(home, client) },
	}
}

// oldDevices try the password of last year each minute, at the same address.
func oldDevices(n int, to time.Duration) crowd {
	return crowd{
		who: "old devices throttled", clients: n, every: time.Minute, to: to, counts: throttled,
		tries: func(client, _ int) attempt { return wrong(home, client, 0) },
	}
}

// atMost bounds what may count with Postern, and about what counts with others.
func (c crowd) atMost(most int, about ...int) crowd {
	c.most = most
	copy(c.others[:], about)
	return c
}

// The answers to a wrong password that are not called wrong.
var doubtfulAnswers = func() (all []error) {
	for _, reason := range []proxy.Reason{proxy.Unavailable, proxy.TooMany, proxy.InUse, proxy.MailboxFull, proxy.Maintenance} {
		r := proxy.NewRefusal(reason, nil)
		r.Doubtful = true
		all = append(all, r)
	}
	return append(all, proxy.NewRefusal(proxy.Suspended, nil))
}()

// through has the nth attempt be made, and answered, in the nth of these ways.
func (c crowd) through(ways ...how) crowd {
	tries := c.tries
	c.tries = func(client, n int) attempt {
		a := tries(client, n)
		a.how = ways[n%len(ways)]
		return a
	}
	return c
}

// everyWay is each protocol with each mechanism and each answer.
func everyWay() (all []how) {
	for _, answer := range append(doubtfulAnswers, nil) {
		for _, protocol := range []string{proxy.IMAP, proxy.POP3, proxy.Submission} {
			for _, mechanism := range []string{"PLAIN", "XOAUTH2", "OAUTHBEARER"} {
				all = append(all, how{protocol, mechanism, answer})
			}
		}
	}
	return all
}

// doubtful is each answer that is not called wrong.
func doubtful() (all []how) {
	for _, answer := range doubtfulAnswers {
		all = append(all, how{answer: answer})
	}
	return all
}

// between has every other attempt be this one.
func (c crowd) between(a attempt) crowd {
	tries := c.tries
	c.tries = func(client, n int) attempt {
		if n%2 == 0 {
			return a
		}
		return tries(client, n/2)
	}
	return c
}

// together has all begin within some time.
func (c crowd) together(within time.Duration) crowd {
	c.within = within
	return c
}

func (c crowd) during(from, to time.Duration) crowd {
	c.from, c.to = from, to
	return c
}

// staff are n accounts, known at an office.
func staff(n int, office netip.Addr) (known []attempt) {
	for i := range n {
		known = append(known, right(office, i))
	}
	return known
}

func scenarios() []scenario {
	atHomeBefore := []attempt{right(home, victim)}
	office := []crowd{
		colleagues(50, 5*time.Minute).atMost(0, 0, 0, 4791, 4800, 960, 14_377),
		oldDevices(50, 8*time.Hour),
	}
	newOffice := []crowd{office[0].atMost(1440), oldDevices(50, 8*time.Hour).atMost(anything)}
	return []scenario{
		{
			name: "A", title: "One address guesses at one account, once a second",
			known: atHomeBefore,
			crowds: []crowd{
				guessing(time.Second, at(attacker)).atMost(40, 7856, 1224, 715, 24, 50, 101),
				atHome(),
			},
		},
		{
			name: "A'", title: "A on 50 connections",
			known: atHomeBefore, latency: 100 * time.Millisecond,
			crowds: []crowd{{
				who: "guesses", clients: 50, every: thin * 15 * time.Second,
				tries: func(client, n int) attempt { return wrong(attacker, victim, 50*n+client) },
				most:  40, others: [...]int{254_151, 2354, 720, 24, 50, 101},
			}},
		},
		{
			name: "B", title: "A slowly, each 31 s",
			known:  atHomeBefore,
			crowds: []crowd{guessing(31*time.Second, at(attacker)).atMost(40, 2788, 1224, 584, 24, 50, 101)},
		},
		{
			name: "C", title: "A botnet guesses at one account: 10,000 addresses, each every ten minutes",
			known: atHomeBefore,
			crowds: []crowd{
				botnet(10_000, 10*time.Minute, bot).atMost(130, 1_440_000, 1_433_050, 1_440_000, 1_440_000, 500_000, 10_100),
				atHome(), nearHome().atMost(2), travelling().atMost(2),
			},
		},
		{
			name: "D", title: "One address guesses at 10,000 accounts, once a second",
			crowds: []crowd{spraying(time.Second, at(attacker)).atMost(80, 7856, 1224, 715, 24, 50, 101)},
		},
		{
			name: "D'", title: "D on the first day ever", cold: true,
			crowds: []crowd{spraying(time.Second, at(attacker)).atMost(400)},
		},
		{
			name: "E", title: "An IPv6 /48 guesses at one account, every 2 s from another /64",
			known:  atHomeBefore,
			crowds: []crowd{guessing(2*time.Second, rotating).atMost(60, 7856, 43_200, 43_200, 43_200, 150, 65_636)},
		},
		{
			name: "E2", title: "E at 10,000 accounts",
			crowds: []crowd{spraying(2*time.Second, rotating).atMost(250, 7856, 43_200, 43_200, 43_200, 150, 86_400)},
		},
		{
			name: "F", title: "An office: an old device tries last year's password each minute, 51 others log in every five minutes",
			known: staff(51, home),
			crowds: []crowd{
				colleagues(51, 5*time.Minute).atMost(0, 0, 0, 10_400, 14_495, 0, 13_668),
				oldDevices(1, day),
			},
		},
		{
			name: "F2", title: "F with five others, who come together every two hours",
			known: staff(5, home),
			crowds: []crowd{
				colleagues(5, 2*time.Hour).together(10*time.Minute).atMost(0, 0, 0, 40, 60, 55, 55),
				oldDevices(1, day),
			},
		},
		{
			name: "G", title: "F with 50 old devices for eight hours, and 50 others",
			known: staff(50, home), crowds: office,
		},
		{
			name: "G2", title: "An office of 50 has 30 guests, who mistype twice, each time differently, and then log in every minute",
			known: staff(50, home),
			crowds: []crowd{{
				who: "guests refused", clients: 30, every: time.Minute, within: 30 * time.Minute, to: 2 * time.Hour, counts: refused,
				tries: func(client, n int) attempt {
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
			crowds: []crowd{
				guessing(time.Second, at(attacker)).between(right(attacker, mallory)).atMost(42, 12_343, 1224, 705, 24, 43_200, 101),
			},
		},
		{
			name: "H2", title: "D, and before each guess a login to such an account, which is new to the address",
			known: []attempt{right(phone, mallory)},
			crowds: []crowd{
				spraying(time.Second, at(attacker)).between(right(attacker, mallory)).atMost(125),
			},
		},
		{
			name: "J", title: "100,000 addresses guess at one account, once each",
			known: atHomeBefore,
			crowds: []crowd{
				botnet(100_000, day, bot).atMost(70, 43_200, 43_200, 43_200, 43_200, 100_000, 100_000),
				atHome(), nearHome(), travelling().atMost(anything),
			},
		},
		{
			name: "K", title: "200 bots with the owner's own provider guess, each once a minute",
			known: atHomeBefore,
			crowds: []crowd{
				botnet(200, time.Minute, nearBot).atMost(130, 288_000, 243_660, 103_000, 4800, 4500, 300),
				atHome(), nearHome().atMost(2),
			},
		},
		{name: "L", title: "G on the first day ever", cold: true, crowds: office},
		{
			name: "L'", title: "G on the day when the office moves to another provider",
			known: staff(50, moved), crowds: newOffice,
		},
		{
			name: "M", title: "Stuffing: 10,000 addresses try a password at one of 10,000 accounts, one a second",
			crowds: []crowd{{
				who: "guesses", every: thin * time.Second, stream: true,
				tries: func(_, n int) attempt { return wrong(bot(n%10_000), int(scatter(uint32(n))%accounts), n) },
				most:  anything, others: [...]int{43_200, 43_200, 43_200, 43_200, 86_400, 86_400},
			}},
		},
		{
			name: "N", title: "A from the very address where the owner is at home",
			known: []attempt{right(home, victim), right(phone, victim)},
			crowds: []crowd{
				guessing(time.Second, at(home)).atMost(164),
				atHome().atMost(anything),
				owner("on the phone, with another provider", 5*time.Minute, at(phone)),
			},
		},
		{
			name: "O", title: "With `strict_nist`: 10,000 bots elsewhere and 200 nearby guess for ten days, until the owner comes home",
			known: atHomeBefore, days: 11, strict: true,
			crowds: []crowd{
				{
					who: "guesses", every: thin * 10 * time.Second, to: 10 * day, stream: true, most: 100,
					tries: func(_, n int) attempt {
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
			known: atHomeBefore, alone: true,
			crowds: []crowd{guessing(time.Second, at(attacker)).through(how{mechanism: "XOAUTH2"}, how{mechanism: "OAUTHBEARER"}).atMost(40), atHome()},
		},
		{
			name: "Q", title: "A at a server that answers wrong passwords as temporary",
			known: atHomeBefore, alone: true,
			crowds: []crowd{guessing(time.Second, at(attacker)).through(doubtful()...).atMost(40), atHome()},
		},
		{
			name: "R", title: "C with 2,000 addresses, through every protocol, mechanism and answer in turn",
			known: atHomeBefore, alone: true,
			crowds: []crowd{
				botnet(2_000, 10*time.Minute, bot).through(everyWay()...).atMost(130),
				atHome(), nearHome().atMost(2), travelling().atMost(2),
			},
		},
	}
}
