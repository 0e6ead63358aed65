package service

import (
	"cmp"
	"runtime/debug"
)

// version is the version of a package, which .ci/package has the linker write. Empty: none.
var version string

// A BuildVersion has the version and the revision that the Go tool or .ci/package wrote into the binary.
type BuildVersion struct{ Version, Revision string }

// ReadVersion returns the BuildVersion of this binary.
func ReadVersion() BuildVersion {
	v := BuildVersion{Version: "(devel)", Revision: "unknown revision"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Version = cmp.Or(version, info.Main.Version, v.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				v.Revision += ", modified"
			}
		}
	}
	return v
}
