package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/artifact"
	"github.com/spate-project/spate/oci/remote"
)

func (a *app) exportCommand() *cobra.Command {
	var remotes remoteFlags
	cmd := &cobra.Command{
		Use:   "export REF... FILE.tar|DIR",
		Short: "Write images and models with their signatures as an OCI image layout",
		Long: `Write what each REF names into one OCI image layout, for a site without a
network: an image with all its platforms, or a model, and everything that refers to
it: signatures, indexes, traces, SBOMs. The layout is a tar where its name ends in
.tar, which is replaced if it is there, else a directory, which must not be there.
It appears under its name when it is whole.

In the layout each is named by its repository and tag, such as models/qwen:v1,
in an annotation org.opencontainers.image.ref.name.`,
		Example: `  spate export 127.0.0.1:5000/qwen:v1 127.0.0.1:5000/web:v2 site.tar
  spate import site.tar 10.0.0.1:5000`,
		Args: a.args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.export(cmd.Context(), args[:len(args)-1], args[len(args)-1], remotes.options())
		},
	}
	remotes.register(cmd.Flags())
	return cmd
}

func (a *app) export(ctx context.Context, references []string, name string, opts remote.Options) error {
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	opts.Transport = transport
	var repos []*remote.Repository
	named := map[string]string{}
	for _, reference := range references {
		repo, err := openNamed(reference, opts)
		if err != nil {
			return err
		}
		in := layoutName(repo)
		if other := named[in]; other != "" {
			return usage(fmt.Errorf("export %s and %s: both would be %s in the layout", other, reference, in))
		}
		named[in] = reference
		repos = append(repos, repo)
	}
	out, err := artifact.NewExport(name)
	if err != nil {
		return ui.WithHint(err, "name a file that ends in .tar, or a directory that is not there yet")
	}
	defer out.Close()
	m := a.newMover("export", "exported to "+name)
	defer m.close()
	for _, repo := range repos {
		in := layoutName(repo)
		if err := m.move(ctx, repo, repo.Reference.Reference, out, in, in); err != nil {
			return err
		}
	}
	if err := out.Commit(); err != nil {
		return err
	}
	return m.result()
}

// layoutName is what a reference is called in a layout.
func layoutName(repo *remote.Repository) string {
	return strings.TrimPrefix(repo.Reference.String(), repo.Reference.Registry+"/")
}

func (a *app) importCommand() *cobra.Command {
	var remotes remoteFlags
	cmd := &cobra.Command{
		Use:   "import FILE.tar|DIR [REF|HOST]",
		Short: "Bring the images and models of an OCI image layout into a registry",
		Long: `Bring everything that an OCI image layout names into a registry, with what refers
to it: signatures, indexes, traces, SBOMs. The layout is a directory or a tar that
is not compressed, made by spate export or by any other tool.

With HOST, which is 127.0.0.1:5000 when it is missing, each comes under the name
that it has in the layout. REF gives the name for a layout that has just one. Every
digest is checked; a tag is there when all of its artifact is. What the registry has
is not sent again.`,
		Example: `  spate import site.tar 10.0.0.1:5000
  spate import qwen.tar 10.0.0.1:5000/models/qwen:v1`,
		Args: a.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			to := strings.TrimPrefix(defaultBoard, "http://")
			if len(args) == 2 {
				to = args[1]
			}
			return a.importLayout(cmd.Context(), args[0], to, remotes.options())
		},
	}
	remotes.register(cmd.Flags())
	return cmd
}

func (a *app) importLayout(ctx context.Context, name, to string, opts remote.Options) error {
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	opts.Transport = transport
	layout, err := artifact.OpenLayout(ctx, name)
	if err != nil {
		return err
	}
	defer layout.Close()
	names, err := layout.Names(ctx)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("import %s: the layout names nothing (org.opencontainers.image.ref.name)", name)
	}
	repos := make([]*remote.Repository, len(names))
	for i, in := range names {
		if repos[i], err = importTo(in, to, len(names), opts); err != nil {
			return err
		}
	}
	m := a.newMover("import", "imported from "+name)
	defer m.close()
	for i, repo := range repos {
		if err := m.move(ctx, layout, names[i], repo, tagOf(repo), repo.Reference.String()); err != nil {
			return err
		}
	}
	return m.result()
}

// importTo opens where one of n artifacts of a layout goes that is called name there.
func importTo(name, to string, n int, opts remote.Options) (*remote.Repository, error) {
	if !strings.Contains(to, "/") { // a host
		repo, err := remote.Open(to+"/"+name, opts)
		if err != nil || repo.Reference.Reference == "" {
			return nil, ui.WithHint(usage(fmt.Errorf("import %q: the layout's name is no repository and tag", name)), "say as what it comes: HOST/NAME:TAG")
		}
		return repo, nil
	}
	if n > 1 {
		return nil, ui.WithHint(usage(fmt.Errorf("import to %s: the layout names %d artifacts", to, n)), "name a registry alone, such as 127.0.0.1:5000")
	}
	return openNamed(to, opts)
}
