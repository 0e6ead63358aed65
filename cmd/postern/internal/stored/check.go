package stored

import (
	"context"
	"errors"

	"postern/bridge"
	"postern/proxy/state"
)

// A FileReport has the result of a check of one file of the state.
type FileReport struct {
	File    string   `json:"file"`
	Octets  int64    `json:"octets"`
	Records int      `json:"records"`
	Lost    int64    `json:"lost,omitempty"`    // accounts that the record should have
	Damaged []string `json:"damaged,omitempty"` // errors of records that cannot be read
}

// maxDamage is the largest number of damaged records in a FileReport.
const maxDamage = 100

// CheckState reads every record of each file, and answers with a report of each file.
var CheckState = Question[struct{}, FileReport]{"state/check", func(ctx context.Context, m *Storage, _ struct{}, each func(FileReport) error) error {
	a, err := m.open(ctx)
	if err != nil && (a == nil || a.Record.Err() == nil) { // a broken file is named below
		return err
	}
	for _, f := range []*state.Bolt{a.Record, a.Cache} {
		c := FileReport{File: f.Path(), Octets: f.Size()}
		err := errors.Join(f.Check(ctx), f.Recreated())
		if err == nil && f == a.Record {
			var damaged []error
			c.Records, damaged, err = bridge.Check(ctx, a.uidls)
			for _, d := range damaged[:min(len(damaged), maxDamage)] {
				c.Damaged = append(c.Damaged, d.Error())
			}
		}
		if f == a.Record && a.Lost.Load() > 0 {
			err = errors.Join(err, a.countLost(ctx))
			c.Lost = a.Lost.Load()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			c.Damaged = append(c.Damaged, err.Error())
		}
		if err := each(c); err != nil {
			return err
		}
	}
	return nil
}}
