package storm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/lab/netns"
	"github.com/spate-project/spate/cmd/internal/ui"
)

const (
	// life is how long the lab's certificates are valid.
	life = 24 * time.Hour

	// stopGrace is how long a child may take to end by itself.
	stopGrace = 10 * time.Second

	originPort, meshPort = 5000, 5051
)

// A world is what all runs have in common.
type world struct {
	Options
	dir   string
	herd  *lab.Herd
	out   *ui.Output
	began time.Time

	origin  *netns.Host
	nodes   []*netns.Host
	liars   []*netns.Host
	readers []*netns.Host

	keys  lab.Keys
	model string // the source directory
	size  int64  // of the model, in bytes
	ref   string
}

// say tells of one step.
func (w *world) say(format string, args ...any) {
	fmt.Fprintf(w.out.Messages(), "[%6.1fs] %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// prepare makes the network, the model and its place in the registry.
func (w *world) prepare(ctx context.Context) error {
	if err := w.room(); err != nil {
		return err
	}
	if err := w.connect(); err != nil {
		return err
	}
	var names []string
	for _, hosts := range [][]*netns.Host{w.nodes, w.liars, w.readers} {
		for _, h := range hosts {
			names = append(names, h.Name())
		}
	}
	var err error
	if err := os.Mkdir(w.path("keys"), 0o755); err != nil {
		return err
	}
	if w.keys, err = lab.NewKeys(w.path("keys"), life, names); err != nil {
		return err
	}
	w.say("making a model of %s: Qwen2.5's tensors, scaled down", ui.Size(w.Size))
	w.model = w.path("model")
	if err := lab.Synthesize(ctx, w.model, w.Size, lab.ModelOptions{Shards: w.Files, Seed: w.Seed}); err != nil {
		return err
	}
	if w.size, err = lab.Size(w.model); err != nil {
		return err
	}
	return w.push(ctx)
}

// room fails when there is no room for the model, the registry's copy, and for
// each node its cache and the files that it may write.
func (w *world) room() error {
	have, err := lab.Free(w.dir)
	if err != nil {
		return err
	}
	if need := w.Size * int64(2+2*(w.Nodes+w.Readers)); have < need {
		return ui.WithHint(fmt.Errorf("the lab needs %s in %s, there are %s", ui.Size(need), w.dir, ui.Size(have)),
			"make it smaller with --size or --nodes, or set TMPDIR to a larger place")
	}
	return nil
}

// connect makes the hosts, each behind its link.
func (w *world) connect() error {
	network, err := netns.New()
	if err != nil {
		return ui.WithHint(err, "the lab needs root, to make network namespaces")
	}
	w.herd.Defer(network.Close)
	add := func(name string, rate int64) (h *netns.Host) {
		if err == nil {
			h, err = network.Add(name, netns.Link{Up: rate, Down: rate})
		}
		return h
	}
	w.origin = add("origin", w.OriginLink)
	for i := range w.Nodes {
		rate := w.Link
		if i >= w.Nodes-w.SlowNodes {
			rate /= slower
		}
		w.nodes = append(w.nodes, add(fmt.Sprintf("node-%d", i+1), rate))
	}
	for i := range w.Liars {
		w.liars = append(w.liars, add(fmt.Sprintf("liar-%d", i+1), w.Link))
	}
	for i := range w.Readers {
		w.readers = append(w.readers, add(fmt.Sprintf("reader-%d", i+1), w.Link))
	}
	return err
}

// push packs, pushes and signs the model, on the origin's own loopback.
func (w *world) push(ctx context.Context) error {
	w.ref = w.originAddr() + "/lab/model:v1"
	registry, err := w.startRegistry(ctx)
	if err != nil {
		return err
	}
	_, err = w.herd.Output(ctx, lab.Command{
		Name: "push", Args: []string{"push", w.model, w.ref, "--plain-http", "--sign-key", w.keys.Sign()},
		Env: []string{"COSIGN_PASSWORD="}, Network: w.origin.Namespace(),
	})
	if err != nil {
		return err
	}
	return registry.Stop(stopGrace)
}

func (w *world) originAddr() string { return fmt.Sprintf("%v:%d", w.origin.Addr(), originPort) }

// startRegistry starts the registry and returns when it listens.
func (w *world) startRegistry(ctx context.Context) (*lab.Process, error) {
	p, err := w.herd.Start(lab.Command{
		Name:    "registry",
		Args:    []string{"registry", "--listen", w.originAddr(), "--insecure", "--data", w.path("registry")},
		Network: w.origin.Namespace(),
	})
	if err != nil {
		return nil, err
	}
	_, err = p.Line(ctx, "listens on")
	return p, err
}

// bounds returns the least time in which all nodes can be ready, with peers and
// without, in seconds, when a link of the whole rate brings rate bytes of
// content a second between the origin and one node.
func (o Options) bounds(size int64, rate float64) (mesh, direct float64) {
	content := rate / float64(min(o.Link, o.OriginLink))
	origin, link := content*float64(o.OriginLink), content*float64(o.Link)
	down, up := link, link
	if o.SlowNodes > 0 {
		down /= slower
		up *= (float64(o.Nodes-o.SlowNodes) + float64(o.SlowNodes)/slower) / float64(o.Nodes)
	}
	m, d := lab.Bound(size, o.Nodes, origin, down, up)
	// The node that starts last cannot be ready before its own download.
	late := o.Stagger.Seconds()*float64(o.Nodes-1) + float64(size)/min(origin, link)
	return max(m.Seconds(), late), max(d.Seconds(), late)
}
