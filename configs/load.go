package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Load reads the configuration file at path, and the certificates, keys and CAs
// that it names. It opens no socket. Mistakes in the file are returned as Errors,
// all of them; a file that cannot be read is another error.
func Load(path string) (*Config, error) {
	m, err := readAndCheck(path)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("read configuration: %s", Unreadable(path, err))
	}
	if err != nil {
		return nil, err
	}
	m.checkFiles()
	if err := m.err(); err != nil {
		return nil, err
	}
	return m.cfg, nil
}

// Read is Load for a process that does not serve: files that the configuration
// names are not read, and may be unreadable.
func Read(path string) (*Config, error) {
	m, err := readAndCheck(path)
	if err != nil {
		return nil, err
	}
	if err := m.err(); err != nil {
		return nil, err
	}
	return m.cfg, nil
}

func readAndCheck(path string) (*mistakes, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parse(path, data), nil
}

// Parse is Load for a text in memory: name is used as its path, and files that
// the text names are not read.
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
	m := &mistakes{cfg: &cfg, unreadable: map[string]bool{}}
	root := m.document(data)
	if root == nil {
		return m // there is nothing to check
	}
	m.decode(root)
	machine, _ := os.Hostname() // without one check reports the missing key
	cfg.fillIn(machine)
	m.check()
	return m
}

// document parses the one YAML document in data; it returns nil if there is none.
// A text of nothing but comments is an empty mapping: the errors then say what is
// missing.
func (m *mistakes) document(data []byte) *yaml.Node {
	if line := firstInvalidLine(data); line != 0 {
		m.addAt(position{line: line}, "", "not text in UTF-8: a control character, or a letter in another encoding")
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return &yaml.Node{Kind: yaml.MappingNode}
	case err != nil:
		m.addYAMLError(data, err)
		return nil
	}
	switch err := d.Decode(&second); {
	case errors.Is(err, io.EOF):
		return doc.Content[0]
	case err != nil:
		m.addYAMLError(data, err)
	default:
		m.addAt(position{second.Line, second.Column}, "", "a second document begins here; one file holds one configuration")
	}
	return nil
}

// firstInvalidLine returns the first line that is no text, or 0: package yaml
// refuses such bytes without their position.
func firstInvalidLine(data []byte) int {
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

// Package yaml has the line of an error only in its text, and counts from 0 the
// lines of its parser, but not those of its scanner.
var (
	yamlError     = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)
	parserError   = regexp.MustCompile(`^did not find expected (?:key|'-' indicator|',' or|node content|<document start>)`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`) // the only error without a line
)

func (m *mistakes) addYAMLError(data []byte, err error) {
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
	lines := strings.Split(string(data), "\n")
	if found := unknownAnchor.FindStringSubmatch(text); found != nil {
		line = 1 + slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "*"+found[1]) })
	}
	line = max(1, min(line, len(lines))) // the end may count as a line
	for n := line; n <= min(line+1, len(lines)); n++ {
		if tabIndent.MatchString(lines[n-1]) {
			m.addAt(position{line: n}, "", "a tab in the indentation; indent with spaces")
			return
		}
	}
	if key, value := unquoted(lines[line-1]); value != "" {
		m.addAt(position{line: line}, key, "put the value in quotes: %s", strings.TrimPrefix(key+": "+quote(value), ": "))
		return
	}
	hint := ""
	switch {
	case strings.HasPrefix(text, "mapping values"):
		hint = `; put a value that has ": " in it in quotes, and write the keys of one level in one column`
	case openBracket.MatchString(lines[line-1]):
		hint = "; put a value that begins with { or [ in quotes"
	}
	m.addAt(position{line: line}, "", "not YAML, here or in what begins here: %s%s", text, hint)
}

var (
	tabIndent   = regexp.MustCompile(`^ *\t\s*\S`)
	openBracket = regexp.MustCompile(`: +[{\[]`)

	// needsQuotes finds a value, of a key or in a list, that begins with a sign which
	// means something else in YAML, or with an IPv6 address in brackets.
	needsQuotes = regexp.MustCompile("(?:([A-Za-z_][A-Za-z0-9_]*):[ \t]+|-[ \t]+|[\\[,][ \t]*)(\\[[0-9A-Fa-f:.]*\\]:[0-9]+|[:%@`*&!|>?\\]},].*)")
)

// unquoted returns the first value in a line that needs quotes, with its key, which is
// "" in a list; or "".
func unquoted(line string) (key, value string) {
	found := needsQuotes.FindStringSubmatchIndex(line)
	if found == nil {
		return "", ""
	}
	if found[2] >= 0 {
		key = line[found[2]:found[3]]
	}
	value, _, _ = strings.Cut(line[found[4]:found[5]], " #")
	if strings.ContainsAny(line[:found[4]], "{[") { // in a list or mapping of one line
		first := value[:1]
		value, _, _ = strings.Cut(value[1:], ",")
		value = first + strings.TrimRight(value, "]} ")
	}
	return key, strings.TrimSpace(value)
}
