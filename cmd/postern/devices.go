package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/password"
)

func passwordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "password",
		Short: "Make, list and remove passwords of devices",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(addPasswordCommand(), listPasswordsCommand(), removePasswordCommand())
	return cmd
}

func addPasswordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add ACCOUNT --name NAME",
		Short: "Make a password for a device of an account, and show it once",
		Long: `Make a password for one device or program of an account, and show it once: only a
keyed hash of it is stored. Case, spaces and dashes of what is typed do not count.
The password has 130 random bits in 26 characters; --length short makes 16
characters, for devices that cut a longer password off.

A right password for another protocol, from another network or after its last day
is refused as suspended, and the log names the device.`,
		Example: `postern password add alice@example.org --name "copier, 3rd floor" --protocols submission --networks 10.1.0.0/16`,
		Args:    cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	var n stored.NewDevice
	var networks []string
	flags := cmd.Flags()
	flags.StringVar(&n.Name, "name", "", "the `name` by which you know what to remove when the device is gone")
	flags.StringSliceVar(&n.Protocols, "protocols", nil, "only these `protocols`: imap, pop3, submission; default: all")
	flags.StringSliceVar(&networks, "networks", nil, "only from these `networks`, such as 10.1.0.0/16; default: all")
	flags.StringVar(&n.Expires, "expires", "", "the last `day`, such as 2027-12-31; default: none")
	length := flags.String("length", "long", "`long` or short")
	asJSON := cmd.Flags().Bool("json", false, "one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		switch *length {
		case "long", "short":
			n.Short = *length == "short"
		default:
			return fmt.Errorf("%q is not a length; use long or short", *length)
		}
		for _, name := range n.Protocols {
			if name == "" {
				return fmt.Errorf("%q is not a protocol; use %s", name, enumerate(proxy.Protocols(), "or"))
			}
			if err := checkProtocol(name); err != nil {
				return err
			}
		}
		for _, text := range networks {
			network, err := configs.ParseNetwork(text)
			if err != nil {
				return err
			}
			n.Networks = append(n.Networks, network)
		}
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		if n.Account, err = accountNamed(cfg, args[0]); err != nil {
			return err
		}
		made, err := stored.AddDevice.One(cmd.Context(), cfg, n)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(made)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintf(t, "account\t%s\nid\t%s\nname\t%s\npassword\t%s\n", made.Account, made.ID, made.Name, made.Password)
		if err := t.Flush(); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.ErrOrStderr(), "The password is not shown again.")
		return err
	}
	return cmd
}

func listPasswordsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [ACCOUNT]",
		Short: "List the devices that have a password",
		Long: `List the devices of an account, or of all accounts, that have a password. KEY is the
line of state.key_file with whose key the password was made; - means that the file
does not have that key any more: the password does not work. A record that cannot be
read has an id that begins with damaged-, by which it can be removed.`,
		Args: cobra.MaximumNArgs(1),
	}
	path := configFlag(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		account := ""
		if len(args) > 0 {
			if account, err = accountNamed(cfg, args[0]); err != nil {
				return err
			}
		}
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "ACCOUNT\tID\tNAME\tMADE\tLAST USED\tPROTOCOLS\tNETWORKS\tLAST DAY\tKEY", func(d password.Device) []any {
			key := "-"
			if d.Key > 0 {
				key = fmt.Sprint(d.Key)
			}
			if d.Damaged {
				d.Name, d.Made = "(the record cannot be read)", "-"
			}
			return []any{
				d.Account, d.ID, d.Name, d.Made, orDash(d.LastUsed), orDash(strings.Join(d.Protocols, ",")), orDash(joinNetworks(d.Networks)),
				orDash(d.Expires), key,
			}
		})
		return p.end(stored.ListDevices.AskReadOnly(cmd.Context(), cfg, stored.AccountName(account), p.print))
	}
	return cmd
}

func joinNetworks(networks []netip.Prefix) string {
	var texts []string
	for _, n := range networks {
		texts = append(texts, n.String())
	}
	return strings.Join(texts, ",")
}

func removePasswordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove ACCOUNT ID",
		Short: "Remove the password of a device, and end its sessions",
		Long: `Remove the password of a device, whose ID postern password list shows, and end its
sessions. A session that is sending a message ends after it, five minutes later at
the latest. Other devices of the account are left alone.`,
		Args: cobra.ExactArgs(2),
	}
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		account, err := accountNamed(cfg, args[0])
		if err != nil {
			return err
		}
		removed, err := stored.RemoveDevice.One(cmd.Context(), cfg, stored.DeviceName{Account: account, ID: args[1]})
		if removed.ID == "" {
			return err
		}
		if *asJSON {
			_ = json.NewEncoder(cmd.OutOrStdout()).Encode(removed)
			return err
		}
		if removed.Damaged {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "removed: %s of %s; sessions of the device end within a minute\n", removed.ID, removed.Account)
			return err
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "removed: %s (%s) of %s; sessions ended: %d\n", removed.ID, removed.Name, removed.Account, removed.Ended)
		return err
	}
	return cmd
}
