package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// loadCommand is the demo's reader, a process of its own as an inference
// engine is: a page fault in a mapped file stops all of a Go program's threads
// that collect garbage.
func (a *app) loadCommand() *cobra.Command {
	var start, rate int64
	cmd := &cobra.Command{
		Use:    "load DIR SOURCE",
		Short:  "Load a model as an engine does and compare every tensor with its source",
		Hidden: true,
		Args:   a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := lab.Load(cmd.Context(), args[0], args[1], lab.LoadOptions{Start: time.Unix(0, start), Copy: rate})
			if err != nil {
				return err
			}
			return a.out.Result(r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "first byte after %s, last of %d tensors after %s\n",
					ui.Duration(r.FirstByte), r.Tensors, ui.Duration(r.LastTensor))
				return err
			})
		},
	}
	cmd.Flags().Int64Var(&start, "start", time.Now().UnixNano(), "when the clock started, in Unix nanoseconds")
	cmd.Flags().Int64Var(&rate, "copy", 0, "how many bytes a second are copied to an accelerator; 0 is no time for it")
	return cmd
}
