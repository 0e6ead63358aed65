package password

import (
	"context"
	"strings"
)

// Counts are the numbers of device passwords. Each device is in one of Working, Expired,
// Foreign and Damaged.
type Counts struct {
	Accounts int // that have devices
	Working  int
	Expired  int // their last day is over
	Foreign  int // made with a key that Devices.Keys does not have: their passwords do not work
	Damaged  int // cannot be read: their logins are refused temporarily
}

// Devices returns the number of all devices.
func (c Counts) Devices() int { return c.Working + c.Expired + c.Foreign + c.Damaged }

// Count counts all devices, by reading them all.
func (d *Devices) Count(ctx context.Context) (c Counts, err error) {
	today, last := d.today(), ""
	marks := map[string]bool{}
	for _, key := range d.Keys {
		marks[keyMark(key)] = true
	}
	err = d.Bucket.Scan(ctx, "", func(at string, value []byte) error {
		if account, _, _ := strings.Cut(at, "\x00"); c.Accounts == 0 || account != last {
			last = account
			c.Accounts++
		}
		switch s, err := d.open(at, value); {
		case err != nil:
			c.Damaged++
		case !marks[s.KeyMark]:
			c.Foreign++
		case s.Expires != "" && today > s.Expires:
			c.Expired++
		default:
			c.Working++
		}
		return nil
	})
	return c, err
}
