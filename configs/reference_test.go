package configs

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// Criterion: docs/configuration.md and the man page postern.yaml(5) have every key, with its type, default and meaning, as the code and configs/postern.yaml have them.
func TestTheReferenceIsCurrent(t *testing.T) {
	markdown := reference(t)
	for path, want := range map[string]string{"../docs/configuration.md": markdown, "postern.yaml.5": manOf(markdown)} {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got := readTestFile(t, filepath.Dir(path), filepath.Base(path)); got != want {
			t.Errorf("%s is old: run 'make reference'", path)
		}
	}
}

const manBegin = `.TH POSTERN.YAML 5 "" Postern Postern
.SH NAME
postern.yaml \- the configuration of postern(1)
.SH DESCRIPTION
The file is YAML. Unknown keys are mistakes.
.B postern check
names all mistakes at once, each with file, line and key.
.B postern reload
makes the running Postern read the file again.
`

const manEnd = `.SH FILES
.TP
.I /etc/postern/postern.yaml
The configuration that the commands read without \-\-config.
.TP
.I /usr/share/doc/postern/
The documentation.
.SH SEE ALSO
.BR postern (1),
.BR postern\-check (1),
.BR postern\-reload (1)
`

var (
	keyRow = regexp.MustCompile("^\\| `([^`]+)` \\| (.*?) \\| (.*?) \\| (.*) \\|$")
	link   = regexp.MustCompile(`\[([^\]]+)\]\([^)]+\)`)
	inCode = regexp.MustCompile("`([^`]+)`")
)

// manOf returns the reference as a man page.
func manOf(markdown string) string {
	var b strings.Builder
	b.WriteString(manBegin)
	roff := func(text string) string {
		text = strings.ReplaceAll(link.ReplaceAllString(text, "$1"), `\|`, "|")
		text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "–", `\(en`).Replace(text)
		text = inCode.ReplaceAllString(text, `\fB$1\fR`)
		if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
			text = `\&` + text
		}
		return text
	}
	isTitle := func(line string) bool { return strings.HasPrefix(line, "## ") }
	blank, prose := true, true // before this line there was a blank one, and before that prose
	_, text, _ := strings.Cut(markdown, "each with file, line and key.\n")
	for line := range strings.SplitSeq(text, "\n") {
		row := keyRow.FindStringSubmatch(line)
		switch title := strings.TrimPrefix(line, "## "); {
		case isTitle(line):
			fmt.Fprintf(&b, ".SH %s\n", roff(title))
		case row != nil:
			fmt.Fprintf(&b, ".TP\n.B %s\n%s.\n", roff(row[1]), roff(strings.TrimSuffix(row[4], ".")))
			switch row[3] {
			case "–", "none":
				fmt.Fprintf(&b, "(%s)\n", roff(row[2]))
			default:
				fmt.Fprintf(&b, "(%s; default: %s)\n", roff(row[2]), roff(row[3]))
			}
		case strings.HasPrefix(line, "|"):
		case line == "":
			blank = true
			continue
		default:
			if blank && prose {
				b.WriteString(".PP\n")
			}
			b.WriteString(roff(line) + "\n")
		}
		blank, prose = false, line != "" && row == nil && !isTitle(line)
	}
	return b.String() + manEnd
}

const preface = `# Configuration

Made by ` + "`make reference`" + ` from [configs/postern.yaml](../configs/postern.yaml), which shows all this as a file, and from the types
that it is read into. Unknown keys are mistakes. ` + "`postern check`" + ` names all mistakes at once, each with file, line and key.
` + "`postern check --print`" + ` prints a configuration with all defaults and presets, and says where each value comes from.

A duration is written 10s, 35m or 1h30m; a size 256MiB; a network 192.0.2.0/24, or as a single address. Paths are relative to the folder of
the file. NAME is a name of your own, [] an entry of a list. "–" has no default: it is needed, or means nothing alone.
`

// least are configurations in which little more stands than has to; the values
// of the other keys are their defaults.
var least = []string{`
listeners: [{protocol: imap, address: ":993", pop3: {}, guard: {}}]
tls: {certificates: [{cert: a, key: b}], acme: {email: a@example.org, names: [example.org], storage: s, eab: {key_id: a, mac_key_file: b}, on_demand: {names_file: a}}}
backends: {NAME: {imap: {address: "192.0.2.1:993"}}}
routes: [{hook: "http://127.0.0.1/", domain: example.org}]
accounts: {rewrite: [{match: a, to: b}]}
domains: [{domain: example.org, texts: {wrong: no}}]
`, `
tls: {acme: {email: a@example.org, names: [example.org], storage: s, challenge: dns-01, dns: {server: "192.0.2.1:53", key_file: a}}}
state: {path: /var/lib/postern}
`, `tls: {acme: {email: a@example.org, names: [example.org], storage: s, challenge: tls-alpn-01}}`}

// A writer makes the reference.
type writer struct {
	strings.Builder
	t        *testing.T
	defaults []*Config
	comments map[string]string // of the fields of types, as "Type.Field"
	meanings map[string][]string
	met      map[reflect.Type]string // the key that a type was first met at
}

func reference(t *testing.T) string {
	t.Helper()
	w := &writer{t: t, comments: fieldComments(t), met: map[reflect.Type]string{}}
	for _, text := range least {
		w.defaults = append(w.defaults, parse("/etc/postern/postern.yaml", []byte(text)).cfg)
	}
	w.WriteString(preface)
	sections := parseSections(readTestFile(t, ".", "postern.yaml"))
	for field := range reflect.TypeFor[Config]().Fields() {
		key := field.Tag.Get("yaml")
		if key == "" {
			continue
		}
		s, ok := sections[key]
		if !ok {
			t.Errorf("postern.yaml has no section %s", key)
		}
		w.meanings = s.meanings
		fmt.Fprintf(w, "\n## %s\n\n", key)
		if s.intro != "" {
			w.WriteString(s.intro + "\n\n")
		}
		w.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
		w.below(key, field.Type, field.Name, w.values(func(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByIndex(field.Index) }))
	}
	return w.String()
}

// A value is what a configuration has at a key.
type value struct {
	reflect.Value
	of *Config
}

// values is what get finds in each of the least configurations.
func (w *writer) values(get func(*Config) reflect.Value) (all []value) {
	for _, c := range w.defaults {
		all = append(all, value{get(c), c})
	}
	return all
}

// below writes what stands at a key: one row, or one for each of its fields.
func (w *writer) below(key string, t reflect.Type, field string, values []value) {
	switch {
	case t == reflect.TypeFor[Texts]():
		w.texts(key)
	case isLeaf(t):
		w.row(key, typeName(t), byDefault(key, values), w.meaning(key, field))
	case t.Kind() == reflect.Pointer:
		w.below(key, t.Elem(), field, inside(values, reflect.Value.Elem))
	case t.Kind() == reflect.Slice:
		w.below(key+"[]", t.Elem(), field, inside(values, func(v reflect.Value) reflect.Value {
			if v.Len() == 0 {
				return reflect.Value{}
			}
			return v.Index(0)
		}))
	case t.Kind() == reflect.Map:
		w.below(key+".NAME", t.Elem(), field, inside(values, func(v reflect.Value) reflect.Value { return v.MapIndex(reflect.ValueOf("NAME")) }))
	default:
		w.fields(key, t, field, values)
	}
}

func (w *writer) fields(key string, t reflect.Type, field string, values []value) {
	if first, again := w.met[t]; again {
		w.row(key, "keys", "–", "the same keys as "+code(first))
		return
	}
	if t == reflect.TypeFor[ListenerGuard]() {
		w.row(key, "keys", "as for all", "the budgets, `delay`, `dry_run` and `strict_nist` as under `guard`, and `account_sessions` as under `limits`, where they are other here")
		return
	}
	w.met[t] = key
	if m, ok := w.take(key); ok {
		w.row(key, "keys", "none", m)
	}
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		of := inside(values, func(v reflect.Value) reflect.Value { return v.FieldByIndex(f.Index) })
		switch name {
		case "":
		case ",inline":
			w.fields(key, f.Type, field, of)
		default:
			w.below(joinKey(key, name), f.Type, t.Name()+"."+f.Name, of)
		}
	}
}

func (w *writer) texts(key string) {
	if first, again := w.met[reflect.TypeFor[Texts]()]; again {
		w.row(key, "keys", "none", "the same keys as "+code(first))
		return
	}
	w.met[reflect.TypeFor[Texts]()] = key
	for f := range reflect.TypeFor[Texts]().Fields() {
		name := f.Tag.Get("yaml")
		w.row(joinKey(key, name), "text", "Postern's own", "for the reason "+code(name)+" in [support.md](support.md)")
	}
}

func (w *writer) row(key, kind, standard, meaning string) {
	fmt.Fprintf(w, "| `%s` | %s | %s | %s |\n", key, kind, standard, strings.ReplaceAll(meaning, "|", `\|`))
}

// inside is f of the values, where it finds something.
func inside(values []value, f func(reflect.Value) reflect.Value) (all []value) {
	for _, v := range values {
		if below := f(v.Value); below.IsValid() {
			all = append(all, value{below, v.of})
		}
	}
	return all
}

func isLeaf(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[Budget](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[slog.Level]():
		return true
	}
	switch t.Kind() {
	case reflect.Slice:
		return isLeaf(t.Elem()) && t.Elem() != reflect.TypeFor[Budget]()
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return false
	}
	return true
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration](), reflect.TypeFor[Days]():
		return "duration"
	case reflect.TypeFor[slog.Level]():
		return "text"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[Budget]():
		return "burst, every"
	case reflect.TypeFor[netip.Prefix]():
		return "network"
	case reflect.TypeFor[netip.Addr]():
		return "address"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Bool:
		return "true, false"
	case reflect.Int:
		return "number"
	}
	return "text"
}

// byDefault is the value of a key in the configurations in which it does not
// stand.
func byDefault(key string, values []value) string {
	values = slices.DeleteFunc(slices.Clone(values), func(v value) bool { return v.of.IsSet(strings.ReplaceAll(key, "[]", "[0]")) })
	if len(values) == 0 {
		return "–"
	}
	if key == "hostname" {
		return "the machine's"
	}
	for _, v := range values {
		if !v.IsZero() {
			return code(printValue(v.Value))
		}
	}
	if v := values[0]; v.Kind() == reflect.Int || v.Kind() == reflect.Bool {
		return code(printValue(v.Value))
	}
	return "none"
}

func printValue(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return shortDuration(x)
	case Budget:
		return fmt.Sprintf("{burst: %d, every: %s}", x.Burst, shortDuration(x.Every))
	case slog.Level:
		return strings.ToLower(x.String())
	}
	return fmt.Sprint(v.Interface())
}

func code(s string) string { return "`" + s + "`" }

// meaning is what postern.yaml says of a key, or else the comment of its field.
func (w *writer) meaning(key, field string) string {
	if m, ok := w.take(key); ok {
		return m
	}
	var kept []string
	for clause := range strings.SplitSeq(w.comments[field], "; ") {
		if clause != "" && !regexp.MustCompile(`^(?:""|nil|0)(?: \(|:)`).MatchString(clause) {
			kept = append(kept, clause)
		}
	}
	above := "above"
	if i := strings.LastIndex(key, "."); i > 0 {
		above = code(key[:i])
	}
	return cmp.Or(strings.Join(kept, "; "), "see "+above)
}

// take returns the first text about a key that was not taken yet: a key that is
// in two places is told in the order of the types.
func (w *writer) take(key string) (text string, ok bool) {
	name := strings.TrimSuffix(key[strings.LastIndex(key, ".")+1:], "[]")
	texts := w.meanings[name]
	if len(texts) == 0 {
		return "", false
	}
	w.meanings[name] = texts[1:]
	return texts[0], true
}

// A section is what postern.yaml says of a key at the top.
type section struct {
	intro    string
	meanings map[string][]string // by key below
}

var (
	topKey   = regexp.MustCompile(`^(\w+):`)
	tableRow = regexp.MustCompile(`^#   (\w+) +(\S.*)$`)
	rest     = regexp.MustCompile(`^#    +(\S.*)$`)
	prose    = regexp.MustCompile(`^# ?(.*)$`)
	trailing = regexp.MustCompile(`^  (?:# )?(\w+):.* # (.*)$`)
)

func parseSections(text string) map[string]section {
	all := map[string]section{}
	var block []string
	var last section
	for line := range strings.SplitSeq(text, "\n") {
		switch key := topKey.FindStringSubmatch(line); {
		case key != nil:
			last = readSection(block)
			all[key[1]] = last
			block = nil
		case strings.HasPrefix(line, "#"):
			block = append(block, line)
		case line == "":
			block = nil
		default:
			if t := trailing.FindStringSubmatch(line); t != nil {
				last.meanings[t[1]] = append(last.meanings[t[1]], t[2])
			}
		}
	}
	return all
}

func readSection(block []string) section {
	s := section{meanings: map[string][]string{}}
	var paragraphs []string
	key := ""
	for _, line := range append(block, "#") {
		row, more, words := tableRow.FindStringSubmatch(line), rest.FindStringSubmatch(line), prose.FindStringSubmatch(line)
		switch {
		case row != nil:
			key = row[1]
			s.meanings[key] = append(s.meanings[key], row[2])
		case more != nil && key != "":
			texts := s.meanings[key]
			texts[len(texts)-1] += " " + more[1]
		case words[1] == "":
			paragraphs = append(paragraphs, "")
		default:
			key = ""
			if len(paragraphs) == 0 {
				paragraphs = append(paragraphs, "")
			}
			paragraphs[len(paragraphs)-1] += " " + words[1]
		}
	}
	for i, p := range paragraphs {
		p = strings.TrimSpace(p)
		if begun, ok := strings.CutSuffix(p, ":"); ok {
			p = begun + "."
		}
		paragraphs[i] = p
	}
	s.intro = strings.Join(slices.DeleteFunc(paragraphs, func(p string) bool { return p == "" }), "\n\n")
	return s
}

// fieldComments are the comments beside and above the fields of this package's
// types.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	comments := map[string]string{}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range s.Fields.List {
					for _, name := range field.Names {
						comments[spec.Name.Name+"."+name.Name] = strings.TrimSpace(cmp.Or(field.Comment.Text(), field.Doc.Text()))
					}
				}
			}
			return false
		})
	}
	return comments
}
