package main

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/liar"
	"github.com/spate-project/spate/p2p/identity"
)

// lying is the result of a liar that has started.
type lying struct {
	Node    string    `json:"node"`
	Addr    string    `json:"meshAddr"`
	Mode    liar.Mode `json:"mode"`
	Objects int       `json:"objects"`
}

// liarCommand is the lab's hostile node, a process of its own as the others are.
func (a *app) liarCommand() *cobra.Command {
	var (
		trust      trustFlags
		remotes    remoteFlags
		mode       liar.Mode
		registries []string
		meshDir    string
		meshListen string
		meshAddr   string
	)
	cmd := &cobra.Command{
		Use:    "liar REF",
		Short:  "Join a mesh, say that everything is here, and lie",
		Hidden: true,
		Args:   a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			policy, err := trust.policy()
			if err != nil {
				return err
			}
			if mode == "" || meshDir == "" || len(registries) == 0 {
				return usage(fmt.Errorf("a liar needs --mode, --mesh and --registry"))
			}
			addr, err := advertised(meshListen, meshAddr)
			if err != nil {
				return err
			}
			id, err := identity.Load(meshDir)
			if err != nil {
				return err
			}
			ln, err := net.Listen("tcp", meshListen)
			if err != nil {
				return fmt.Errorf("listen for peers: %w", err)
			}
			var written error
			err = liar.Run(cmd.Context(), liar.Options{
				Mode: mode, Reference: args[0], Policy: policy, Remote: remotes.options(),
				Trackers: registries, Identity: id, Listener: ln, Addr: addr, Logger: a.logger(),
				Ready: func(addr string, objects int) {
					written = a.out.Result(lying{id.Name(), addr, mode, objects}, func(w io.Writer) error {
						_, err := fmt.Fprintf(w, "%s lies at %s about %d objects: %s\n", id.Name(), addr, objects, mode)
						return err
					})
				},
			})
			return errors.Join(err, written)
		},
	}
	f := cmd.Flags()
	trust.register(f)
	remotes.register(f)
	f.Var(&mode, "mode", "how to lie: wrong, silent or trickle")
	f.StringArrayVar(&registries, "registry", nil, "base `URL` of a registry that introduces peers; may be repeated")
	f.StringVar(&meshDir, "mesh", "", "`directory` with the node's mesh certificate")
	f.StringVar(&meshListen, "mesh-listen", "127.0.0.1:5051", "`address` where peers connect")
	f.StringVar(&meshAddr, "mesh-addr", "", "`address` that peers are told to connect to; that of --mesh-listen when empty")
	return cmd
}
