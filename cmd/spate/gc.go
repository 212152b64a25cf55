package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
)

// collectPath is where a registry is asked to collect garbage, with dry-run=true
// to say only what it would remove.
const collectPath = "/spate/v1/gc"

// gcFlags say what a registry keeps although nothing leads to it, and how much at most.
type gcFlags struct {
	grace, untagged time.Duration
	retain          []string
	quota           ui.Bytes
}

func (g *gcFlags) register(f *pflag.FlagSet) {
	f.DurationVar(&g.grace, "gc-grace", 24*time.Hour, "how long garbage is kept after its push; longer than the longest push")
	f.DurationVar(&g.untagged, "gc-untagged", 0, "how long a manifest without a tag is kept after its push; 0 is for ever")
	f.Var(&g.quota, "quota", "most `bytes` of blobs, each counted once, as in 500GB; pushes beyond it are refused; 0 is no limit")
	f.StringArrayVar(&g.retain, "retain", nil, "take tags away that a `rule` matches, as in 'team/*:pr-* keep=10 age=720h': all but the 10 newest of a repository, once they are older than 720 h; repeatable, the first that matches counts")
}

func (g *gcFlags) retention() (registry.Retention, error) {
	r := registry.Retention{Grace: g.grace, Untagged: g.untagged}
	if g.grace <= 0 || g.untagged < 0 {
		return r, usage(errors.New("--gc-grace has to be more than 0, and --gc-untagged not less"))
	}
	for _, s := range g.retain {
		rule, err := registry.ParseTagRule(s)
		if err != nil {
			return r, ui.WithHint(usage(fmt.Errorf("read a --retain: %w", err)), "write it as 'team/*:pr-* keep=10 age=720h'")
		}
		r.Tags = append(r.Tags, rule)
	}
	return r, nil
}

// serveCollect collects once for whoever asks: it is what the registry does every hour.
func serveCollect(reg *registry.Registry) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		c, err := reg.Collect(req.Context(), req.FormValue("dry-run") == "true")
		if err != nil {
			http.Error(w, "the collection failed; the registry's log says why", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(c)
	}
}

func (a *app) registryCollectCommand() *cobra.Command {
	var (
		board  boardFlags
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Have a registry remove what nothing in it leads to any more",
		Long: `Have a running registry remove, beside pushes and pulls, what nothing leads to any
more: blobs that no manifest has, signatures, indexes and other referrers of what
was deleted, and what its own --retain and --gc-untagged say. It does so by itself
every hour; what was pushed within --gc-grace is kept.`,
		Example: `  spate registry gc --dry-run
  spate registry gc --registry https://registry.example:5000`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := board.collect(cmd.Context(), dryRun)
			if err != nil {
				return fmt.Errorf("collect the garbage of %s: %w", board.shown(), err)
			}
			return a.out.Result(c, func(w io.Writer) error { return printCollected(w, c, dryRun) })
		},
	}
	f := cmd.Flags()
	board.register(f, defaultBoard, "base `URL` of the registry")
	f.BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	return cmd
}

func printCollected(w io.Writer, c registry.Collected, dryRun bool) error {
	what := "removed"
	if dryRun {
		what = "to be removed"
	}
	for _, repo := range c.Left {
		fmt.Fprintf(w, "%s: a manifest is damaged, so its blobs were left alone; push it again or delete it\n", repo)
	}
	_, err := fmt.Fprintf(w, "%s: %d tags, %d manifests, %d blobs; %s of disk\n", what, c.Tags, c.Manifests, c.Blobs, ui.Size(c.Bytes))
	return err
}

// collect asks the registry.
func (b *boardFlags) collect(ctx context.Context, dryRun bool) (c registry.Collected, err error) {
	url := strings.TrimSuffix(b.registry, "/") + collectPath
	if dryRun {
		url += "?dry-run=true"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return c, err
	}
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c, fmt.Errorf("it answers %s", resp.Status)
	}
	return c, json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&c)
}
