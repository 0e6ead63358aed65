package configs

import _ "embed"

//go:embed postern.yaml.5
var manPage []byte

// ManPage returns the man page postern.yaml(5), which 'make reference' writes.
func ManPage() []byte { return append([]byte(nil), manPage...) }
