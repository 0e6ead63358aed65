package memserver

import (
	"bytes"
	"embed"
	"path"
)

//go:embed samples/*.eml
var samples embed.FS

// Samples returns the messages of the demo, with CRLF line ends in any checkout.
func Samples() [][]byte {
	entries, err := samples.ReadDir("samples")
	if err != nil {
		panic(err)
	}
	messages := make([][]byte, 0, len(entries))
	for _, entry := range entries {
		raw, err := samples.ReadFile(path.Join("samples", entry.Name()))
		if err != nil {
			panic(err)
		}
		raw = bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))
		messages = append(messages, bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n")))
	}
	return messages
}
