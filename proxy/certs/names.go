package certs

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

// The limits of a names file.
const (
	// maxNamesFile bounds a file of names, in octets.
	maxNamesFile = 256 << 20
	// maxNameLine bounds its lines.
	maxNameLine = 1024
	// maxName is the length of the longest name in the DNS.
	maxName = 253
)

// A nameFile is a file with the names that may have certificates. A nil one has
// no names.
type nameFile struct {
	path     string
	prefixes []string
	info     os.FileInfo
	names    atomic.Pointer[nameList]
}

type nameList struct {
	exact   map[string]struct{}
	parents map[string]struct{} // of *.parent
}

// reload reads the file if it has changed.
func (f *nameFile) reload() (changed bool, err error) {
	if f == nil {
		return false, nil
	}
	info := statFile(f.path)
	if info != nil && sameFile(info, f.info) {
		return false, nil
	}
	list, err := readNames(f.path)
	if err != nil {
		return false, err
	}
	f.info = info
	f.names.Store(list)
	return true, nil
}

// has reports whether name, in lower case, may have a certificate.
func (f *nameFile) has(name string) bool {
	if f == nil {
		return false
	}
	list := f.names.Load()
	label, parent, _ := strings.Cut(name, ".")
	_, exact := list.exact[name]
	_, below := list.parents[parent]
	_, base := list.exact[parent]
	return exact || below || base && slices.Contains(f.prefixes, label)
}

func readNames(path string) (*nameList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read names: %w", err)
	}
	defer func() { _ = f.Close() }()
	list, err := parseNames(f)
	if err != nil {
		return nil, fmt.Errorf("read names: %s:%w", path, err)
	}
	return list, nil
}

// parseNames reads one name a line. A # starts a comment. An error begins with
// the line number.
func parseNames(r io.Reader) (*nameList, error) {
	list := &nameList{exact: map[string]struct{}{}, parents: map[string]struct{}{}}
	lines := bufio.NewScanner(io.LimitReader(r, maxNamesFile))
	lines.Buffer(make([]byte, maxNameLine), maxNameLine)
	n := 0
	for lines.Scan() {
		n++
		name, _, _ := strings.Cut(lines.Text(), "#")
		name = strings.ToLower(strings.TrimSpace(name))
		parent, wildcard := strings.CutPrefix(name, "*.")
		switch {
		case name == "":
		case !isHostname(parent):
			return nil, fmt.Errorf("%d: %q is not a name such as example.org or *.example.org", n, name)
		case wildcard:
			list.parents[parent] = struct{}{}
		default:
			list.exact[name] = struct{}{}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%d: %w", n+1, err)
	}
	return list, nil
}

// isHostname reports whether s is a DNS name that a public CA may certify, in
// lower or upper case.
func isHostname(s string) bool {
	const mostLabel = 63
	if len(s) > maxName || !strings.Contains(s, ".") {
		return false
	}
	label := ""
	for label = range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > mostLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if (r|0x20 < 'a' || r|0x20 > 'z') && (r < '0' || r > '9') && r != '-' {
				return false
			}
		}
	}
	return strings.Trim(label, "0123456789") != "" // else an IP address
}

// pointsHere returns an error unless all addresses of name in the DNS are in own:
// the CA may connect to any of them. Without own, the DNS is not checked.
func (m *manager) pointsHere(ctx context.Context, name string, own []netip.Addr) error {
	if len(own) == 0 {
		return nil
	}
	found, err := cmp.Or(m.config.Resolver, net.DefaultResolver).LookupNetIP(ctx, "ip", name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	return checkAddresses(name, found, own)
}

func checkAddresses(name string, found, own []netip.Addr) error {
	if len(found) == 0 {
		return errors.New("the DNS has no address of " + name)
	}
	for _, addr := range found {
		if !slices.Contains(own, addr.Unmap()) {
			return fmt.Errorf("the DNS of %s points at %s, which is not here", name, addr.Unmap())
		}
	}
	return nil
}
