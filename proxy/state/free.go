package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"

	"go.etcd.io/bbolt"
)

// bbolt reads the list of free pages when it opens a file to write, and some
// contents of it end the process, not only the call: a length that no memory has
// space for, and a file without the list whose pages are damaged, which are then
// read in a goroutine of bbolt's own.

// The layout of a meta page: bbolt's internal/common/meta.go and page.go.
const (
	pageHeader = 16
	metaSize   = 64 // with its checksum, which is the last 8 octets

	magic    = 0xED0CDAED
	noList   = ^uint64(0) // in place of the list's page: there is no list
	longList = 0xFFFF     // in place of the list's length: the first 8 octets of the list have it
)

var errFreePages = errors.New("the list of free pages is damaged or missing")

// checkFree returns an error if bbolt would not survive the list of free pages in
// the file at path. A file that does not exist, or is no bbolt file, is ignored;
// a file that another process has open gives bbolt's error.
func checkFree(path string, timeout time.Duration) (err error) {
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return nil //nolint:nilerr // bbolt makes the file, or returns the error
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: timeout, ReadOnly: true}) // does not read the list
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	size := int64(db.Info().PageSize)
	list, highest := noList, uint64(0)
	found := false
	for at := range int64(2) {
		var page [pageHeader + metaSize]byte
		if _, err := f.ReadAt(page[:], at*size); err != nil {
			return err
		}
		meta := page[pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaSize-8])
		txid := binary.NativeEndian.Uint64(meta[48:])
		if binary.NativeEndian.Uint32(meta) != magic || sum.Sum64() != binary.NativeEndian.Uint64(meta[metaSize-8:]) || found && txid < highest {
			continue
		}
		list, highest, found = binary.NativeEndian.Uint64(meta[32:]), txid, true
	}
	if list == noList {
		return fmt.Errorf("%w: %w", ErrDamaged, errFreePages)
	}
	var page [pageHeader + 8]byte
	if _, err := f.ReadAt(page[:], int64(list)*size); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w: %w", ErrDamaged, errFreePages, err)
	}
	length, pages := uint64(binary.NativeEndian.Uint16(page[10:])), uint64(binary.NativeEndian.Uint32(page[12:]))+1
	if length == longList {
		length = binary.NativeEndian.Uint64(page[pageHeader:]) + 1
	}
	if length > (pages*uint64(size)-pageHeader)/8 || int64(list+pages)*size > fileSize(f) {
		return fmt.Errorf("%w: %w", ErrDamaged, errFreePages)
	}
	return nil
}

func fileSize(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}
