package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
)

// checkProtocol returns an error unless name is a protocol, or "".
func checkProtocol(name string) error {
	if name == "" || slices.Contains(proxy.Protocols(), name) {
		return nil
	}
	return fmt.Errorf("%q is not a protocol; use %s", name, enumerate(proxy.Protocols(), "or"))
}

// filterFlags adds the flags of a filter to cmd. The returned function must be called
// when cmd runs, and returns the filter. path is that of the configuration.
func filterFlags(cmd *cobra.Command, path *string) func() (service.SessionFilter, error) {
	var f service.SessionFilter
	var address string
	flags := cmd.Flags()
	flags.StringVar(&f.Session, "session", "", "the one with this `id`")
	flags.StringVar(&f.Account, "account", "", "those of this `account`")
	flags.StringVar(&address, "address", "", "those from this `address`, or network such as 192.0.2.0/24")
	flags.StringVar(&f.Backend, "backend", "", "those at this `backend`")
	flags.StringVar(&f.Protocol, "protocol", "", "those of this `protocol`: imap, pop3, submission or sieve")
	return func() (service.SessionFilter, error) {
		if err := checkProtocol(f.Protocol); err != nil {
			return f, err
		}
		if f.Account != "" {
			cfg, err := configs.Read(*path)
			if err != nil {
				return f, err
			}
			if f.Account, err = accountNamed(cfg, f.Account); err != nil {
				return f, err
			}
		}
		if address == "" {
			return f, nil
		}
		var err error
		f.Network, err = configs.ParseNetwork(address)
		return f, err
	}
}

// noteUnknownAccount prints that nothing is stored of an account, which may be a slip of
// the hand. The account may exist all the same, so this is no error.
func noteUnknownAccount(cmd *cobra.Command, path, account string) {
	if account == "" {
		return
	}
	cfg, err := configs.Read(path)
	if err != nil {
		return
	}
	if a, err := stored.ExportAccount.One(cmd.Context(), cfg, stored.AccountName(account)); err == nil && a.Empty() {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "postern: %s has never logged in here, as far as is stored: is the name right?\n", account)
	}
}

func kickCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kick",
		Short: "End connections, each with a goodbye in its protocol's words",
		Long: `End the connections that have all that the flags name, each with a goodbye in
its protocol's words, and print how many they were. Clients may connect again:
policy.file or the mail server can refuse an account.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	chosen, asJSON := filterFlags(cmd, path), jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := chosen()
		if err != nil {
			return err
		}
		if f == (service.SessionFilter{}) {
			return errors.New("missing --session, --account, --address, --backend or --protocol: with none of them this would end all connections")
		}
		return callRunning(cmd.Context(), *path, service.AskKick, f, func(n int) error {
			if n == 0 {
				noteUnknownAccount(cmd, *path, f.Account)
			}
			if *asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]int{"ended": n})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "ended: %d\n", n)
			return err
		})
	}
	return cmd
}
