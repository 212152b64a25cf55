package ui

import (
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
)

// Size returns n bytes for people to read, as in "1.2 GiB".
func Size(n int64) string {
	return humanize.IBytesN(uint64(max(n, 0)), 3)
}

// Speed returns the speed of n bytes in d, as in "98.1 MiB/s"; "" when d is not positive.
func Speed(n int64, d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return Size(int64(float64(n)/d.Seconds())) + "/s"
}

// Duration returns d with three digits or so, as in "1.23s", "45.6s", "2m3s".
func Duration(d time.Duration) string {
	unit := time.Microsecond
	switch {
	case d >= time.Minute:
		unit = time.Second
	case d >= 10*time.Second:
		unit = 100 * time.Millisecond
	case d >= time.Second:
		unit = 10 * time.Millisecond
	case d >= time.Millisecond:
		unit = time.Millisecond
	}
	return d.Round(unit).String()
}

// printable replaces what could drive a terminal: names and errors may hold
// bytes that a stranger chose.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
