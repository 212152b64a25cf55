package ui

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		text          string
		width, height int
		want          []string
	}{
		{"one\ntwo\n", 80, 24, []string{"one", "two"}},
		{"one\ntwo\n", 2, 2, []string{"on", "tw"}},
		{"ääääää\n", 3, 1, []string{"äää"}},
		{"1\n2\n3\n4\n", 80, 3, []string{"1", "2", "... and 2 lines more"}},
		{"1\n2\n3\n", 80, 1, []string{"... and 3 lines more"}},
		{"1\n2\n", 0, 0, []string{"1", "2"}},
		{"", 80, 24, []string{""}},
	} {
		if got := fit(tt.text, tt.width, tt.height); !slices.Equal(got, tt.want) {
			t.Errorf("fit(%q, %d, %d) = %q, want %q", tt.text, tt.width, tt.height, got, tt.want)
		}
	}
}

// TestScreenInPipe: where nothing can be redrawn each text follows the one before.
func TestScreenInPipe(t *testing.T) {
	for format, want := range map[Format]string{Text: "at 1\nat 2\n", JSON: "1\n2\n"} {
		var b bytes.Buffer
		out := New(&b, io.Discard)
		out.Format = format
		s := NewScreen(out)
		for i := range 2 {
			if err := s.Show(i+1, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "at %d\n", i+1)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if got := b.String(); got != want || strings.Contains(got, "\x1b") {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}

// TestScreenOnTerminal: a text takes the place of the one before, cut to the terminal's size.
func TestScreenOnTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, slave := openTerminal(t, 10, 4)
	s := NewScreen(New(slave, io.Discard))
	for _, text := range []string{"first, too long\nb\nc\nd\n", "second\n"} {
		if err := s.Show(nil, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := "first, too\r\nb\r\n... and 2 \r\n\x1b[3A\x1b[Jsecond\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(master, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("the terminal got %q, want %q", got, want)
	}
}

// openTerminal opens a pseudo terminal.
func openTerminal(t *testing.T, width, height uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}
