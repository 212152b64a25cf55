package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/artifact"
	"github.com/spate-project/spate/oci/remote"
)

// A moved is an artifact that was brought from one place to another.
type moved struct {
	Reference string `json:"reference"` // where it is now
	Digest    string `json:"digest"`
	artifact.Copied
}

// A move is what a command moved.
type move struct {
	Artifacts []moved `json:"artifacts"`
	Seconds   float64 `json:"seconds"`

	what string
}

// print writes m for people.
func (m *move) print(w io.Writer) error {
	var bytes int64
	for _, a := range m.Artifacts {
		bytes += a.Bytes
		if _, err := fmt.Fprintf(w, "%s\n  digest %s, %d referrers; moved %d manifests and %d blobs, %s\n",
			a.Reference, a.Digest, a.Referrers, a.Manifests, a.Blobs, ui.Size(a.Bytes)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s: %d artifacts, %s in %s\n", m.what, len(m.Artifacts), ui.Size(bytes),
		ui.Duration(time.Duration(m.Seconds*float64(time.Second))))
	return err
}

// A mover moves artifacts, one after another, and shows it. Whoever makes one closes it.
type mover struct {
	out   *ui.Output
	start time.Time
	done  move

	tasks *tasks
	close func() // ends the progress; only the first call counts
}

func (a *app) newMover(name, what string) *mover {
	p := ui.NewProgress(a.out, name)
	return &mover{out: a.out, start: time.Now(), done: move{Artifacts: []moved{}, what: what}, tasks: newTasks(p), close: sync.OnceFunc(p.Close)}
}

// move copies what from names in src, with all that belongs to it, and tags it. reference is where it is then.
func (m *mover) move(ctx context.Context, src artifact.Source, from string, dst artifact.Target, tag, reference string) error {
	c, err := artifact.Copy(ctx, src, from, dst, tag, artifact.Options{Progress: m.show})
	if err != nil {
		return fmt.Errorf("bring %s: %w", reference, err)
	}
	m.done.Artifacts = append(m.done.Artifacts, moved{reference, c.Root.Digest.String(), c})
	return nil
}

func (m *mover) show(d ocispec.Descriptor, done int64) {
	name := d.Digest.Encoded()[:12]
	m.tasks.set(name, done, d.Size)
	if done == d.Size {
		m.tasks.done(name)
	}
}

// result writes what was moved.
func (m *mover) result() error {
	m.close()
	m.done.Seconds = time.Since(m.start).Seconds()
	return m.out.Result(&m.done, m.done.print)
}

// openNamed opens the repository of a reference that has a tag or a digest.
func openNamed(reference string, opts remote.Options) (*remote.Repository, error) {
	repo, err := remote.Open(reference, opts)
	if err == nil && repo.Reference.Reference == "" {
		err = fmt.Errorf("%s: name a tag or a digest, as in %s:v1", reference, repo.Reference.Repository)
	}
	return repo, usage(err)
}

// tagOf returns the tag of repo's reference, which is empty where that is a digest.
func tagOf(repo *remote.Repository) string {
	if repo.Reference.ValidateReferenceAsDigest() == nil {
		return ""
	}
	return repo.Reference.Reference
}

func (a *app) copyCommand() *cobra.Command {
	var remotes remoteFlags
	cmd := &cobra.Command{
		Use:   "copy REF REF",
		Short: "Copy an image or a model with its signatures to another registry",
		Long: `Copy what the first REF names to the second: an image with all its platforms, or a
model, and everything that refers to it: signatures, indexes, traces, SBOMs, those
under cosign's tags too. What is there is not copied again, and the tag comes last.

The bytes go through this process; their digests are checked where they arrive.
Signatures stay valid, and are checked by whoever reads the copy.`,
		Example: `  spate copy registry.example/models/qwen:v1 127.0.0.1:5000/models/qwen:v1`,
		Args:    a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := remotes.options()
			transport := remote.NewTransport()
			defer transport.CloseIdleConnections()
			opts.Transport = transport
			src, err := openNamed(args[0], opts)
			if err != nil {
				return err
			}
			dst, err := openNamed(args[1], opts)
			if err != nil {
				return err
			}
			if tagOf(dst) == "" && dst.Reference.Reference != src.Reference.Reference {
				return usage(fmt.Errorf("copy to %s: name a tag, or the digest that is copied", args[1]))
			}
			m := a.newMover("copy", "copied")
			defer m.close()
			if err := m.move(cmd.Context(), src, src.Reference.Reference, dst, tagOf(dst), dst.Reference.String()); err != nil {
				return err
			}
			return m.result()
		},
	}
	remotes.register(cmd.Flags())
	return cmd
}
