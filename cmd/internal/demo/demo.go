// Package demo tells the whole story of spate on one machine: real processes
// push, sign, share, mount and check one model, beside the same load without a
// mesh, and shows what is refused.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// Options of a demo.
type Options struct {
	Model  string // directory of the model; empty: one is made
	Size   int64  // of the model that is made, in bytes
	Nodes  int
	Link   int64 // bytes a second, up and down, of each node and of the registry; 0 is no limit
	Direct bool  // also load without a mesh
	Mount  bool  // read through mounts; else the files are pulled
}

// CanMount says why this process cannot mount; nil when it can.
func CanMount() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("look at this process's capabilities: %w", err)
	}
	if caps[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return errors.New("mounting needs root (CAP_SYS_ADMIN)")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("mounting needs /dev/fuse: %w", err)
	}
	return f.Close()
}

// Run tells the story in lines on w and returns what was measured. It leaves
// no process, mount or file behind, also when ctx ends in the middle.
func Run(ctx context.Context, o Options, w io.Writer) (_ *Result, err error) {
	if o.Nodes < 1 || o.Nodes > 64 {
		return nil, fmt.Errorf("%d nodes: between 1 and 64 are possible", o.Nodes)
	}
	dir, err := os.MkdirTemp("", "spate-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the demo: %w", err)
	}
	logs := filepath.Join(dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	herd := lab.NewHerd(ctx, logs)
	defer func() {
		// The children first: their mounts are below dir.
		err = errors.Join(err, herd.Close(), os.RemoveAll(dir))
	}()
	s := &story{opts: o, dir: dir, herd: herd, out: w, start: time.Now()}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{s.push, s.mesh, s.direct, s.tamper, s.unsigned} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		}
	}
	return &s.result, nil
}

// A story is one run of the demo.
type story struct {
	opts   Options
	dir    string
	herd   *lab.Herd
	out    io.Writer
	start  time.Time
	result Result

	model    string // the source directory
	keys     lab.Keys
	registry *lab.Process
	addr     string // of the registry
	ref      string
	nodes    []*node
}

// say writes one line of the story.
func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "[%5.1fs] %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

func (s *story) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// prepare makes or measures the model and sees whether there is room.
func (s *story) prepare(ctx context.Context) error {
	s.model = s.opts.Model
	if s.model == "" {
		s.model = s.path("model")
		if err := s.room(s.opts.Size); err != nil {
			return err
		}
		s.say("making a model of %s: Qwen2.5's tensors, scaled down", ui.Size(s.opts.Size))
		if err := lab.Synthesize(ctx, s.model, s.opts.Size, lab.ModelOptions{Seed: 1}); err != nil {
			return err
		}
	}
	var err error
	if s.result.ModelBytes, err = lab.Size(s.model); err != nil {
		return err
	}
	if s.opts.Model != "" {
		if err := s.room(s.result.ModelBytes); err != nil {
			return err
		}
	}
	var names []string
	for i := range s.opts.Nodes + 1 { // the one that joins last too
		names = append(names, nodeName(i))
	}
	s.keys, err = lab.NewKeys(s.dir, life, names)
	return err
}

// room fails when there is no room for what the demo makes: the model, the
// registry's copy, one copy for each node and for the one that comes last, and
// without mounts as many again.
func (s *story) room(size int64) error {
	have, err := lab.Free(s.dir)
	if err != nil {
		return err
	}
	copies := int64(s.opts.Nodes + 1)
	if !s.opts.Mount {
		copies *= 2
	}
	if need := size * (copies + 2); have < need {
		return ui.WithHint(fmt.Errorf("the demo needs %s in %s, there are %s", ui.Size(need), s.dir, ui.Size(have)),
			"make it smaller with --size, or set TMPDIR to a larger place")
	}
	return nil
}
