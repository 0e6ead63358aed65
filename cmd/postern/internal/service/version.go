package service

import (
	"runtime/debug"
)

// A buildVersion is what the Go tool wrote into the binary.
type buildVersion struct{ Version, Revision string }

func ReadVersion() buildVersion {
	v := buildVersion{Version: "(devel)", Revision: "unknown revision"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
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
