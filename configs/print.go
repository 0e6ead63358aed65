package configs

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Print writes the configuration as YAML, with the defaults and with what the kinds of
// providers preset. A value that the file does not have is followed by where it comes from.
// What is off or empty by default is left out, and passwords in URLs are hidden.
func (c *Config) Print(out io.Writer) error {
	e := yaml.NewEncoder(out)
	e.SetIndent(2)
	if err := e.Encode(c.node("", reflect.ValueOf(c))); err != nil {
		return err
	}
	return e.Close()
}

// node returns the value of a key; nil: the value is left out.
func (c *Config) node(key string, v reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: nodeKind(v.Type())}
	switch {
	case key == "pop3.delete" && c.deleteDiffers():
		return nil
	case n.Kind == yaml.ScalarNode:
		if v.IsZero() && !c.IsSet(key) {
			return nil
		}
		n.Value, n.LineComment = scalarText(v), c.origin(key)
		if v.Kind() == reflect.String {
			n.Tag = "!!str" // quoted where another reader would take it for a number
		}
		return n
	case v.Kind() != reflect.Struct && v.IsNil():
		return nil
	case v.Kind() == reflect.Pointer:
		return c.node(key, v.Elem())
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			if item := c.node(fmt.Sprintf("%s[%d]", key, i), v.Index(i)); item != nil {
				n.Content = append(n.Content, item)
			}
		}
		if len(n.Content) > 0 && n.Content[0].Kind == yaml.ScalarNode {
			n.Style = yaml.FlowStyle // on one line: the items have one origin
			n.LineComment = c.origin(key)
			for _, item := range n.Content {
				item.LineComment = ""
			}
		}
	case v.Kind() == reflect.Map:
		for _, name := range slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			n.Content = append(n.Content, c.entry(key, name.String(), v.MapIndex(name))...)
		}
	default:
		c.fields(key, v, n)
	}
	if len(n.Content) == 0 && !c.IsSet(key) {
		return nil
	}
	return n
}

// fields adds the fields of a struct to n.
func (c *Config) fields(key string, v reflect.Value, n *yaml.Node) {
	l, _ := reflect.TypeAssert[Listener](v)
	for i := range v.NumField() {
		switch name := v.Type().Field(i).Tag.Get("yaml"); {
		case name == "":
		case name == ",inline":
			c.fields(key, v.Field(i), n)
		case name == "tls_profile" && l.TLS == "refuse": // a mistake in a file
		default:
			n.Content = append(n.Content, c.entry(key, name, v.Field(i))...)
		}
	}
}

// entry returns a key of a mapping and its value, or nothing.
func (c *Config) entry(key, name string, v reflect.Value) []*yaml.Node {
	value := c.node(joinKey(key, name), v)
	if value == nil {
		return nil
	}
	before := ""
	if key == "pop3" && name == "lock" && c.deleteDiffers() {
		before = "delete: trash at backends of kind: google, expunge at others; a value here would hold for all"
	}
	return []*yaml.Node{{Kind: yaml.ScalarNode, Value: name, HeadComment: before}, value}
}

// deleteDiffers reports whether the default of pop3.delete is not the same for all backends,
// so that no value stands for it.
func (c *Config) deleteDiffers() bool {
	return !c.IsSet("pop3.delete") && slices.ContainsFunc(slices.Collect(maps.Values(c.Backends)), func(b Backend) bool {
		return c.Providers[b.Token].Kind == ProviderGoogle
	})
}

// origin returns where a value comes from that the file does not have; "": the file has it.
func (c *Config) origin(key string) string {
	if c.IsSet(key) {
		return ""
	}
	for name, b := range c.Backends {
		kind := c.Providers[b.Token].Kind
		preset, ok := presets[kind]
		if !ok {
			continue
		}
		for part, values := range map[string]any{"imap": preset.imap, "submission": preset.submission, "account_connections": preset.connections} {
			below := joinKey("backends", name) + "." + part + "."
			field, found := strings.CutPrefix(key, below)
			if !found {
				continue
			}
			known := map[string]reflect.Value{}
			addFields(reflect.ValueOf(values), known)
			if value, ok := known[field]; ok && !value.IsZero() {
				return "kind: " + kind
			}
		}
	}
	return "default"
}

// scalarText returns a single value as scalar reads it.
func scalarText(v reflect.Value) string {
	switch v := v.Interface().(type) {
	case string:
		return withoutPassword(v)
	case slog.Level:
		return strings.ToLower(v.String())
	case time.Duration: // 1h0m0s as 1h
		text := v.String()
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		return text
	default:
		return fmt.Sprint(v)
	}
}

// withoutPassword returns text, and of a URL with a password the URL without that.
func withoutPassword(text string) string {
	if u, err := url.Parse(text); err == nil && u.User != nil {
		return u.Redacted()
	}
	return text
}
