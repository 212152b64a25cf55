// Package ui is how every command talks: to people on a terminal, to people
// reading a log, and to machines.
//
// Results go to standard output, everything else to standard error:
//
//	                 result            progress                messages and logs
//	terminal         text              bars that redraw        lines above the bars
//	pipe or file     text              one line an event       lines
//	--output json    one JSON object   one JSON object a line  lines
//
// Errors carry their exit code and a hint (WithCode, WithHint) and are printed
// once, by Output.Fail.
package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// A Format is what --output chooses. It is a pflag.Value.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// Set accepts the name of a format.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Text, JSON:
		*f = Format(s)
		return nil
	}
	return fmt.Errorf("%q is neither %q nor %q", s, Text, JSON)
}

// String returns the name of the format.
func (f *Format) String() string { return string(*f) }

// Type is what the flag's help calls the value.
func (f *Format) Type() string { return "format" }

// An Output is where one command writes. Its methods are safe for concurrent
// use once Format is set.
type Output struct {
	// Format is for the --output flag to set, before anything is written.
	Format Format

	stdout   io.Writer
	messages messages
}

// New returns an Output of text. Standard error is taken for a terminal when it
// is an *os.File that is one and TERM is not "dumb".
func New(stdout, stderr io.Writer) *Output {
	return &Output{Format: Text, stdout: stdout, messages: messages{out: stderr}}
}

// Messages returns where logs and remarks go. Each Write must be of whole lines;
// while a Progress draws bars the lines appear above them, untorn.
func (o *Output) Messages() io.Writer { return &o.messages }

// Result writes what the command found: v as one JSON object on a line of its
// own, or what text writes. Any Progress must be closed before.
func (o *Output) Result(v any, text func(w io.Writer) error) error {
	if o.Format == JSON {
		e := json.NewEncoder(o.stdout)
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	return text(o.stdout)
}

// Fail tells of err on standard error and returns the code to exit with. It is
// silent when err is nil.
func (o *Output) Fail(err error) int {
	code := ExitCode(err)
	switch {
	case err == nil:
	case o.Format == JSON:
		line, _ := json.Marshal(struct {
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
			Code  int    `json:"code"`
		}{err.Error(), Hint(err), code})
		fmt.Fprintf(&o.messages, "%s\n", line)
	default:
		text := "spate: " + printable(err.Error()) + "\n"
		if h := Hint(err); h != "" {
			text += "hint: " + printable(h) + "\n"
		}
		io.WriteString(&o.messages, text)
	}
	return code
}

// terminal returns w if it is one that can be drawn on.
func (o *Output) terminal(w io.Writer) (*os.File, bool) {
	f, ok := w.(*os.File)
	return f, ok && o.Format != JSON && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// messages is standard error, or the room above the bars while there are any.
type messages struct {
	mu   sync.Mutex
	out  io.Writer
	bars io.Writer // nil when there are none
}

func (m *messages) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bars != nil {
		return m.bars.Write(b)
	}
	return m.out.Write(b)
}
