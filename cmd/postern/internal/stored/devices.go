package stored

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/password"
	"postern/proxy/state"
)

// ReadDeviceKeys returns the keys of device passwords, the present one first, from
// state.key_file. Without that key there are none.
func ReadDeviceKeys(cfg *configs.Config) ([][]byte, error) {
	if cfg.State.KeyFile == "" {
		return nil, nil
	}
	keys, err := state.ReadKeys(cfg.State.KeyFile)
	if err != nil {
		return nil, err
	}
	return keys.Derive("devices")
}

// deviceStore returns the device passwords: without their keys, if the error is about these.
func (m *Storage) deviceStore() (*password.Devices, error) {
	if m.Devices == nil {
		return nil, ErrNoState
	}
	d := &password.Devices{Bucket: m.Devices}
	if m.DeviceKeys == nil {
		return d, nil
	}
	var err error
	d.Keys, err = m.DeviceKeys()
	return d, err
}

// CheckDeviceKeys returns an error if there are device passwords, and none was made with one
// of the keys: they are those of another file than before, and every right password would be
// called wrong. Otherwise it returns the number of those that were made with another key, which
// do not work. A state that cannot be read says nothing about the keys.
func CheckDeviceKeys(ctx context.Context, devices password.Bucket, keys [][]byte) (foreign int, err error) {
	fit, foreign, err := countDevices(ctx, devices, keys)
	switch {
	case err != nil:
		return 0, nil
	case fit == 0 && foreign > 0:
		return foreign, fmt.Errorf("the state has %d device passwords, and none was made with a key of this file: put the key of before into it, as the only line or behind the new one", foreign)
	}
	return foreign, nil
}

// CheckDeviceKeysOf is CheckDeviceKeys for the files of a configuration, while no Postern
// has them open. It changes nothing.
func CheckDeviceKeysOf(ctx context.Context, cfg *configs.Config) (foreign int, err error) {
	keys, err := ReadDeviceKeys(cfg)
	if err != nil || keys == nil || cfg.State.Record != nil {
		return 0, nil // configs or the start reports the error
	}
	record, err := openToStart(filepath.Join(cfg.State.Path, RecordFile))
	if err != nil || record == nil {
		return 0, nil // CheckStart reports the error
	}
	defer func() { _ = record.Close() }()
	return CheckDeviceKeys(ctx, record.Bucket(DeviceBucket), keys)
}

// countDevices returns the number of device passwords that were made with one of the keys,
// and of all others.
func countDevices(ctx context.Context, devices password.Bucket, keys [][]byte) (fit, foreign int, err error) {
	err = (&password.Devices{Bucket: devices, Keys: keys}).List(ctx, "", func(d password.Device) error {
		switch {
		case d.Damaged: // it says nothing about the keys
		case d.Key > 0:
			fit++
		default:
			foreign++
		}
		return nil
	})
	return fit, foreign, err
}

// A NewDevice is a device that AddDevice makes a password for.
type NewDevice struct {
	Account   string         `json:"account"`
	Name      string         `json:"name"`
	Protocols []string       `json:"protocols,omitempty"`
	Networks  []netip.Prefix `json:"networks,omitempty"`
	Expires   string         `json:"expires,omitempty"`
	Short     bool           `json:"short,omitempty"`
}

// LogValue implements slog.LogValuer.
func (n NewDevice) LogValue() slog.Value { return admin.Arguments("account", n.Account) }

// A MadeDevice is a device with its password, which is nowhere else.
type MadeDevice struct {
	password.Device
	Password string `json:"password"`
}

// LogValue implements slog.LogValuer.
func (m MadeDevice) LogValue() slog.Value { return admin.Arguments("device", m.ID) }

// AddDevice makes the password of a new device.
var AddDevice = Question[NewDevice, MadeDevice]{"password/add", func(ctx context.Context, m *Storage, n NewDevice, each func(MadeDevice) error) error {
	d, err := m.deviceStore()
	if err != nil {
		return err
	}
	length := password.Long
	if n.Short {
		length = password.Short
	}
	made, secret, err := d.Add(ctx, password.Device{
		Account: n.Account, Name: n.Name, Protocols: n.Protocols, Networks: n.Networks, Expires: n.Expires,
	}, length)
	if errors.Is(err, password.ErrNoKey) {
		return fmt.Errorf("%w: make the key with %s and set state.key_file to it", err, state.NewKeyCommand("/etc/postern/state.key"))
	}
	if err != nil {
		return err
	}
	defer secret.Clear()
	return each(MadeDevice{made, string(secret.Reveal())})
}}

// ListDevices answers with the devices of an account, or of all accounts if the name is
// "".
var ListDevices = Question[AccountName, password.Device]{"password/list", func(ctx context.Context, m *Storage, name AccountName, each func(password.Device) error) error {
	d, err := m.deviceStore()
	if err != nil {
		return err
	}
	return d.List(ctx, string(name), each)
}}

// A DeviceName is a device as the argument of a Question.
type DeviceName struct {
	Account string `json:"account"`
	ID      string `json:"id"`
}

// LogValue implements slog.LogValuer.
func (n DeviceName) LogValue() slog.Value { return admin.Arguments("account", n.Account) }

// A RemovedDevice is a device that was removed, and the number of its sessions that were
// ended.
type RemovedDevice struct {
	password.Device
	Ended int `json:"ended"`
}

// LogValue implements slog.LogValuer.
func (r RemovedDevice) LogValue() slog.Value { return admin.Arguments("device", r.ID) }

// RemoveDevice removes a device, and ends its sessions.
var RemoveDevice = Question[DeviceName, RemovedDevice]{"password/remove", func(ctx context.Context, m *Storage, n DeviceName, each func(RemovedDevice) error) error {
	d, err := m.deviceStore()
	if d == nil {
		return err // without the keys a device can be removed
	}
	removed, err := d.Remove(ctx, n.Account, n.ID)
	if err != nil {
		return err
	}
	answer := RemovedDevice{Device: removed}
	if m.EndDevice != nil {
		if answer.Ended, err = m.EndDevice(ctx, n.Account, n.ID); err != nil {
			err = fmt.Errorf("the device is removed, and not all of its sessions are ended: %w", err)
		}
	}
	return errors.Join(each(answer), err)
}}

// devicesOf returns the devices of an account.
func (m *Storage) devicesOf(ctx context.Context, account string) (all []password.Device, err error) {
	d, err := m.deviceStore()
	if err != nil {
		return nil, err
	}
	err = d.List(ctx, account, func(one password.Device) error {
		all = append(all, one)
		return nil
	})
	return all, err
}

// forgetDevices removes the devices of an account, and ends their sessions.
func (m *Storage) forgetDevices(ctx context.Context, account string) error {
	all, _ := m.devicesOf(ctx, account) // also those that cannot be read are removed
	if _, err := (&password.Devices{Bucket: m.Devices}).Forget(ctx, account); err != nil || m.EndDevice == nil {
		return err
	}
	for _, one := range all {
		if _, err := m.EndDevice(ctx, account, one.ID); err != nil {
			return err
		}
	}
	return nil
}
