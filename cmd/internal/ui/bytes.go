package ui

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// Bytes is a number of bytes as a flag. It is a pflag.Value. Where a flag is a
// limit, 0 means that there is none.
type Bytes int64

const maxBytes = 1 << 60

// units from the largest down.
var units = [...]struct {
	name string
	size int64 // bytes
	bits bool  // of rates alone
}{
	{"PiB", humanize.PiByte, false}, {"PB", humanize.PByte, false},
	{"TiB", humanize.TiByte, false}, {"TB", humanize.TByte, false},
	{"GiB", humanize.GiByte, false}, {"GB", humanize.GByte, false}, {"gbit", humanize.GByte / 8, true},
	{"MiB", humanize.MiByte, false}, {"MB", humanize.MByte, false}, {"mbit", humanize.MByte / 8, true},
	{"KiB", humanize.KiByte, false}, {"kB", humanize.KByte, false}, {"kbit", humanize.KByte / 8, true},
}

// exact returns n in the largest unit of which it is a whole number.
func exact(n int64, bits bool) string {
	if n != 0 {
		for _, u := range units {
			if n%u.size == 0 && (bits || !u.bits) {
				return strconv.FormatInt(n/u.size, 10) + u.name
			}
		}
	}
	return strconv.FormatInt(n, 10)
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
func (b *Bytes) String() string { return exact(int64(*b), false) }

// Type is what the flag's help calls the value.
func (b *Bytes) Type() string { return "size" }

// Rate is a number of bytes a second as a flag. It is a pflag.Value. Where a
// flag is a limit, 0 means that there is none.
type Rate int64

// Set accepts what Bytes accepts, as bytes a second, and bits a second where
// the unit, in any case, ends with "bit" ("400mbit", "1.5 Gbit"), rounded down
// to whole bytes. Less than one byte a second it refuses.
func (r *Rate) Set(s string) error {
	text, unit := s, Bytes(1)
	if bits, ok := strings.CutSuffix(strings.ToLower(s), "bit"); ok {
		text, unit = bits+"b", 8
	}
	var b Bytes
	if b.Set(text) != nil || b != 0 && b < unit {
		return fmt.Errorf("%q is not a rate of bytes or bits a second; write it like 50MiB, 100MB or 400mbit", s)
	}
	*r = Rate(b / unit)
	return nil
}

// String returns the shortest exact form that Set accepts, as in "50MiB" or "100mbit".
func (r *Rate) String() string { return exact(int64(*r), true) }

// Type is what the flag's help calls the value.
func (r *Rate) Type() string { return "rate" }
