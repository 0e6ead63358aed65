package configs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A Size is a number of octets.
type Size int64

// The units of sizes, the largest first.
var units = []struct {
	name   string
	octets Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// ParseSize reads a whole number of KiB, MiB or GiB, such as 256MiB.
func ParseSize(text string) (Size, error) {
	for _, unit := range units {
		number, found := strings.CutSuffix(text, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 63)
		if err != nil || Size(n) > math.MaxInt64/unit.octets {
			break
		}
		return Size(n) * unit.octets, nil
	}
	return 0, fmt.Errorf("%s is not a size; 256 mebibytes are written 256MiB, and there are KiB and GiB", quote(text))
}

// String implements fmt.Stringer, as ParseSize reads it.
func (s Size) String() string {
	for _, unit := range units {
		if s != 0 && s%unit.octets == 0 {
			return strconv.FormatInt(int64(s/unit.octets), 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
