package route_test

import (
	"context"
	"fmt"

	"postern/proxy"
	"postern/proxy/route"
)

func ExampleAccounts() {
	accounts := route.Accounts{Lowercase: true, Domain: "example.org", Separators: proxy.DefaultSeparators}
	for _, user := range []string{"Alice", " bob@Example.NET ", "carol*master"} {
		account, err := accounts.Account(user)
		fmt.Printf("%q %v\n", account, err)
	}
	// Output:
	// "alice@example.org" <nil>
	// "bob@example.net" <nil>
	// "" user name with a separator of master users
}

func ExampleRules() {
	rules := route.Rules{
		route.Domain{Name: "example.net", Choice: route.Choice{Backend: "new"}},
		route.Default{Backend: "main"},
	}
	for _, account := range []string{"alice@example.org", "bob@example.net"} {
		choice, err := rules.Route(context.Background(), &proxy.Login{Account: account})
		fmt.Println(account, choice.Backend, err)
	}
	// Output:
	// alice@example.org main <nil>
	// bob@example.net new <nil>
}
