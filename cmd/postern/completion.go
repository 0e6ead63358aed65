package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"postern/configs"
	"postern/proxy"
)

// completeValues makes shells complete the flags and arguments of cmd, and of all commands
// below it, that have few values: protocols, and the names in the configuration. Accounts
// are not completed: they belong to no shell's history.
func completeValues(cmd *cobra.Command) {
	for flag, complete := range map[string]cobra.CompletionFunc{
		"protocol": cobra.FixedCompletions(proxy.Protocols(), cobra.ShellCompDirectiveNoFileComp),
		"tls":      cobra.FixedCompletions(tlsVersions, cobra.ShellCompDirectiveNoFileComp),
		"backend":  completeFromConfig(backendsOf),
		"listener": completeFromConfig(listenersOf),

		"protocols": cobra.FixedCompletions(proxy.Protocols(), cobra.ShellCompDirectiveNoFileComp),
		"length":    cobra.FixedCompletions([]string{"long", "short"}, cobra.ShellCompDirectiveNoFileComp),
		"name":      cobra.NoFileCompletions, "networks": cobra.NoFileCompletions, "expires": cobra.NoFileCompletions,
		"account": cobra.NoFileCompletions, "address": cobra.NoFileCompletions, "as": cobra.NoFileCompletions, "domain": cobra.NoFileCompletions,
		"for": cobra.NoFileCompletions, "old": cobra.NoFileCompletions, "server-name": cobra.NoFileCompletions, "session": cobra.NoFileCompletions,
		"since": cobra.NoFileCompletions, "quiet-since": cobra.NoFileCompletions, "user": cobra.NoFileCompletions, "zone": cobra.NoFileCompletions,
	} {
		if _, set := cmd.GetFlagCompletionFunc(flag); cmd.Flags().Lookup(flag) != nil && !set {
			_ = cmd.RegisterFlagCompletionFunc(flag, complete)
		}
	}
	if cmd.Runnable() && cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 {
		cmd.ValidArgsFunction = completeArgument
	}
	for _, c := range cmd.Commands() {
		completeValues(c)
	}
}

// completeArgument completes the argument after args by its name in the Use line.
func completeArgument(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	_, line, _ := strings.Cut(cmd.Use, " ")
	var names []string // of the arguments
	for _, group := range alternatives(cmd, brackets.Replace(line)) {
		if i := slices.IndexFunc(group, func(a alternative) bool { return a.flag == "" }); i >= 0 {
			names = append(names, group[i].text)
		}
	}
	if len(args) >= len(names) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	switch names[len(args)] {
	case "FILE", "FILE|-", "FOLDER":
		return nil, cobra.ShellCompDirectiveDefault
	case "PROVIDER":
		return completeFromConfig(providersOf)(cmd, args, begun)
	case "BACKEND":
		return completeFromConfig(backendsOf)(cmd, args, begun)
	case "ADDRESS":
		return completeFromConfig(func(cfg *configs.Config) []string { return serversOf(cfg, args[len(args)-1]) })(cmd, args, begun)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeFromConfig completes names from the configuration. One that cannot be read has
// none.
func completeFromConfig(names func(*configs.Config) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		path := cmd.Flags().Lookup("config")
		if path == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		cfg, err := configs.Read(path.Value.String())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(cfg), cobra.ShellCompDirectiveNoFileComp
	}
}

func backendsOf(cfg *configs.Config) []string { return slices.Sorted(maps.Keys(cfg.Backends)) }

func listenersOf(cfg *configs.Config) (names []string) {
	for _, l := range cfg.Listeners {
		names = append(names, l.Name)
	}
	return names
}

// serversOf returns the addresses of a backend. A backend that is not in cfg has none.
func serversOf(cfg *configs.Config, backend string) (addresses []string) {
	b := cfg.Backends[backend]
	for _, s := range []*configs.Server{b.IMAP, b.POP3, b.Submission} {
		if s != nil {
			addresses = append(addresses, s.All()...)
		}
	}
	return addresses
}

func providersOf(cfg *configs.Config) []string { return slices.Sorted(maps.Keys(cfg.Providers)) }
