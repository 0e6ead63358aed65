package guard_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"postern/proxy"
	"postern/proxy/guard"
	"postern/proxy/wire"
)

// A client guesses passwords until its bucket for the account is empty. Then Try refuses
// the attempt without the backend.
func Example() {
	g := guard.New(guard.Config{
		Pair:        guard.Rate{Burst: 2, Every: 30 * time.Minute},
		Connections: 1000, ConnectionsPerNetwork: 20, LoginsPerNetwork: 20,
		Sessions: 10, Attempts: 100, Entries: 1000, Pairs: 1000,
	})
	client := proxy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:40000")}
	permit, err := g.Admit(client, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer permit.Leave()
	for i := range 3 {
		login := &proxy.Login{
			Client: client, Mechanism: wire.MechanismPlain, Account: "alice", Secret: proxy.NewSecret(fmt.Append(nil, "guess", i)),
		}
		err := permit.Try(context.Background(), login)
		if err == nil { // the backend checks the password
			err = proxy.NewRefusal(proxy.Wrong, nil)
		}
		permit.Settle(err)
		fmt.Println(err)
	}
	// Output:
	// wrong
	// wrong
	// throttled: guard: no token of pair (stranger_fresh) for 30m0s
}
