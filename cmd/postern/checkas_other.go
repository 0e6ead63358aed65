//go:build !linux

package main

import (
	"context"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/unit"
)

// checkAs does nothing: it is implemented for Linux only.
func checkAs(context.Context, string, string, *unit.Unit) (*service.Report, error) { return nil, nil }
