package outcomes

import (
	"encoding/binary"
	"errors"
	"time"
)

// version is the first octet of what Export returns. It changes with the form of a record
// and with the numbers of kinds.
const version = 1

// The tables in what Export returns.
const (
	tableAccounts byte = iota
	tableNames
	tableNetworks
	tables
)

// ErrVersion is the error of Import for octets of another version of Postern.
var ErrVersion = errors.New("outcomes of another version")

// batch is how many octets Export returns at once, or a little more.
const batch = 64 << 10

// Export calls yield with all outcomes, in batches of about 64 KiB that Import reads, and
// from then on with each new one: so the process after an upgrade learns how the sessions
// end that are left to this one. yield must not block, and must not call m.
func (m *Memory) Export(yield func([]byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.header()
	for _, t := range []struct {
		table  *table
		number byte
	}{{m.accounts, tableAccounts}, {m.names, tableNames}, {m.networks, tableNetworks}} {
		for i := range t.table.entries {
			e := &t.table.entries[i]
			for _, r := range e.records {
				b = appendRecord(b, t.number, e.key, r, m.detailsOf(t.number, r.kind).get(r.detail))
			}
			if len(b) >= batch {
				yield(b)
				b = m.header()
			}
		}
	}
	yield(b)
	m.forward = yield
}

// send hands a new record on. m is locked.
func (m *Memory) send(table byte, key uint64, r record, detail string) {
	if m.forward != nil {
		m.forward(appendRecord(m.header(), table, key, r, detail))
	}
}

// header returns what each batch begins with: the version, and when m began to remember.
func (m *Memory) header() []byte {
	return binary.LittleEndian.AppendUint64([]byte{version}, uint64(m.since.Unix()))
}

func appendRecord(b []byte, table byte, key uint64, r record, detail string) []byte {
	b = append(b, table)
	b = binary.LittleEndian.AppendUint64(b, key)
	b = binary.LittleEndian.AppendUint32(b, r.first)
	b = binary.LittleEndian.AppendUint32(b, r.last)
	b = binary.LittleEndian.AppendUint64(b, r.network)
	b = binary.LittleEndian.AppendUint64(b, r.session)
	b = binary.LittleEndian.AppendUint16(b, r.count)
	b = append(b, byte(r.kind), r.flags, byte(len(detail)))
	return append(b, detail...)
}

// exportedSize is the size of an exported record without its detail.
const exportedSize = 1 + 8 + 4 + 4 + 8 + 8 + 2 + 3

// errShort is the error of Import for a batch that ends in a record.
var errShort = errors.New("outcomes are cut short")

// Import adds a batch that another Memory with the same hash has exported. From then on
// Since is that of the other one, if that is earlier.
func (m *Memory) Import(b []byte) error {
	const header = 1 + 8
	switch {
	case len(b) == 0 || b[0] != version:
		return ErrVersion
	case len(b) < header:
		return errShort
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if since := time.Unix(int64(binary.LittleEndian.Uint64(b[1:])), 0); since.Before(m.since) {
		m.since = since
	}
	for b = b[header:]; len(b) > 0; {
		if len(b) < exportedSize || len(b) < exportedSize+int(b[exportedSize-1]) {
			return errShort
		}
		number, key := b[0], binary.LittleEndian.Uint64(b[1:])
		r := record{
			first: binary.LittleEndian.Uint32(b[9:]), last: binary.LittleEndian.Uint32(b[13:]), network: binary.LittleEndian.Uint64(b[17:]),
			session: binary.LittleEndian.Uint64(b[25:]), count: binary.LittleEndian.Uint16(b[33:]), kind: Kind(b[35]), flags: b[36],
		}
		end := exportedSize + int(b[exportedSize-1])
		detail := printable(string(b[exportedSize:end]))
		b = b[end:]
		switch number {
		case tableAccounts, tableNames:
			m.addRecord(key, r, detail, number == tableAccounts)
		case tableNetworks:
			m.addToNetwork(r, detail)
		default:
			return ErrVersion
		}
		m.send(number, key, r, detail)
	}
	return nil
}
