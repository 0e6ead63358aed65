package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/proxy/proxytest"
)

func TestMain(m *testing.M) {
	testscript.Main(play{m}, map[string]func(){
		"postern": func() { os.Exit(command(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// The scripts have a certificate mail.pem, its key mail.key and ca.pem beside
// them, $HELD, a port of the test's own process, and $FREE, one of nobody.
func TestScripts(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() }) // the scripts run in parallel, after this function
	cert, key, ca := proxytest.CertFiles(t, "mail.example.org")
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"expand": func(ts *testscript.TestScript, _ bool, args []string) { // $VARIABLES in files
				for _, name := range args {
					ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
				}
			},
		},
		Setup: func(env *testscript.Env) error {
			for name, path := range map[string]string{"mail.pem": cert, "mail.key": key, "ca.pem": ca} {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), content, 0o600); err != nil {
					return err
				}
			}
			env.Setenv("HELD", strconv.Itoa(portOf(held)))
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer free.Close()
			env.Setenv("FREE", strconv.Itoa(portOf(free)))
			return nil
		},
	})
}
