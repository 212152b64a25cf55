package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/demo"
	"github.com/spate-project/spate/cmd/internal/ui"
)

func (a *app) demoCommand() *cobra.Command {
	opts := demo.Options{}
	size, link := ui.Bytes(1<<30), ui.Bytes(50<<20)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Tell the whole story on one machine, without set-up",
		Long: `Start a registry and several agents as processes of this machine, push and sign
a model, and have every agent load it in the same second, through a mount, as an
inference engine does, comparing every tensor with the source. Links are shaped
in the programs, so that any machine shows the effect. Then the same load by
direct downloads, a peer that serves an altered byte, and an unsigned model.

It needs root and /dev/fuse to mount; without them it pulls the files instead.
Nothing is left behind, also after Ctrl-C.`,
		Example: `  spate demo
  spate demo --nodes 8 --size 256MiB --link 20MiB
  spate demo --model ./qwen --output json`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Size, opts.Link, opts.Mount = int64(size), int64(link), true
			if err := demo.CanMount(); err != nil {
				opts.Mount = false
				fmt.Fprintf(a.out.Messages(), "%v: the files are pulled instead of mounted\n", err)
			}
			r, err := demo.Run(cmd.Context(), opts, a.out.Messages())
			if err != nil {
				return err
			}
			return a.out.Result(r, func(w io.Writer) error { return r.Print(w) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Model, "model", "", "`directory` of a model to load; without it one is made")
	f.Var(&size, "size", "`size` of the model that is made")
	f.IntVar(&opts.Nodes, "nodes", 4, "how many agents")
	f.Var(&link, "link", "`bytes` a second of each process, up and down, and of the registry; 0 is no limit")
	f.BoolVar(&opts.Direct, "direct", true, "also load without the mesh, to compare")
	return cmd
}
