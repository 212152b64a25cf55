package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/signing"
)

// A pulled is what `spate pull` did.
type pulled struct {
	Reference string  `json:"reference"`
	Dir       string  `json:"dir"`
	Files     int     `json:"files"`
	Bytes     int64   `json:"bytes"`
	Direct    bool    `json:"direct"`
	Seconds   float64 `json:"seconds"`
}

func (a *app) pullCommand() *cobra.Command {
	var (
		data     string
		direct   bool
		priority int
		trust    trustFlags
		remotes  remoteFlags
		limits   linkFlags
	)
	cmd := &cobra.Command{
		Use:   "pull REF DIR",
		Short: "Write a model's files into a directory",
		Long: `Write a model's files into a directory, which is made when missing. The agent
fetches them through the mesh, verifies every piece, and copies them out of its
cache, sharing blocks where the file system can.

With --direct no agent is asked: this process checks the signature by --key,
downloads each file whole from the registry, and names it once its digest is
right. A file that is there already is kept when its digest is.`,
		Example: `  spate pull 127.0.0.1:5000/qwen:v1 ./qwen
  spate pull --direct 127.0.0.1:5000/qwen:v1 ./qwen --key cosign.pub`,
		Args: a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := onlyWith(cmd.Flags(), direct); err != nil {
				return err
			}
			dir, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			start := time.Now()
			p := &pulled{Reference: args[0], Dir: dir, Direct: direct}
			progress := ui.NewProgress(a.out, "pull")
			if direct {
				var policy *signing.Policy
				if policy, err = trust.policy(); err == nil {
					opts := remotes.options()
					transport := remote.NewTransport()
					transport.DialContext = link.New(int64(limits.up), int64(limits.down)).Dial((&net.Dialer{}).DialContext)
					opts.Transport = transport
					err = pullDirect(cmd.Context(), p, policy, opts, newTasks(progress).event)
				}
			} else {
				c := agent.NewClient(data)
				defer c.Close()
				tasks := newTasks(progress)
				err = c.Pull(cmd.Context(), agent.PullRequest{Reference: args[0], Dir: dir, Priority: priority}, func(e agent.Event) {
					tasks.set(e.File, e.Bytes, e.Size)
					if e.Done {
						tasks.done(e.File)
						p.Files++
						p.Bytes += e.Size
					}
				})
			}
			progress.Close()
			if err != nil {
				return err
			}
			p.Seconds = time.Since(start).Seconds()
			return a.out.Result(p, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "pulled %s into %s: %d files, %s in %s\n", p.Reference, p.Dir,
					p.Files, ui.Size(p.Bytes), ui.Duration(time.Since(start)))
				return err
			})
		},
	}
	f := cmd.Flags()
	agentFlag(f, &data)
	priorityFlag(f, &priority)
	f.BoolVar(&direct, "direct", false, "ask no agent: download from the registry")
	trust.register(f)
	remotes.register(f)
	limits.register(f)
	return cmd
}

// onlyWith refuses flags that would have no effect: an agent has its own keys and limits.
func onlyWith(f *pflag.FlagSet, direct bool) error {
	names, when := []string{"key", "plain-http", "limit-up", "limit-down"}, "only with --direct: the agent has its own"
	if direct {
		names, when = []string{"data", "priority"}, "not with --direct: no agent is asked"
	}
	for _, name := range names {
		if f.Changed(name) {
			return usage(fmt.Errorf("--%s has a meaning %s", name, when))
		}
	}
	return nil
}

// pullDirect admits p.Reference and downloads its files without an agent.
func pullDirect(ctx context.Context, p *pulled, policy *signing.Policy, opts remote.Options, event func(model.Event)) error {
	repo, err := remote.Open(p.Reference, opts)
	if err != nil {
		return err
	}
	trusted, _, err := policy.Admit(ctx, repo, p.Reference)
	if err == nil && image.IsIndex(trusted.Manifest().Descriptor.MediaType) {
		trusted, err = admitModel(ctx, policy, repo, trusted)
	}
	if err != nil {
		return err
	}
	files, err := model.Files(trusted.Manifest().Bytes)
	if err != nil {
		return fmt.Errorf("pull %s: %w", p.Reference, err)
	}
	for _, f := range files {
		p.Files++
		p.Bytes += f.Size
	}
	return model.Unpack(ctx, repo, files, p.Dir, model.Options{Progress: event})
}

// admitModel admits the model that list, an image index, has.
func admitModel(ctx context.Context, policy *signing.Policy, repo *remote.Repository, list signing.Trusted) (signing.Trusted, error) {
	manifests, err := image.Images(list.Manifest().Bytes)
	if err != nil {
		return signing.Trusted{}, fmt.Errorf("pull %s: %w", list.Reference(), err)
	}
	for _, desc := range manifests {
		if desc.ArtifactType == oci.ArtifactTypeModel {
			ref := repo.Reference
			ref.Reference = desc.Digest.String()
			trusted, _, err := policy.Admit(ctx, repo, ref.String())
			return trusted, err
		}
	}
	return signing.Trusted{}, ui.WithHint(fmt.Errorf("pull %s: it is an image index without a model", list.Reference()),
		"have containerd pull it, with the agent as its snapshotter")
}

// tasks draws per-file progress. It is safe for concurrent use.
type tasks struct {
	progress *ui.Progress

	mu    sync.Mutex
	items map[string]*item
}

type item struct {
	*ui.Task
	at int64 // bytes told so far
}

func newTasks(p *ui.Progress) *tasks { return &tasks{progress: p, items: make(map[string]*item)} }

// set tells that n of size bytes of file are done.
func (t *tasks) set(file string, n, size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	it := t.items[file]
	if it == nil {
		it = &item{Task: t.progress.Task(file, size)}
		t.items[file] = it
	}
	if n != it.at { // an Add starts the task
		it.Add(n - it.at)
		it.at = n
	}
}

// bound tells how long the rest of file takes at least.
func (t *tasks) bound(file string, left time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if it := t.items[file]; it != nil {
		it.Bound(left)
	}
}

func (t *tasks) done(file string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if it := t.items[file]; it != nil {
		it.Done(nil)
	}
}

// event draws what packing or unpacking a model tells.
func (t *tasks) event(e model.Event) {
	switch e.Step {
	case model.Started, model.Advanced:
		t.set(e.Path, e.Done, e.Size)
	case model.Finished:
		t.done(e.Path)
	}
}
