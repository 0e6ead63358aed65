//go:build !linux

package proxy

import "errors"

const canPark = false

func newPoller() (poller, error) { return nil, errors.ErrUnsupported }
