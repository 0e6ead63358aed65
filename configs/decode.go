package configs

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds the entries of a list, and the keys and values of a mapping.
const maxNodes = 10_000

// decode stores the document in the Config. The decoder of package yaml stops at
// the first unknown key and has no columns; decode keeps the position of each
// key, and goes on after a mistake.
func (m *mistakes) decode(root *yaml.Node) {
	m.value("", root, reflect.ValueOf(m.cfg).Elem())
}

func (m *mistakes) value(key string, n *yaml.Node, v reflect.Value) {
	want := nodeKind(v.Type())
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		m.addUnreadable(key, "anchors (&) and aliases (*) are not supported; write the value out, and quote one that begins with such a sign")
	case n.Style&yaml.TaggedStyle != 0:
		m.addUnreadable(key, "tags (!) are not supported; quote a value that begins with !")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		if want == yaml.ScalarNode {
			m.addUnreadable(key, "has no value; give it one or remove the key")
		} // else all keys below are commented out
	case n.Kind != want:
		hint := ""
		if want == yaml.ScalarNode && n.Style&yaml.FlowStyle != 0 {
			hint = "; put a value that begins with { or [ in quotes"
		}
		m.addUnreadable(key, "%s is expected here, not %s%s", nodeKindName(want), nodeKindName(n.Kind), hint)
	case len(n.Content) > maxNodes:
		m.addUnreadable(key, "too long; Postern reads %d entries at most", maxNodes)
	case want == yaml.ScalarNode:
		if err := scalar(n.Value, v); err != nil {
			m.addUnreadable(key, "%v", err)
		}
	case want == yaml.SequenceNode:
		m.list(key, n, v)
	case v.Kind() == reflect.Map:
		m.mapping(key, n, v)
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		m.structure(key, n, v.Elem())
	default:
		m.structure(key, n, v)
	}
}

func nodeKind(t reflect.Type) yaml.Kind {
	switch {
	case t == reflect.TypeFor[netip.Prefix](), t == reflect.TypeFor[netip.Addr]():
		return yaml.ScalarNode
	case t.Kind() == reflect.Slice:
		return yaml.SequenceNode
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map, t.Kind() == reflect.Pointer:
		return yaml.MappingNode
	}
	return yaml.ScalarNode
}

func nodeKindName(k yaml.Kind) string {
	switch k {
	case yaml.SequenceNode:
		return `a list ("- ..." or [...])`
	case yaml.MappingNode:
		return `keys with values ("key: value" or {key: value})`
	}
	return "a single value"
}

func (m *mistakes) list(key string, n *yaml.Node, v reflect.Value) {
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		k := fmt.Sprintf("%s[%d]", key, i)
		m.cfg.positions[k] = position{item.Line, item.Column}
		m.value(k, item, v.Index(i))
	}
}

func (m *mistakes) mapping(key string, n *yaml.Node, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	for name, item := range m.entries(key, n) {
		if !isName(name) {
			m.add(joinKey(key, name), "%s is not a name; use letters, digits, - and _", quote(name))
			continue
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		m.value(joinKey(key, name), item, elem)
		v.SetMapIndex(reflect.ValueOf(name), elem)
	}
}

func (m *mistakes) structure(key string, n *yaml.Node, v reflect.Value) {
	known := map[string]reflect.Value{}
	addFields(v, known)
	for name, item := range m.entries(key, n) {
		if field, ok := known[name]; ok {
			m.value(joinKey(key, name), item, field)
			continue
		}
		if near := nearestWord(name, maps.Keys(known)); near != "" {
			m.add(joinKey(key, name), "unknown key; is %s meant?", near)
			m.unreadable[joinKey(key, near)] = true
			continue
		}
		m.add(joinKey(key, name), "unknown key; known here: %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
}

// addFields adds the fields of a struct by their keys, and those of inlined
// structs.
func addFields(v reflect.Value, known map[string]reflect.Value) {
	for i := range v.NumField() {
		switch key := v.Type().Field(i).Tag.Get("yaml"); key {
		case "":
		case ",inline":
			addFields(v.Field(i), known)
		default:
			known[key] = v.Field(i)
		}
	}
}

// entries yields each key of a mapping once, and keeps its position.
func (m *mistakes) entries(key string, n *yaml.Node) iter.Seq2[string, *yaml.Node] {
	return func(yield func(string, *yaml.Node) bool) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			name, at := n.Content[i], position{n.Content[i].Line, n.Content[i].Column}
			if name.Kind != yaml.ScalarNode || name.Anchor != "" || name.Style&yaml.TaggedStyle != 0 {
				m.addAt(at, key, "a key is a plain word")
				continue
			}
			k := joinKey(key, name.Value)
			if first, ok := m.cfg.positions[k]; ok {
				m.addAt(at, k, "written twice; the first is in line %d", first.line)
				continue
			}
			m.cfg.positions[k] = at
			if !yield(name.Value, n.Content[i+1]) {
				return
			}
		}
	}
}

func joinKey(key, name string) string {
	if !isName(name) {
		name = quote(name) // it may be as long as the file, and hold line breaks
	}
	if key == "" {
		return name
	}
	return key + "." + name
}

// scalar parses a single value. Text is taken as written, without YAML's type
// detection: the address 993 and the version 1.2 are no numbers.
func scalar(text string, v reflect.Value) (err error) {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
	case *bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%s is neither true nor false", quote(text))
		}
		*p = text == "true"
	case *int:
		if *p, err = strconv.Atoi(text); err != nil {
			return fmt.Errorf("%s is not a whole number", quote(text))
		}
	case *time.Duration:
		*p, err = duration(text)
	case *Days:
		*p, err = ParseDays(text)
	case *Size:
		*p, err = ParseSize(text)
	case *netip.Prefix:
		*p, err = ParseNetwork(text)
	case *netip.Addr:
		if *p, err = netip.ParseAddr(text); err != nil || p.Zone() != "" {
			return fmt.Errorf("%s is not an IP address", quote(text))
		}
	case *slog.Level:
		*p, err = oneOf(text, "a log level", map[string]slog.Level{
			"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
		})
	default:
		panic("configs: no scalar: " + v.Type().String())
	}
	return err
}

func oneOf[T any](text, what string, values map[string]T) (T, error) {
	if v, ok := values[text]; ok {
		return v, nil
	}
	var none T
	return none, fmt.Errorf("%s is not %s; use %s", quote(text), what, joinWords(slices.Sorted(maps.Keys(values))))
}

func duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration; 35 minutes is written 35m, an hour and a half 1h30m, ten seconds 10s", quote(text))
	}
	return d, nil
}

// ParseNetwork parses a network such as 10.0.0.0/24, or an address, which is a
// network of one.
func ParseNetwork(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s is not a network; it is written 10.0.0.0/24 or 2001:db8::/64, a single address 10.0.0.40", quote(text))
	case p.Addr().Is4In6():
		return p, errors.New("an IPv4 network is written without the prefix ::ffff")
	case p != p.Masked():
		return p, fmt.Errorf("%s is an address inside its network; write %s for all of the network or %s for the address alone", quote(text), p.Masked(), p.Addr())
	}
	return p, nil
}

// nearestWord returns the known word that word is probably a misspelling of, or
// "".
func nearestWord(word string, known iter.Seq[string]) string {
	best, least := "", 1+min(2, len(word)/3)
	for _, k := range slices.Sorted(known) {
		if len(word)-len(k) >= least || len(k)-len(word) >= least {
			continue // also keeps a word as long as the file out of distance
		}
		if d := distance(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the letters to change, add, remove or swap with the next to
// make b of a.
func distance(a, b string) int {
	d := make([][]int, len(a)+1) // d[i][j]: between a[:i] and b[:j]
	for i := range d {
		d[i] = make([]int, len(b)+1)
		for j := range d[i] {
			if i == 0 || j == 0 {
				d[i][j] = i + j
				continue
			}
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
