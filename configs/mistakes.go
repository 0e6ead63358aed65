package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// An Error is one mistake in a configuration file.
type Error struct {
	File         string
	Line, Column int    // from 1; of the key, or of the nearest one above that stands in the file; Column 0: not known
	Key          string // as in listeners[1].protocol; "": the file as a whole
	Text         string // what is wrong and what to write instead
}

// Error says the mistake as file:line: key: text.
func (e Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Key, e.Text)
}

// Errors is all mistakes of a configuration, in the order of the file.
type Errors []Error

// Error says the mistakes, one a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Errorf is a mistake at key, for those that show only when the configuration
// is used. A key that does not stand in the file gets the line of the nearest
// one above it.
func (c *Config) Errorf(key, format string, args ...any) Error {
	at := c.position(key)
	return Error{c.file, at.line, at.column, key, fmt.Sprintf(format, args...)}
}

// Stands reports whether key stands in the file: else it has its default.
func (c *Config) Stands(key string) bool {
	_, ok := c.positions[key]
	return ok
}

type position struct{ line, column int }

func (c *Config) position(key string) position {
	for {
		if at, ok := c.positions[key]; ok {
			return at
		}
		if key == "" {
			return position{line: 1}
		}
		key = parent(key)
	}
}

// parent is the key above: listeners[1].protocol, listeners[1], listeners, "".
func parent(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

// mistakes collects what is wrong with a configuration.
type mistakes struct {
	cfg    *Config
	errs   Errors
	spoilt map[string]bool // keys whose value could not be read
}

func (m *mistakes) add(key, format string, args ...any) {
	m.errs = append(m.errs, m.cfg.Errorf(key, format, args...))
}

// addAt is add for a key that stands, once more, somewhere else.
func (m *mistakes) addAt(at position, key, format string, args ...any) {
	m.errs = append(m.errs, Error{m.cfg.file, at.line, at.column, key, fmt.Sprintf(format, args...)})
}

// spoil adds a mistake after which key has no value that could be judged.
func (m *mistakes) spoil(key, format string, args ...any) {
	m.add(key, format, args...)
	m.spoilt[key] = true
}

// judge adds a mistake in the value of key, unless that value is lost: one slip
// of the pen is told once.
func (m *mistakes) judge(key, format string, args ...any) {
	if !m.lost(key) {
		m.add(key, format, args...)
	}
}

// lost says whether key or one above it is spoilt.
func (m *mistakes) lost(key string) bool {
	for ; key != ""; key = parent(key) {
		if m.spoilt[key] {
			return true
		}
	}
	return m.spoilt[""]
}

// err is all mistakes in the order of the file, nil if there are none.
func (m *mistakes) err() error {
	if len(m.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(m.errs, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return m.errs
}

// quote shows a value of the file, shortened.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// list says words as "a, b or c".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
