package ui

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal of 25 rows and 100 columns. screen closes it
// and returns everything that was written to it.
func terminal(t *testing.T) (tty *os.File, screen func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 100}); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with EIO once nobody holds the other side
		read <- string(b)
	}()
	return tty, func() string {
		tty.Close()
		return <-read
	}
}

func TestBars(t *testing.T) {
	t.Setenv("TERM", "xterm")
	tty, screen := terminal(t)
	out := New(io.Discard, tty)
	p := NewProgress(out, "pull m:1")
	if p.bars == nil {
		t.Fatal("the terminal was not taken for one")
	}
	a, b := p.Task("model-1", 100), p.Task("model-2", 100)
	p.Task("never begun", 1)
	a.Add(40)
	a.Add(60)
	a.Done(nil)
	b.Add(50)
	io.WriteString(out.Messages(), "a remark\n")
	b.Done(errors.New("peer gone"))
	p.Task("never done", 5).Add(1)
	p.Close()
	io.WriteString(out.Messages(), "after\n")
	b.Add(1) // harmless
	p.Task("late", 0).Done(nil)

	got := screen()
	for _, want := range []string{
		"pull m:1: model-1: done, 100 B in ",
		"a remark\r\n",
		"pull m:1: model-2: failed: peer gone\r\n",
		"pull m:1: 1 of 4 done, 1 failed, 151 B in ",
		"after\r\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not on the screen", want)
		}
	}
	if strings.Contains(got, "started") {
		t.Error("lines that say what has started are for logs, not for terminals")
	}
	if t.Failed() {
		t.Logf("the screen: %q", got)
	}
}

func TestDumbTerminalGetsLines(t *testing.T) {
	t.Setenv("TERM", "dumb")
	tty, screen := terminal(t)
	p := NewProgress(New(io.Discard, tty), "verify")
	p.Task("signature", 0).Done(nil)
	p.Close()
	if got := screen(); !strings.HasPrefix(got, "verify: signature: started\r\n") || strings.Contains(got, "\x1b") {
		t.Errorf("the screen: %q", got)
	}
}
