package ui

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// Bytes is a number of bytes, or of bytes a second, as a flag. It is a
// pflag.Value. Where a flag is a limit, 0 means that there is none.
type Bytes int64

const maxBytes = 1 << 60

var byteUnits = [...]struct {
	name string
	size Bytes
}{
	{"PiB", humanize.PiByte}, {"TiB", humanize.TiByte}, {"GiB", humanize.GiByte}, {"MiB", humanize.MiByte}, {"KiB", humanize.KiByte},
	{"PB", humanize.PByte}, {"TB", humanize.TByte}, {"GB", humanize.GByte}, {"MB", humanize.MByte}, {"kB", humanize.KByte},
}

// Set accepts a plain number, a number with a unit in any case ("50MiB", "100
// MB", "1.5g": without the i a unit counts by 1000), and "unlimited" for 0.
// Beyond 1 EiB it refuses.
func (b *Bytes) Set(s string) error {
	if s == "unlimited" {
		*b = 0
		return nil
	}
	n, err := humanize.ParseBytes(s)
	switch {
	case err != nil || strings.Contains(s, ","): // "1,5GiB" must not become 15 GiB
		return fmt.Errorf("%q is not a size; write it like 50MiB, 100MB or 4096", s)
	case n > maxBytes:
		return fmt.Errorf("%q is more than 1024PiB", s)
	case n == 0 && strings.ContainsAny(s, "123456789"):
		return fmt.Errorf("%q is less than one byte", s)
	}
	*b = Bytes(n)
	return nil
}

// String returns the shortest exact form that Set accepts, as in "50MiB" or "100MB".
func (b *Bytes) String() string {
	if *b != 0 {
		for _, u := range byteUnits {
			if *b%u.size == 0 {
				return strconv.FormatInt(int64(*b/u.size), 10) + u.name
			}
		}
	}
	return strconv.FormatInt(int64(*b), 10)
}

// Type is what the flag's help calls the value.
func (b *Bytes) Type() string { return "size" }
