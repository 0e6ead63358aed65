package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/configs"
)

func providerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "provider",
		Short: "List and try the providers of tokens",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(listProvidersCommand(), checkProviderCommand())
	return cmd
}

// A providerEntry is a provider of the configuration, without anything secret.
type providerEntry struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	TokenURL string   `json:"token_url"`
	Domains  []string `json:"domains"`
	Backends []string `json:"backends"`
}

func listProvidersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the providers of tokens, and the backends that take them",
		Args:  cobra.NoArgs,
	}
	path := configFlag(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "PROVIDER\tKIND\tTOKEN ENDPOINT\tDOMAINS\tBACKENDS", func(e providerEntry) []any {
			return []any{e.Name, e.Kind, e.TokenURL, strings.Join(e.Domains, " "), strings.Join(e.Backends, " ")}
		})
		for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
			c := cfg.Providers[name]
			e := providerEntry{Name: name, Kind: c.Kind, TokenURL: service.TokenURL(c), Domains: c.Domains}
			for _, backend := range slices.Sorted(maps.Keys(cfg.Backends)) {
				if cfg.Backends[backend].Token == name {
					e.Backends = append(e.Backends, backend)
				}
			}
			if err := p.print(e); err != nil {
				return p.end(err)
			}
		}
		return p.end(nil)
	}
	return cmd
}

func checkProviderCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check PROVIDER [ACCOUNT]",
		Short: "Get a token, and log in with it as an account",
		Long: `Get a token of a provider. With an account, log in with the token at the servers of
each backend that takes it, and open INBOX: no mail is sent or changed. What fails is
named, with what most often mends it.

The command needs no running Postern, and reads the files of the configuration. It
shows no token and no secret. What fails is exit status 1.`,
		Example: `postern provider check contoso scanner@contoso.example`,
		Args:    cobra.RangeArgs(1, 2),
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		account := ""
		if len(args) == 2 {
			account = args[1]
		}
		right, err := service.CheckProvider(cmd.Context(), *path, args[0], account, cmd.OutOrStdout())
		if err == nil && !right {
			err = exitStatus(1)
		}
		return err
	}
	return cmd
}
