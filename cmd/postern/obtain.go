package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy/certs"
)

func obtainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "obtain",
		Short: "Get certificates before clients ask for them",
		Long: `Gets a certificate for each name of a file that the DNS has here, into the
storage that Postern loads them from when a client asks. It can be stopped and
begun again: what is there is not got again. A Postern may be running or not.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	file := cmd.Flags().String("names-file", "", "the names, one a line; default: tls.acme.on_demand.names_file")
	perHour := cmd.Flags().Int("per-hour", 60, "orders in an hour, spread evenly")
	given := cmd.Flags().StringSlice("address", nil, "our `IP` address in the DNS, may be repeated; default: tls.acme.on_demand.addresses, or those of the listeners")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		if cfg.TLS.ACME == nil {
			return configs.Errors{cfg.Errorf("tls.acme", "missing; obtain gets certificates as it says")}
		}
		if *perHour < 1 {
			return errors.New("--per-hour must be 1 or more")
		}
		names, err := namesToObtain(cfg, *file)
		if err != nil {
			return err
		}
		own, err := ownAddresses(cfg, *given)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		r := progressReport{out: out, live: isDisplay(out), began: time.Now(), counts: map[string]int{}}
		o := &certs.BatchOrder{Names: names, PerHour: *perHour, Addresses: own, Report: r.update}
		err = asOwnerOfStorage(cfg, func() error {
			return o.Run(cmd.Context(), *service.CertificateSources(cfg).ACME, slog.New(slog.DiscardHandler))
		})
		r.end()
		return err
	}
	return cmd
}

func namesToObtain(cfg *configs.Config, file string) ([]string, error) {
	var prefixes []string
	if d := cfg.TLS.ACME.OnDemand; d != nil {
		prefixes = d.Prefixes
		if file == "" {
			file = d.NamesFile
		}
	}
	if file == "" {
		return nil, errors.New("missing --names-file FILE")
	}
	return certs.ReadNames(file, prefixes)
}

// ownAddresses returns the addresses that the DNS should have: the given ones, or the
// addresses in the configuration, or the addresses of the listeners.
func ownAddresses(cfg *configs.Config, given []string) (own []netip.Addr, err error) {
	for _, s := range given {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--address: %w", err)
		}
		own = append(own, addr.Unmap())
	}
	if d := cfg.TLS.ACME.OnDemand; own == nil && d != nil {
		own = d.Addresses
	}
	if own != nil {
		return own, nil
	}
	for _, l := range cfg.Listeners {
		host, _, _ := net.SplitHostPort(l.Address)
		addr, err := netip.ParseAddr(host)
		if err != nil || addr.IsUnspecified() {
			return interfaceAddresses()
		}
		own = append(own, addr.Unmap())
	}
	return own, nil
}

func interfaceAddresses() (own []netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			own = append(own, p.Addr().Unmap())
		}
	}
	if own == nil {
		return nil, errors.New("this machine has no address of its own; use --address")
	}
	return own, nil
}

// A progressReport prints the progress of obtain.
type progressReport struct {
	out    io.Writer
	live   bool // the progress line is overwritten in place
	began  time.Time
	counts map[string]int
}

func (r *progressReport) update(p certs.Progress) {
	r.counts[p.Result]++
	if p.Err != nil {
		r.clear()
		_, _ = fmt.Fprintf(r.out, "%s: %s: %v\n", p.Name, p.Result, p.Err)
	} else if !r.live && p.Result == certs.ObtainedNow {
		_, _ = fmt.Fprintf(r.out, "%s: %s\n", p.Name, p.Result)
	}
	if r.live {
		r.clear()
		_, _ = fmt.Fprintf(r.out, "%d of %d names: %s, %s left", p.Done, p.All, r, r.left(p))
	}
}

// clear clears the progress line.
func (r *progressReport) clear() {
	if r.live {
		clearLine(r.out)
	}
}

// left estimates the remaining time from the average time of a name so far.
func (r *progressReport) left(p certs.Progress) time.Duration {
	return (time.Since(r.began) / time.Duration(p.Done) * time.Duration(p.All-p.Done)).Round(time.Second)
}

func (r *progressReport) end() {
	r.clear()
	_, _ = fmt.Fprintln(r.out, r)
}

func (r *progressReport) String() string {
	var parts []string
	for _, result := range []string{certs.ObtainedNow, certs.ObtainedBefore, certs.ObtainSkipped, certs.ObtainedNot} {
		parts = append(parts, fmt.Sprintf("%d %s", r.counts[result], result))
	}
	return strings.Join(parts, ", ")
}
