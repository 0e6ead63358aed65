package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/unit"
)

// canBind is CAP_NET_BIND_SERVICE, which the unit gives the service.
const canBind = 10

// checkAs runs check once more as the service's user: root can read and open files that
// the user cannot. The user has the name, or is that of the unit, or the packages' user. The
// report is nil if there is no user to try.
func checkAs(ctx context.Context, name, config string, u *unit.Unit) (*service.Report, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	must := name != ""
	if !must {
		name = defaultUser
		if u != nil {
			name = cmp.Or(u.User, "root")
		}
	}
	account, err := osuser.Lookup(name)
	if err != nil {
		if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown && !must {
			return nil, nil
		}
		return nil, fmt.Errorf("check as %s: %w", name, err)
	}
	credential, err := credentialOf(account)
	if err != nil {
		return nil, fmt.Errorf("check as %s: %w", name, err)
	}
	if credential.Uid == 0 {
		return nil, nil
	}
	absolute, err := filepath.Abs(config)
	if err != nil {
		return nil, fmt.Errorf("check as %s: %w", name, err)
	}
	// This path works also if the user may not read the program's directory.
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{"postern", "check", "--open", "--json", "--config", absolute}
	if u != nil {
		cmd.Args = append(cmd.Args, "--unit")
	}
	cmd.Dir = "/"
	// Of a session of its own: the user may trace the process, and would type into root's
	// terminal by it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, AmbientCaps: []uintptr{canBind}, Setsid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r service.Report
	if json.Unmarshal(out, &r) != nil {
		if stderr.Len() == 0 && err != nil {
			stderr.WriteString(err.Error())
		}
		return nil, fmt.Errorf("check as %s: %s", name, strings.TrimRight(stderr.String(), "\n"))
	}
	r.File, r.User = config, name
	return &r, nil
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
