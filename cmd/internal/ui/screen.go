package ui

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/vbauerster/cupwriter"
)

// A Screen shows what changes: on a terminal each text in place of the one
// before, elsewhere one after the other. It writes to standard output and is not
// safe for concurrent use.
type Screen struct {
	out *Output
	tty *cupwriter.Writer // nil where nothing is redrawn
}

// NewScreen returns a Screen that has shown nothing yet.
func NewScreen(out *Output) *Screen {
	s := &Screen{out: out}
	if f, ok := out.terminal(out.stdout); ok {
		s.tty = cupwriter.New(f, false)
	}
	return s
}

// Show writes v as one JSON object on a line of its own, or what text writes. A
// terminal gets as much of that as has room.
func (s *Screen) Show(v any, text func(w io.Writer) error) error {
	if s.tty == nil {
		return s.out.Result(v, text)
	}
	width, height, err := s.tty.GetTermSize()
	if err != nil {
		return fmt.Errorf("show on the terminal: %w", err)
	}
	var b bytes.Buffer
	if err := text(&b); err != nil {
		return err
	}
	lines := fit(b.String(), width, height-1) // the last line is the cursor's
	s.tty.WriteString(strings.Join(lines, "\n") + "\n")
	return s.tty.Flush(len(lines))
}

// fit cuts text to lines of width columns, height of them. A size of 0 is unknown and cuts nothing.
func fit(text string, width, height int) []string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if height > 0 && len(lines) > height {
		more := fmt.Sprintf("... and %d lines more", len(lines)-height+1)
		lines = append(lines[:height-1], more)
	}
	for i, line := range lines {
		if runes := []rune(line); width > 0 && len(runes) > width {
			lines[i] = string(runes[:width])
		}
	}
	return lines
}
