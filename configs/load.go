package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Load reads the configuration file at path and the certificates, keys and CAs
// it names. It opens no socket. Mistakes in the file are returned as Errors,
// all of them at once; a file that cannot be read is another error.
func Load(path string) (*Config, error) {
	m, err := readAll(path)
	if err != nil {
		return nil, err
	}
	m.checkFiles()
	if err := m.err(); err != nil {
		return nil, err
	}
	return m.cfg, nil
}

// Read is Load for one who does not serve: the files that the configuration
// names are not looked at, and need not be readable.
func Read(path string) (*Config, error) {
	m, err := readAll(path)
	if err != nil {
		return nil, err
	}
	if err := m.err(); err != nil {
		return nil, err
	}
	return m.cfg, nil
}

func readAll(path string) (*mistakes, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parse(path, data), nil
}

// Parse is Load for a text in memory: name stands for the path, and the files
// that the text names are not looked at.
func Parse(name string, data []byte) (*Config, error) {
	m := parse(name, data)
	if err := m.err(); err != nil {
		return nil, err
	}
	return m.cfg, nil
}

func parse(name string, data []byte) *mistakes {
	cfg := defaults()
	cfg.file = name
	cfg.positions = map[string]position{}
	m := &mistakes{cfg: &cfg, spoilt: map[string]bool{}}
	root := m.document(data)
	if root == nil {
		return m // nothing else can be known
	}
	m.decode(root)
	machine, _ := os.Hostname() // without one check asks for the key
	cfg.fillIn(machine)
	m.check()
	return m
}

// document parses the one YAML document in data; nil if it is none. A text of
// nothing but comments is an empty mapping: its author then learns what has to
// be in it.
func (m *mistakes) document(data []byte) *yaml.Node {
	if line := illegible(data); line != 0 {
		m.addAt(position{line: line}, "", "not text in UTF-8: a control character, or a letter in another encoding")
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return &yaml.Node{Kind: yaml.MappingNode}
	case err != nil:
		m.notYAML(data, err)
		return nil
	}
	switch err := d.Decode(&second); {
	case errors.Is(err, io.EOF):
		return doc.Content[0]
	case err != nil:
		m.notYAML(data, err)
	default:
		m.addAt(position{second.Line, second.Column}, "", "a second document begins here; one file holds one configuration")
	}
	return nil
}

// illegible is the first line with a byte that is no text, 0 if there is none:
// the yaml package refuses such bytes without saying where they are.
func illegible(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		control := func(r rune) bool { return unicode.IsControl(r) && r != '\t' && r != '\r' && r != '\n' }
		if !utf8.Valid(line) || bytes.ContainsFunc(line, control) {
			return n
		}
	}
	return 0
}

// The yaml package tells the line of a mistake in its text alone, and counts
// from 0 those that its parser, not its scanner, finds.
var (
	yamlError   = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)
	parserError = regexp.MustCompile(`^did not find expected (?:key|'-' indicator|',' or|node content|<document start>)`)
)

func (m *mistakes) notYAML(data []byte, err error) {
	line, text := 1, err.Error()
	if found := yamlError.FindStringSubmatch(text); found != nil {
		text = found[2]
		if n, err := strconv.Atoi(found[1]); err == nil {
			line = n
			if parserError.MatchString(text) {
				line++
			}
		}
	}
	lines := bytes.SplitN(data, []byte("\n"), line+1)
	line = min(line, len(lines)) // the end may be counted as a line of its own
	if bytes.HasPrefix(bytes.TrimLeft(lines[line-1], " "), []byte("\t")) {
		text += "; indent with spaces, not with tabs"
	}
	m.addAt(position{line: line}, "", "not YAML, here or in what begins here: %s", text)
}
