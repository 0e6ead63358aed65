//go:build !linux

package stored

// AsOwner calls f: it is implemented for Linux only.
func AsOwner(_ string, f func() error) error { return f() }

// AsSelf calls f.
func AsSelf(f func() error) error { return f() }
