package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A crowd is many clients that begin a handshake and do not go on. They are a
// process of their own, for a process has few descriptors.
type crowd struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

// What each of a crowd sends.
const (
	sendNothing = "nothing"
	sendHalf    = "half" // of a ClientHello
	sendAll     = "all"  // of it, and takes what answers
)

// gather connects n clients to address, and returns once all have sent.
func gather(t testing.TB, address, sends string, n int) *crowd {
	t.Helper()
	c := &crowd{cmd: exec.Command("crowd", address, sends, strconv.Itoa(n))} // testscript.Main has put it into $PATH
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.leave)
	if line, err := c.out.ReadString('\n'); err != nil || line != "there\n" {
		t.Fatalf("the crowd says %q, %v", line, err)
	}
	return c
}

// leave ends the crowd. It may be called again.
func (c *crowd) leave() {
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

// longest waits until all of the crowd are dropped, and returns how long the
// one was there that was there longest.
func (c *crowd) longest(t testing.TB) time.Duration {
	t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	d, err := time.ParseDuration(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// beCrowd is the main function of a crowd's process.
func beCrowd() {
	address, sends := os.Args[1], os.Args[2]
	n, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	go func() { // told to leave
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	lives := make(chan time.Duration, n)
	sent := make(chan struct{}, n)
	hello := clientHello()
	for range n {
		c, err := net.DialTimeout("tcp", address, 20*time.Second)
		if err != nil {
			panic(err)
		}
		go func() { lives <- linger(c, hello, sends, sent) }()
	}
	for range n {
		<-sent
	}
	fmt.Println("there")
	var longest time.Duration
	for range n {
		longest = max(longest, <-lives)
	}
	fmt.Println(longest)
	select {} // until told to leave
}

// linger is the life of one client.
func linger(c net.Conn, hello []byte, sends string, sent chan<- struct{}) time.Duration {
	begun := time.Now()
	switch sends {
	case sendHalf:
		_, _ = c.Write(hello[:len(hello)/2])
	case sendAll:
		_, _ = c.Write(hello)
		_, _ = c.Read(make([]byte, 1))
	}
	sent <- struct{}{}
	_, _ = io.Copy(io.Discard, c)
	return time.Since(begun)
}

// clientHello returns what a client of today sends.
func clientHello() []byte {
	c, s := net.Pipe()
	go func() { _ = tls.Client(c, &tls.Config{ServerName: "localhost"}).Handshake() }()
	b := make([]byte, 16<<10)
	n, err := s.Read(b)
	if err != nil {
		panic(err)
	}
	_ = s.Close()
	return b[:n]
}
