package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/agent"
)

func (a *app) mountCommand() *cobra.Command {
	var (
		data     string
		lazy     bool
		wait     bool
		priority int
	)
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Show a model's files at a directory, at once and lazily",
		Long: `Show a model's files at a directory, which must exist. The agent admits the
reference first: its manifest and its index must be signed by a trusted key.

Reading starts at once; a read waits for the pieces it touches, and each piece
is verified before the first byte of it is seen. Unless --lazy is given the rest
comes in the background. When a piece cannot be had in time the read fails with
an input/output error; it never returns other bytes.`,
		Example: `  spate mount 127.0.0.1:5000/qwen:v1 /mnt/qwen`,
		Args:    a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lazy && wait {
				return usage(errors.New("--wait has no end with --lazy: what nobody reads does not come"))
			}
			dir, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			c := agent.NewClient(data)
			defer c.Close()
			req := agent.MountRequest{Reference: args[0], Dir: dir, Lazy: lazy, Wait: wait, Priority: priority}
			if err := c.Mount(cmd.Context(), req); err != nil {
				return err
			}
			return a.out.Result(req, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s is mounted at %s\n", args[0], dir)
				return err
			})
		},
	}
	agentFlag(cmd.Flags(), &data)
	cmd.Flags().BoolVar(&lazy, "lazy", false, "fetch only what is read, and a little ahead of it")
	cmd.Flags().BoolVar(&wait, "wait", false, "return when every byte is here and verified; the mount can be read before")
	priorityFlag(cmd.Flags(), &priority)
	return cmd
}

// priorityFlag says what is fetched first.
func priorityFlag(f *pflag.FlagSet, priority *int) {
	f.IntVar(priority, "priority", 0, "what the agent fetches in the background comes in order of priority, highest first")
}

func (a *app) umountCommand() *cobra.Command {
	var (
		data  string
		force bool
	)
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Short:   "Take a mount away",
		Long:    "Take a mount of the agent away. What was fetched stays in its cache.",
		Example: "  spate umount /mnt/qwen",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			c := agent.NewClient(data)
			defer c.Close()
			req := agent.UnmountRequest{Dir: dir, Force: force}
			if err := c.Unmount(cmd.Context(), req); err != nil {
				return err
			}
			return a.out.Result(req, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s is unmounted\n", dir)
				return err
			})
		},
	}
	agentFlag(cmd.Flags(), &data)
	cmd.Flags().BoolVar(&force, "force", false, "detach it while files are open")
	return cmd
}
