package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// grace is how long a process may take to end after SIGTERM when the herd closes.
const grace = 10 * time.Second

// A Herd is the child processes of an experiment and whatever else must be
// undone after it: one stack, undone in reverse order by Close, or as soon as
// the herd's context ends. Children cannot outlive this process: the kernel
// kills them with it. Its methods are safe for concurrent use.
type Herd struct {
	dir    string
	unwind func() error // once
	detach func() bool  // from the context

	mu     sync.Mutex
	undo   []func() error
	closed bool
}

// A Command is a child process to be: another run of this same program.
type Command struct {
	Name string   // in errors, and of its log file, Name.log
	Args []string // without the program's own name
	Env  []string // added to this process's environment, as "K=V"

	// Stdout receives what it writes to standard output, by one goroutine; nil is its log.
	Stdout io.Writer

	// Network is the network namespace that it runs in; nil is this process's own.
	Network *os.File
}

// NewHerd returns an empty herd that keeps its logs in dir. When ctx ends it closes.
func NewHerd(ctx context.Context, dir string) *Herd {
	h := &Herd{dir: dir}
	h.unwind = sync.OnceValue(h.undoAll)
	h.detach = context.AfterFunc(ctx, func() { h.unwind() })
	return h
}

// Start starts a process, in a process group of its own so that a Ctrl-C at the
// terminal reaches this program only. Its standard output and error are
// appended to its log. The herd stops it when it closes.
func (h *Herd) Start(c Command) (*Process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("start %s: the experiment is over", c.Name)
	}
	p, err := start(c, h.dir)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	h.undo = append(h.undo, func() error { return p.Stop(grace) })
	return p, nil
}

// Output starts a process, waits for it to end by itself, and returns what it
// wrote to standard output. An error is as Process.Wait's. When ctx ends the process is killed.
func (h *Herd) Output(ctx context.Context, c Command) ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	p, err := h.Start(c)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(ctx); err != nil {
		p.Kill()
		return nil, err
	}
	return out.Bytes(), nil
}

// Defer has undo called once when the herd closes, before whatever came earlier
// is undone; at once if the herd has closed already.
func (h *Herd) Defer(undo func() error) {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.undo = append(h.undo, undo)
	}
	h.mu.Unlock()
	if closed {
		undo()
	}
}

// Close undoes everything and returns what went wrong, among it processes that
// had failed unnoticed. Every further call waits for the first and returns the same.
func (h *Herd) Close() error {
	h.detach()
	return h.unwind()
}

func (h *Herd) undoAll() error {
	h.mu.Lock()
	undo := h.undo
	h.undo, h.closed = nil, true
	h.mu.Unlock()
	var errs []error
	for i := len(undo) - 1; i >= 0; i-- {
		errs = append(errs, undo[i]())
	}
	return errors.Join(errs...)
}
