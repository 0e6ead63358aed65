package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// canBind is CAP_NET_BIND_SERVICE, which the unit gives the service.
const canBind = 10

// checkAs runs check once more as the service's user: root can read and open files that
// the user cannot. If must is false, the user need not exist.
func checkAs(ctx context.Context, name, config string, must bool) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := osuser.Lookup(name)
	if err != nil {
		if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown && !must {
			return nil
		}
		return fmt.Errorf("check as %s: %w", name, err)
	}
	credential, err := credentialOf(u)
	if err != nil {
		return fmt.Errorf("check as %s: %w", name, err)
	}
	config, err = filepath.Abs(config)
	if err != nil {
		return fmt.Errorf("check as %s: %w", name, err)
	}
	// This path works also if the user may not read the program's directory.
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{"postern", "check", "--open", "--config", config}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, AmbientCaps: []uintptr{canBind}}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if stderr.Len() == 0 {
			stderr.WriteString(err.Error())
		}
		return fmt.Errorf("as the user %s:\n%s", name, strings.TrimRight(stderr.String(), "\n"))
	}
	return nil
}

func credentialOf(u *osuser.User) (*syscall.Credential, error) {
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	var numbers []uint32
	for _, s := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, uint32(n))
	}
	return &syscall.Credential{Uid: numbers[0], Gid: numbers[1], Groups: numbers[2:]}, nil
}
