package stored

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/password"
	"postern/proxy/state"
)

// A FileReport has the result of a check of one file of the state.
type FileReport struct {
	File    string   `json:"file"`
	Missing bool     `json:"missing,omitempty"` // the next start makes the file
	Shared  bool     `json:"shared,omitempty"`  // File is no file, but the place of the record that several Posterns share
	Octets  int64    `json:"octets"`
	Records int      `json:"records"`
	Lost    int64    `json:"lost,omitempty"`    // accounts that the record should have
	Damaged []string `json:"damaged,omitempty"` // errors of records that cannot be read
}

// maxDamage is the largest number of damaged records in a FileReport.
const maxDamage = 100

// CheckState reads every record of each file, and answers with a report of each file. It is
// for the running Postern: see CheckFiles.
var CheckState = Question[struct{}, FileReport]{"state/check", func(ctx context.Context, m *Storage, _ struct{}, each func(FileReport) error) error {
	a, err := m.open(ctx)
	if err != nil && (a == nil || a.Record.Err() == nil) { // a broken file is named below
		return err
	}
	if a.Shared != nil {
		c := FileReport{File: a.Shared.Where, Shared: true}
		if err := c.checkRecords(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", a.Shared.Where, err)
		}
		if err := each(c); err != nil {
			return err
		}
	}
	for _, f := range []*state.Bolt{a.Record, a.Cache} {
		c := FileReport{File: f.Path(), Octets: f.Size()}
		err := errors.Join(f.Check(ctx), f.Recreated())
		if err == nil && f == a.Record && a.Shared == nil {
			err = c.checkRecords(ctx, a)
		}
		if f == a.Record && a.Record.Err() == nil { // the error of a broken file has its own advice
			err = withRemedy(err)
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

// checkRecords reads the record of each account, and all device passwords.
func (c *FileReport) checkRecords(ctx context.Context, a *Files) (err error) {
	var damaged []error
	c.Records, damaged, err = bridge.Check(ctx, a.uidls)
	for _, d := range damaged[:min(len(damaged), maxDamage)] {
		c.Damaged = append(c.Damaged, d.Error())
	}
	if err != nil {
		return err
	}
	devices := &password.Devices{Bucket: a.devices}
	return devices.List(ctx, "", func(d password.Device) error {
		c.Records++
		if d.Damaged && len(c.Damaged) < maxDamage {
			c.Damaged = append(c.Damaged, fmt.Sprintf("%s: device %s cannot be read: postern password remove %s %s, then make the password anew", d.Account, d.ID, d.Account, d.ID))
		}
		return nil
	})
}

// CheckFiles calls each with a report of each file of the state: that of the running
// Postern, or, when none runs, its own. Then CheckFiles changes nothing.
func CheckFiles(ctx context.Context, cfg *configs.Config, each func(FileReport) error) error {
	q := Question[struct{}, FileReport]{CheckState.Name, func(ctx context.Context, _ *Storage, _ struct{}, each func(FileReport) error) error {
		return checkClosed(ctx, cfg, each)
	}}
	return q.ask(ctx, cfg, struct{}{}, each, func(context.Context, *configs.Config) (*Storage, error) {
		return new(Storage), recordExists(cfg.State.Path)
	})
}

// checkClosed calls each with a report of each file of cfg, which no process has open, and of
// the shared record.
func checkClosed(ctx context.Context, cfg *configs.Config, each func(FileReport) error) error {
	dir := cfg.State.Path
	if cfg.State.Record != nil {
		if err := checkShared(ctx, cfg, each); err != nil {
			return err
		}
	}
	record, recordReport, err := openToCheck(ctx, dir, RecordFile)
	if err != nil {
		return withRemedy(err)
	}
	cache, cacheReport, err := openToCheck(ctx, dir, CacheFile)
	if err != nil {
		return err
	}
	a := newFiles(record, cache, nil)
	if record != nil {
		defer func() { _ = record.Close() }()
	}
	if record != nil && cfg.State.Record == nil {
		if err := recordReport.checkRecords(ctx, a); err != nil {
			recordReport.Damaged = append(recordReport.Damaged, err.Error())
		}
	}
	if cache != nil {
		defer func() { _ = cache.Close() }()
	}
	if record != nil && cache != nil && cfg.State.Record == nil {
		lost, err := a.lost(ctx)
		if err != nil {
			recordReport.Damaged = append(recordReport.Damaged, err.Error())
		}
		recordReport.Lost = int64(lost)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(each(recordReport), each(cacheReport))
}

// checkShared calls each with a report of the record that several Posterns share.
func checkShared(ctx context.Context, cfg *configs.Config, each func(FileReport) error) error {
	shared, err := openShared(cfg, state.Identity.Check, nil)
	if err != nil {
		return err
	}
	defer func() { _ = shared.Close() }()
	c := FileReport{File: shared.Where, Shared: true}
	if err := c.checkRecords(ctx, newFiles(nil, nil, shared)); err != nil {
		return fmt.Errorf("%s: %w", shared.Where, err)
	}
	return each(c)
}

// openToCheck opens the file with a name in dir, reads all of it, and returns its report. The
// file is nil if it is damaged or not there.
func openToCheck(ctx context.Context, dir, name string) (*state.Bolt, FileReport, error) {
	c := FileReport{File: filepath.Join(dir, name)}
	info, err := os.Stat(c.File)
	if errors.Is(err, fs.ErrNotExist) {
		c.Missing = true
		return nil, c, nil
	}
	if err != nil {
		return nil, c, err
	}
	c.Octets = info.Size()
	f, err := state.Open(c.File, state.Options{ReadOnly: true})
	if err == nil {
		if err = f.Check(ctx); err == nil {
			return f, c, nil
		}
		_ = f.Close()
	}
	if !errors.Is(err, state.ErrDamaged) {
		return nil, c, err
	}
	if name == RecordFile {
		err = withRemedy(err)
	} else {
		err = fmt.Errorf("%w: the next start begins it anew, and the login guard then knows nobody", err)
	}
	c.Damaged = append(c.Damaged, err.Error())
	return nil, c, nil
}

// CheckStart returns the error with which Open would refuse the files in dir, and a warning
// about files with which Postern starts all the same; nil: none. It does not read all of
// them, and changes nothing. Files that a running Postern has open are good.
func CheckStart(cfg *configs.Config) (warning, err error) {
	dir, files := cfg.State.Path, map[string]*state.Bolt{}
	for _, name := range []string{CacheFile, RecordFile} {
		if err := state.CheckPath(filepath.Join(dir, name), state.Options{}); err != nil {
			return nil, fmt.Errorf("open state: %w", err)
		}
	}
	for _, name := range []string{CacheFile, RecordFile} {
		f, err := openToStart(filepath.Join(dir, name))
		switch {
		case errors.Is(err, state.ErrInUse):
			return nil, nil
		case errors.Is(err, state.ErrDamaged) && name == CacheFile:
			warning = fmt.Errorf("%w: a start begins it anew, and the login guard then knows nobody", err)
		case err != nil:
			return nil, withRemedy(err)
		case f != nil:
			defer func() { _ = f.Close() }()
			files[name] = f
		}
	}
	if f := files[RecordFile]; f != nil && cfg.State.Record == nil {
		if err := newFiles(f, nil, nil).checkMoved(context.Background()); err != nil {
			return nil, err
		}
	}
	if files[CacheFile] == nil || cfg.State.Record != nil {
		return warning, nil
	}
	a, lost := newFiles(files[RecordFile], files[CacheFile], nil), 0
	if a.Record == nil {
		var accounts []string
		accounts, err = bridge.Accounts(context.Background(), a.listings)
		lost = len(accounts)
	} else {
		lost, err = a.lost(context.Background())
	}
	switch {
	case err != nil:
		return err, nil // a file that cannot be read does not prevent the start
	case lost > 0:
		return fmt.Errorf("%s: %s has nothing of %d accounts that %s knows: %s", LostRecord, RecordFile, lost, CacheFile, LostRemedy), nil
	}
	return nil, nil
}

// openToStart opens the file at path to read. It returns nil for a file that a start makes.
func openToStart(path string) (*state.Bolt, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil, nil
	}
	return state.Open(path, state.Options{ReadOnly: true, NoWait: true})
}
