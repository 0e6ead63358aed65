package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// An Error is one mistake in a configuration file.
type Error struct {
	File   string `json:"file"`
	Line   int    `json:"line"`             // from 1; of the key, or of the nearest one above that stands in the file
	Column int    `json:"column,omitempty"` // from 1; 0: not known
	Key    string `json:"key,omitempty"`    // as in listeners[1].protocol; "": the file as a whole
	Text   string `json:"text"`             // what is wrong and what to write instead
}

// Error returns file:line: key: text.
func (e Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Key, e.Text)
}

// Warning returns file:line: key: warning: text, for a setting that is valid and may
// not be intended.
func (e Error) Warning() string {
	e.Text = "warning: " + e.Text
	return e.Error()
}

// Errors are all mistakes or all warnings of a configuration. Load returns them in the
// order of the file.
type Errors []Error

// Sort puts e in the order of the file.
func (e Errors) Sort() {
	slices.SortStableFunc(e, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// Error returns the mistakes, one a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Errorf returns a mistake or a warning at key that is found only when the
// configuration is used. A key that is not in the file gets the line of the nearest one above it.
func (c *Config) Errorf(key, format string, args ...any) Error {
	at := c.position(key)
	return Error{c.file, at.line, at.column, key, fmt.Sprintf(format, args...)}
}

// IsSet reports whether key is in the file: if not, it has its default.
func (c *Config) IsSet(key string) bool {
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

// parent returns the key above: listeners[1].protocol, listeners[1], listeners,
// "".
func parent(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

// mistakes collects the mistakes of a configuration.
type mistakes struct {
	cfg        *Config
	errs       Errors
	unreadable map[string]bool // keys whose value could not be read
}

func (m *mistakes) add(key, format string, args ...any) {
	m.errs = append(m.errs, m.cfg.Errorf(key, format, args...))
}

// addAt is add for a key that is in the file a second time.
func (m *mistakes) addAt(at position, key, format string, args ...any) {
	m.errs = append(m.errs, Error{m.cfg.file, at.line, at.column, key, fmt.Sprintf(format, args...)})
}

// addUnreadable adds a mistake and marks the value of key as unreadable.
func (m *mistakes) addUnreadable(key, format string, args ...any) {
	m.add(key, format, args...)
	m.unreadable[key] = true
}

// report adds a mistake in the value of key, unless the value is unreadable: one
// slip is reported once.
func (m *mistakes) report(key, format string, args ...any) {
	if !m.isUnreadable(key) {
		m.add(key, format, args...)
	}
}

// isUnreadable reports whether key or a key above it is unreadable.
func (m *mistakes) isUnreadable(key string) bool {
	for ; key != ""; key = parent(key) {
		if m.unreadable[key] {
			return true
		}
	}
	return m.unreadable[""]
}

// err returns all mistakes in the order of the file, or nil.
func (m *mistakes) err() error {
	if len(m.errs) == 0 {
		return nil
	}
	m.errs.Sort()
	return m.errs
}
