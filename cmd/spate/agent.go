package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/policyfile"
)

const (
	defaultAgentData = "/var/lib/spate"

	// agentMemory is what --memory is by default. Data lives in files; this is
	// for what is on its way.
	agentMemory = 128 << 20
)

// remoteFlags say how registries are reached.
type remoteFlags struct{ plainHTTP bool }

func (r *remoteFlags) register(f *pflag.FlagSet) {
	f.BoolVar(&r.plainHTTP, "plain-http", false, "speak HTTP without TLS to registries beyond loopback too")
}

func (r *remoteFlags) options() remote.Options { return remote.Options{PlainHTTP: r.plainHTTP} }

func (a *app) agentCommand() *cobra.Command {
	var (
		listen     listenFlags
		limits     linkFlags
		classes    classFlags
		memory     = ui.Bytes(agentMemory)
		quota      ui.Bytes
		trust      trustFlags
		remotes    remoteFlags
		traces     traceFlags
		data       string
		registries []string
		labels     map[string]string
		meshDir    string
		meshListen string
		meshAddr   string
		zone       string
		features   string
		audit      string
		conns      int
		timeout    time.Duration
		snapshots  string
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the node daemon: cache, mesh peer, mounts",
		Long: fmt.Sprintf(`Run the node daemon. It keeps verified pieces in its data directory, fetches
what is read from peers and from the registry, and passes on what it has.

The registries named by --registry introduce it to its peers. --mesh names a
directory with the node's mesh certificate: %s, %s and %s. Without
one the agent has no peers and reads everything from the registry.

Other commands reach the agent over a socket in its data directory, which only
its owner can open. --listen serves the read-only status, and metrics for
Prometheus at /metrics.

--listen is also a mirror of registries, to name in containerd's hosts.toml: it
gives out what the policy admits, from the mesh where it can. --snapshotter
serves containerd's proxy snapshotter on a unix socket; docs/containerd.md tells
how to set both up.

Each registry may order it to fetch references before anybody reads them, see
spate prefetch; --label pool=NAME says which pool's orders it takes. What the
policy refuses is not fetched.

The limits can be changed while the agent runs, by spate limit, and the cache's
quota by spate cache resize.`,
			identity.CAFile, identity.CertFile, identity.KeyFile),
		Example: `  spate agent --registry http://127.0.0.1:5000 --key cosign.pub
  spate agent --registry https://registry.example:5000 --key cosign.pub \
      --mesh /etc/spate/mesh --mesh-listen 10.0.0.7:5051`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			policy, err := trust.policy()
			if err != nil {
				return err
			}
			opts := agent.Options{
				Data: data, Policy: policy, Labels: labels, Remote: remotes.options(), Trackers: registries, Zone: zone, MeshConns: conns, ReadTimeout: timeout,
				Link: link.New(int64(limits.up), int64(limits.down)), Logger: a.logger(),
				Seeding: int64(classes.seeding), Prefetch: int64(classes.prefetch), Demand: int64(classes.demand),
				CacheQuota: int64(quota), Features: features,
			}
			if err := orders.CheckLabels(labels); err != nil {
				return usage(fmt.Errorf("--label: %w", err))
			}
			if len(policy.Verifiers)+len(policy.Rules) == 0 {
				opts.Logger.Warn("neither --key nor --policy is given: nothing will be trusted")
			}
			for _, r := range registries {
				u, err := url.Parse(r)
				if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
					return ui.WithHint(usage(fmt.Errorf("--registry %s is not a URL", r)), "write it as http://HOST:PORT or https://HOST:PORT")
				}
				opts.Registries = append(opts.Registries, u.Host)
			}
			if snapshots != "" {
				exe, err := os.Executable()
				if err != nil {
					return err
				}
				opts.Snapshotter, opts.Holder = snapshots, []string{exe, holderCommand, data}
			}
			if meshDir == "" && len(registries) > 0 {
				opts.Logger.Info("no --mesh is given: this node has no peers and reads everything from the registry")
			}
			if meshDir != "" {
				if len(registries) == 0 {
					return usage(fmt.Errorf("--mesh needs a --registry that introduces peers"))
				}
				if opts.MeshAddr, err = advertised(meshListen, meshAddr); err != nil {
					return err
				}
				if opts.Identity, err = identity.Load(meshDir); err != nil {
					return err
				}
				if opts.MeshListener, err = net.Listen("tcp", meshListen); err != nil {
					return fmt.Errorf("listen for peers: %w", err)
				}
				defer opts.MeshListener.Close()
			}
			if opts.Tracer, err = traces.tracer(opts); err != nil {
				return err
			}
			ln, err := listen.open(opts.Logger)
			if err != nil {
				return err
			}
			defer ln.Close()
			if memory > 0 && (os.Getenv("GOMEMLIMIT") == "" || cmd.Flags().Changed("memory")) {
				debug.SetMemoryLimit(int64(memory))
			}
			ag, err := agent.New(opts)
			if err != nil {
				return err
			}
			decisions, done, err := auditLog(audit)
			if err != nil {
				return err
			}
			defer done()
			if decisions != nil {
				policy.Decided = func(ctx context.Context, c *signing.Chain, err error) { logDecision(ctx, decisions, c, err) }
			}
			if trust.file != "" {
				go policyfile.Watch(cmd.Context(), trust.file, policy, opts.Logger)
			}
			if err := a.announce(serving{ln.Addr().String(), data}, "agent"); err != nil {
				return err
			}
			return ag.Run(cmd.Context(), ln)
		},
	}
	f := cmd.Flags()
	listen.register(f, "127.0.0.1:5050")
	limits.register(f)
	classes.register(f, "limit-")
	f.Var(&memory, "memory", "`size` of the heap from which on the garbage collector works harder; 0 is none; GOMEMLIMIT says it too")
	f.Var(&quota, "cache-quota", "most `bytes` of pieces in the cache, as in 500GB; what nobody uses is evicted by last use; 0 is no limit")
	trust.register(f)
	remotes.register(f)
	traces.register(f)
	f.StringVar(&data, "data", defaultAgentData, "`directory` of the cache and the control socket")
	f.DurationVar(&timeout, "read-timeout", 2*time.Minute, "how long a read waits for a piece before it fails")
	f.StringArrayVar(&registries, "registry", nil, "base `URL` of a registry that introduces peers; may be repeated")
	f.StringToStringVar(&labels, "label", nil, "`name=value` that prefetch orders choose nodes by, as in pool=gpu; may be repeated")
	f.StringVar(&meshDir, "mesh", "", "`directory` with the node's mesh certificate; without it there are no peers")
	f.StringVar(&meshListen, "mesh-listen", "127.0.0.1:5051", "`address` where peers connect, over mutual TLS")
	f.IntVar(&conns, "mesh-connections", torrent.DefaultConns, "how many connections with peers at most; each takes about 1 MiB of memory")
	f.StringVar(&audit, "audit-log", "", "`file` to add a line of JSON to for each decision of the policy: what was asked for, the rule, who signed, why not; none when empty")
	f.StringVar(&features, "nfd-features", "", "`file` for node-feature-discovery that labels the Kubernetes node with what it holds, see docs/kubernetes.md; none when empty")
	f.StringVar(&zone, "zone", "", "`name` of where this node is: peers in the same zone are preferred, one copy comes from the others")
	f.StringVar(&snapshots, "snapshotter", "", "`socket` to serve containerd a snapshotter at, for images that start before they are here; none when empty")
	f.StringVar(&meshAddr, "mesh-addr", "", "`address` that peers are told to connect to; that of --mesh-listen when empty")
	return cmd
}

// advertised returns the address that peers are told, empty for the listener's own.
func advertised(listen, addr string) (string, error) {
	if addr != "" {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return "", usage(fmt.Errorf("--mesh-addr %s: %w", addr, err))
		}
		return addr, nil
	}
	tcp, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil {
		return "", usage(fmt.Errorf("--mesh-listen %s: %w", listen, err))
	}
	if tcp.IP == nil || tcp.IP.IsUnspecified() {
		return "", ui.WithHint(usage(fmt.Errorf("--mesh-listen %s names no address that peers could connect to", listen)),
			"name one with --mesh-addr")
	}
	return "", nil
}

// agentFlag says which agent a command talks to.
func agentFlag(f *pflag.FlagSet, data *string) {
	f.StringVar(data, "data", defaultAgentData, "the agent's data `directory`")
}
