package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy/admin"
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

// A providerEntry is a provider of the configuration with its state, without anything
// secret.
type providerEntry struct {
	service.ProviderStatus          // the State is "" if no Postern is running
	TokenURL               string   `json:"token_url"`
	Domains                []string `json:"domains"`
	Backends               []string `json:"backends"`
}

func listProvidersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the providers of tokens, their state, and the backends that take the tokens",
		Long: `List the providers of tokens, their state in the running Postern, and the backends
that take the tokens. CREDENTIAL ENDS is the end of the certificate, or of the secret as
client_secret_expires says. Without a running Postern there is no state.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		running, err := runningProviders(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "PROVIDER\tKIND\tSTATE\tLAST TOKEN\tCREDENTIAL ENDS\tTOKEN ENDPOINT\tDOMAINS\tBACKENDS", func(e providerEntry) []any {
			return []any{e.Name, e.Kind, orDash(e.State), date(e.Last), date(e.NotAfter), e.TokenURL, strings.Join(e.Domains, " "), strings.Join(e.Backends, " ")}
		})
		for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
			c := cfg.Providers[name]
			e := providerEntry{ProviderStatus: running[name], TokenURL: service.TokenURL(c), Domains: c.Domains}
			e.Name, e.Kind = name, c.Kind
			e.NotAfter, _, _ = c.CredentialEnd()
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

// runningProviders returns the providers of the running Postern by name; none runs: nil.
func runningProviders(ctx context.Context, cfg *configs.Config) (map[string]service.ProviderStatus, error) {
	if cfg.Control.Socket == "" || len(cfg.Providers) == 0 {
		return nil, nil
	}
	all := map[string]service.ProviderStatus{}
	err := admin.CallEach(ctx, cfg.Control.Socket, service.AskStatus, struct{}{}, func(s service.Status) error {
		for _, p := range s.Providers {
			all[p.Name] = p
		}
		return nil
	})
	if errors.Is(err, admin.ErrNotRunning) {
		return nil, nil
	}
	return all, err
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
