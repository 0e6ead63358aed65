package audit_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/audit"
)

// root is the folder of the module.
const root = "../.."

// documentedFields returns the fields in the list of docs/logs.md.
func documentedFields(t *testing.T) (fields []string) {
	t.Helper()
	text, err := os.ReadFile(root + "/docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, ok := strings.Cut(string(text), "\n## All fields\n")
	if !ok {
		t.Fatal("docs/logs.md has no list of fields")
	}
	list, _, _ = strings.Cut(list, "\n## ")
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(list, -1) {
		for _, field := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(row[1], -1) {
			fields = append(fields, field[1])
		}
	}
	return fields
}

// A walk collects the keys of log lines in the source.
type walk struct {
	keys   map[string]token.Position // and where one of them stands
	faults []string
	files  *token.FileSet
}

// visit looks at a call that logs, or at fields for one.
func (w *walk) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		switch name, from := callee(n); {
		case isLogger(from) && slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, name) && len(n.Args) > 0:
			w.pairs(n.Args[1:], n.Ellipsis.IsValid(), n.Pos())
		case isLogger(from) && name == "Log" && len(n.Args) > 2:
			w.pairs(n.Args[3:], n.Ellipsis.IsValid(), n.Pos())
		case isLogger(from) && name == "With":
			w.pairs(n.Args, n.Ellipsis.IsValid(), n.Pos())
		case isLogger(from) && strings.HasSuffix(name, "Context"):
			w.fault(n.Pos(), "a way to log that this test does not know")
		case from == "slog" && len(n.Args) == 2 && isKey(n.Args[0]): // slog.String and the like
			w.pairs(n.Args, false, n.Pos())
		case name == "Arguments": // of a request, package admin
			w.pairs(n.Args, n.Ellipsis.IsValid(), n.Pos())
		case name == "append" && len(n.Args) > 1 && (len(n.Args) > 2 && isKey(n.Args[1]) || isFields(n.Args[0])):
			w.pairs(n.Args[1:], n.Ellipsis.IsValid(), n.Pos())
		case name == "clientFields":
			w.pairs(n.Args[1:], n.Ellipsis.IsValid(), n.Pos())
		}
	case *ast.CompositeLit:
		if array, ok := n.Type.(*ast.ArrayType); ok && len(n.Elts) > 0 && isKey(n.Elts[0]) {
			if element, ok := array.Elt.(*ast.Ident); ok && element.Name == "any" {
				w.pairs(n.Elts, false, n.Pos())
			}
		}
	}
	return true
}

// pairs collects the keys of args, which are keys and values. With spread the last one
// is a slice of fields, which is seen where it is made.
func (w *walk) pairs(args []ast.Expr, spread bool, at token.Pos) {
	if spread {
		args = args[:len(args)/2*2]
	}
	if len(args)%2 != 0 {
		w.fault(at, "a key without a value")
		return
	}
	for i := 0; i < len(args); i += 2 {
		literal, ok := args[i].(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			w.fault(args[i].Pos(), "a key that is not a constant")
			continue
		}
		key, _ := strconv.Unquote(literal.Value)
		w.keys[key] = w.files.Position(literal.Pos())
	}
}

func (w *walk) fault(at token.Pos, text string) {
	w.faults = append(w.faults, w.files.Position(at).String()+": "+text)
}

// callee returns the name of what is called, and of what it is a method or member of.
func callee(call *ast.CallExpr) (name, from string) {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name, ""
	case *ast.SelectorExpr:
		switch x := f.X.(type) {
		case *ast.Ident:
			return f.Sel.Name, x.Name
		case *ast.SelectorExpr:
			return f.Sel.Name, x.Sel.Name
		case *ast.CallExpr:
			_, from := callee(x) // log.With(...).Info
			return f.Sel.Name, from
		}
		return f.Sel.Name, ""
	}
	return "", ""
}

func isLogger(name string) bool {
	return slices.Contains([]string{"log", "Log", "logger", "Logger", "slog"}, name)
}

// isKey reports whether e may be a key: a word in snake_case.
func isKey(e ast.Expr) bool {
	literal, ok := e.(*ast.BasicLit)
	return ok && regexp.MustCompile(`^"[a-z][a-z0-9_]*"$`).MatchString(literal.Value)
}

func isFields(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && slices.Contains([]string{"fields", "more"}, id.Name)
}

// Criterion: Every field of every log line is in the list of docs/logs.md, with one name everywhere, and the list has no others.
func TestFieldsOfLogLinesAreThoseOfTheList(t *testing.T) {
	w := walk{keys: make(map[string]token.Position), files: token.NewFileSet()}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "proxytest", "testdata", "acmetest"}, d.Name()):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(w.files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, w.visit)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range w.faults {
		t.Error(fault)
	}
	documented := documentedFields(t)
	for _, key := range slices.Sorted(maps.Keys(w.keys)) {
		if !slices.Contains(documented, key) {
			t.Errorf("%s: the field %s is not in docs/logs.md", w.keys[key], key)
		}
	}
	for i, field := range documented {
		if _, ok := w.keys[field]; !ok {
			t.Errorf("docs/logs.md has the field %s, which no line has", field)
		}
		if slices.Contains(documented[:i], field) {
			t.Errorf("docs/logs.md has the field %s twice", field)
		}
	}
}

// events are what a Log may observe, one of each type, with all fields that make a
// difference for a line.
func events() []proxy.Event {
	c, err := visitor, io.ErrUnexpectedEOF
	c.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, CurveID: tls.X25519, ServerName: "a", NegotiatedProtocol: "b"}
	decision := proxy.Decision{
		Network: netip.MustParsePrefix("192.0.2.1/32"), Tier: "t", New: true, Repeat: true, Bucket: "b", RetryAfter: time.Second, DryRun: true,
	}
	hello := &tls.ClientHelloInfo{ServerName: "a"}
	return []proxy.Event{
		proxy.Accepted{Client: c}, proxy.Opened{Client: c, Account: "alice"},
		proxy.AcceptFailed{Service: "imap", Err: err},
		proxy.Rejected{Client: c, Err: proxy.ErrNoProxyHeader},
		proxy.Handshake{Client: c, Result: proxy.HandshakeError, Reason: proxy.NoVersion, Hello: hello, Err: err},
		proxy.Handshake{Client: c, Result: proxy.HandshakeSilent, Err: err},
		proxy.CertificateRejected{Client: c, Alert: "unknown_ca"},
		proxy.Attempt{Client: c, Account: "alice", Backend: "main", Device: "fe3x9w05", ID: map[string]string{"name": "x"}, Delay: time.Second, Decision: decision},
		proxy.Attempt{Client: c, User: "bob", Account: "bob", Decision: decision, Err: &proxy.Refusal{Reason: proxy.Wrong, Doubtful: true}},
		proxy.Attempt{Client: c, Err: err},
		proxy.Closed{Client: c, Account: "alice", End: proxy.EndError, Err: err},
		proxy.Closed{Client: c, End: proxy.EndRefused, Err: proxy.ErrUnexpectedProxyHeader},
		proxy.Dialed{Backend: "main", Protocol: proxy.IMAP, Result: proxy.DialRefused, Err: err},
		proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Err: proxy.NewRefusal(proxy.Unavailable, err)},
		proxy.AccountQueued{Client: c, Account: "alice", Backend: "main", Protocol: proxy.IMAP, Result: proxy.QueueOK, Duration: time.Second},
		proxy.AccountQueued{Client: c, Account: "alice", Backend: "main", Protocol: proxy.IMAP, Result: proxy.QueueFull, Err: err},
		proxy.AccountThrottled{Client: c, Account: "alice", Backend: "main", Protocol: proxy.IMAP, Backoff: time.Minute},
		proxy.Probed{Backend: "main", Protocol: proxy.IMAP, Err: err},
		proxy.Identified{Backend: "main", Protocol: proxy.IMAP},
		proxy.MaildropOpened{Client: c}, proxy.POP3Command{}, proxy.MessageSent{},
		proxy.MaildropNoticed{Client: c, Account: "alice", Kind: proxy.NoticeRecord, Err: err},
		proxy.MailboxChanged{Backend: "main", Account: "alice", Kind: proxy.ChangeShrunk},
		proxy.BrakeChanged{Backend: "main", On: true, Since: time.Now(), Accepted: time.Now(), Err: err},
		proxy.ListingRefused{Reason: proxy.ListingsFull},
		proxy.Reconnected{Client: c, Account: "alice", Backend: "main", Cause: proxy.LostBye, Result: proxy.ReconnectFailed, Err: err},
		proxy.UIDLsLearnt{Client: c, Account: "alice", Backend: "main", Messages: 2, Found: 1}, proxy.UIDLsLearnt{Client: c, Account: "alice", Backend: "main", Messages: 1, Found: 1}, proxy.UIDLsLearnt{Client: c, Account: "alice", Backend: "main", Err: err},
		proxy.ShadowCompared{Client: c, Account: "alice", Backend: "main", Result: proxy.ShadowClean, Messages: 2, Found: 2},
		proxy.ShadowCompared{Client: c, Account: "alice", Backend: "main", Result: proxy.ShadowDiffers, Messages: 2, Found: 1, Missing: 1},
		proxy.ShadowCompared{Client: c, Account: "alice", Backend: "main", Result: proxy.ShadowFailed, Err: err},
		proxy.ShadowCompared{Client: c, Account: "alice", Backend: "main", Result: proxy.ShadowSkipped, Err: err},
		proxy.UpdateFailed{Client: c, Stage: proxy.StageSeen, Err: err},
		proxy.UpdateFailed{Client: c, Stage: proxy.StageStore, Err: err},
		proxy.PolicyRequested{Command: "allow", Result: proxy.PolicyFailed, Err: err},
		proxy.TokenRequested{Provider: "contoso", Kind: "microsoft", Result: proxy.TokenTemporary, Err: err},
		proxy.PasswordChecked{}, proxy.Routed{}, proxy.IMAPCommand{}, proxy.StateUsed{},
		proxy.CertificateObtained{}, proxy.CertificateFailed{}, proxy.CertificateDenied{},
		proxy.Panicked{Client: c, Value: "v", Stack: []byte("s")},
	}
}

// eventTypes returns the names of the types of package proxy that are events.
func eventTypes(t *testing.T) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), root+"/proxy/event.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil && f.Name.Name == "event" {
			names = append(names, f.Recv.List[0].Type.(*ast.Ident).Name)
		}
	}
	return names
}

// Criterion: Every line about a connection has listener, ip and session, whatever happened on it, and every line about an event has only fields of the list.
func TestEveryEventIsWrittenWithTheSameFields(t *testing.T) {
	documented := documentedFields(t)
	seen := make(map[string]bool)
	for _, e := range events() {
		seen[reflect.TypeOf(e).Name()] = true
		var out bytes.Buffer
		audit.New(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))).Observe(e)
		connection := reflect.ValueOf(e).FieldByName("Client").IsValid()
		for line := range strings.Lines(out.String()) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%T: %s: %v", e, line, err)
			}
			for _, key := range slices.Sorted(maps.Keys(fields)) {
				if !slices.Contains(documented, key) && !slices.Contains([]string{slog.TimeKey, slog.LevelKey, slog.MessageKey}, key) {
					t.Errorf("%T: the field %s is not in docs/logs.md: %s", e, key, line)
				}
			}
			if connection && (fields["listener"] != "pop3" || fields["ip"] != "192.0.2.1" || fields["session"] != "S1") {
				t.Errorf("%T: listener, ip or session is missing: %s", e, line)
			}
		}
	}
	for _, name := range eventTypes(t) {
		if !seen[name] {
			t.Errorf("this test has no %s", name)
		}
	}
}
