package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch/warm"
)

// warmFlags say which warm set a command is about, and whose signatures of it count.
type warmFlags struct {
	pool, registry, signKey string
	trust                   trustFlags
	remotes                 remoteFlags
}

func (w *warmFlags) register(f *pflag.FlagSet, registry, usage string) {
	f.StringVar(&w.pool, "pool", "", "`name` of the pool: agents with --label pool=NAME")
	f.StringVar(&w.registry, "registry", registry, usage)
	w.trust.register(f)
	w.remotes.register(f)
}

func (w *warmFlags) registerSigning(f *pflag.FlagSet) {
	w.register(f, "", "base `URL` of the registry that the pool's agents have; that of REF when empty")
	f.StringVar(&w.signKey, "sign-key", "", "private key `file` to sign the set with, as cosign makes it")
}

// open returns the repository of warm sets of the registry that the flags name,
// else of that of ref, and the name of the pool's set there.
func (w *warmFlags) open(ref string) (repo *remote.Repository, reference string, err error) {
	if err := warm.CheckPool(w.pool); err != nil {
		return nil, "", ui.WithHint(usage(err), "name the pool with --pool")
	}
	host, opts := "", w.remotes.options()
	if w.registry != "" {
		u, err := url.Parse(w.registry)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, "", ui.WithHint(usage(fmt.Errorf("--registry is not the URL of a registry")), "write it as http://HOST:PORT or https://HOST:PORT")
		}
		host, opts.PlainHTTP, opts.TLS = u.Host, u.Scheme == "http", u.Scheme == "https"
	} else {
		from, err := remote.Open(ref, opts)
		if err != nil {
			return nil, "", usage(err)
		}
		host = from.Reference.Registry
	}
	reference = warm.ReferenceOf(host, w.pool)
	if repo, err = remote.Open(reference, opts); err != nil {
		return nil, "", usage(err)
	}
	return repo, reference, nil
}

// change edits the set of the pool and shows what it is then.
func (a *app) changeWarm(ctx context.Context, w *warmFlags, ref string, edit func(*warm.Set) error) error {
	repo, reference, err := w.open(ref)
	if err != nil {
		return err
	}
	if w.signKey == "" {
		return ui.WithHint(usage(fmt.Errorf("change the warm set of pool %s: agents take up only a signed one", w.pool)), "name the key to sign it with: --sign-key cosign.key")
	}
	policy, err := w.trust.policy()
	if err != nil {
		return err
	}
	signer, err := loadSigner(w.signKey)
	if err != nil {
		return err
	}
	own, err := signer.Verifier(w.signKey)
	if err != nil {
		return err
	}
	if policy, err = policy.With(own, reference); err != nil {
		return err
	}
	set, err := warm.Change(ctx, repo, policy, signer, reference, w.pool, edit)
	if err != nil {
		return err
	}
	v := viewWarm(reference, set)
	return a.out.Result(v, v.print)
}

func (a *app) warmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "warm",
		Short: "Say which images and models a pool's nodes always hold, the new ones too",
		Long: `Say which images and models a pool's nodes always hold: its warm set. An agent
with --label pool=NAME reads the set when it starts, and then every ten seconds,
fetches its entries in their order and pins them for as long as they are in it.

The set is kept in the registry as a signed artifact, ` + warm.Repository + `:POOL; each
version names the one before. Agents take up a version that one of their --key
files has signed and that is not older than the one they have; each entry they
admit as if somebody had asked for it, so that a set widens nobody's trust. Where
the set is gone or refused they keep what the last one says.`,
		Example: `  spate warm add 127.0.0.1:5000/qwen:v1 --pool gpu --sign-key cosign.key
  spate warm ls --pool gpu --key cosign.pub
  spate warm rm 127.0.0.1:5000/qwen:v1 --pool gpu --sign-key cosign.key`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.warmAddCommand(), a.warmRemoveCommand(), a.warmListCommand())
	return cmd
}

func (a *app) warmAddCommand() *cobra.Command {
	var (
		w     warmFlags
		entry warm.Entry
	)
	cmd := &cobra.Command{
		Use:   "add REF",
		Short: "Add an image or model to the warm set of a pool",
		Long: `Add an image or model to the warm set of a pool, as what REF names now: where the
tag moves later, add it again, and it takes the place of what it was. A pool
without a set gets its first one.

What is there already has to be signed by --sign-key or one of the --key files:
nothing is signed on another's behalf.`,
		Example: `  spate warm add 127.0.0.1:5000/qwen:v1 --pool gpu --sign-key cosign.key
  spate warm add 10.0.0.1:5000/qwen:v1 --pool gpu --priority 10 --seeds 2 --sign-key cosign.key`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := remote.Open(args[0], w.remotes.options())
			if err != nil {
				return usage(err)
			}
			if repo.Reference.Reference == "" {
				return usage(fmt.Errorf("add %s: name a tag or a digest, as in %s:v1", args[0], args[0]))
			}
			desc, err := repo.Resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			pinned := repo.Reference
			if pinned.ValidateReferenceAsDigest() != nil {
				entry.Tag = pinned.Reference
			}
			pinned.Reference = desc.Digest.String()
			entry.Reference, entry.Added = pinned.String(), time.Now().UTC().Truncate(time.Second)
			if err := entry.Check(); err != nil {
				return usage(err)
			}
			return a.changeWarm(cmd.Context(), &w, args[0], func(s *warm.Set) error { return s.Add(entry) })
		},
	}
	f := cmd.Flags()
	w.registerSigning(f)
	f.IntVar(&entry.Priority, "priority", 0, "what has a higher one is fetched first; among equals the oldest")
	f.IntVar(&entry.Seeds, "seeds", 0, "how `many` nodes of each zone fetch it first, so that the others have peers; 0 is all at once")
	return cmd
}

func (a *app) warmRemoveCommand() *cobra.Command {
	var w warmFlags
	cmd := &cobra.Command{
		Use:   "rm REF",
		Short: "Remove an image or model from the warm set of a pool",
		Long: `Remove an image or model from the warm set of a pool, by the name that it was
added by or by its digest, see spate warm ls. Agents stop fetching it and release
its pins: it stays in their caches until they need the room.`,
		Example: "  spate warm rm 127.0.0.1:5000/qwen:v1 --pool gpu --sign-key cosign.key",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			removed := false // by this command: where others write too it looks again
			return a.changeWarm(cmd.Context(), &w, args[0], func(s *warm.Set) error {
				if !s.Remove(args[0]) && !removed {
					return ui.WithHint(fmt.Errorf("remove %s from the warm set of pool %s: it is not in it: %w", args[0], w.pool, errdef.ErrNotFound),
						"name it as it was added, see `spate warm ls`")
				}
				removed = true
				return nil
			})
		},
	}
	w.registerSigning(cmd.Flags())
	return cmd
}

func (a *app) warmListCommand() *cobra.Command {
	var (
		w       warmFlags
		history bool
	)
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the warm set of a pool: its entries in their order, and who signed it",
		Long: `List the warm set of a pool: its version, who signed it, and its entries in the
order in which they are fetched. It has to be signed by one of the --key files. How
far a node is with it spate status says there.

--history lists the versions instead, the newest first, as far back as the
registry has them.`,
		Example: `  spate warm ls --pool gpu --key cosign.pub
  spate warm ls --pool gpu --key cosign.pub --history`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, reference, err := w.open("")
			if err != nil {
				return err
			}
			policy, err := w.trust.policy()
			if err != nil {
				return err
			}
			set, err := warm.Read(cmd.Context(), policy, repo, reference, w.pool)
			if err != nil {
				return err
			}
			v := viewWarm(reference, set)
			if !history {
				return a.out.Result(v, v.print)
			}
			versions, err := warm.History(cmd.Context(), policy, repo, reference, set)
			if err != nil {
				return err
			}
			list := make([]warmView, 0, len(versions))
			for _, version := range versions {
				list = append(list, viewWarm(reference, version))
			}
			return a.out.Result(list, printWarmHistory(list))
		},
	}
	w.register(cmd.Flags(), defaultBoard, "base `URL` of the registry that the pool's agents have")
	cmd.Flags().BoolVar(&history, "history", false, "list the versions, the newest first")
	return cmd
}
