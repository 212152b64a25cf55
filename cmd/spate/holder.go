package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cache/mount/holder"
)

// holderCommand is the command's name.
const holderCommand = "holder"

// holderIdle is how long a holder that holds nothing waits for an agent.
const holderIdle = time.Minute

// holderCommand is what the agent starts to keep its mounts while it is away.
func (a *app) holderCommand() *cobra.Command {
	return &cobra.Command{
		Use:    holderCommand + " DATA",
		Short:  "Keep the agent's mounts while it is away; the agent starts this",
		Hidden: true,
		Args:   a.args(cobra.ExactArgs(1)), // the agent's data directory, for people who list processes
		RunE: func(cmd *cobra.Command, _ []string) error {
			ln, err := holder.Inherited()
			if err != nil {
				return err
			}
			return holder.Serve(cmd.Context(), ln, holderIdle)
		},
	}
}
