package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/lab"
)

const (
	// life is how long the demo's certificates are valid.
	life = time.Hour

	// stopGrace is how long a child may take to end by itself.
	stopGrace = 10 * time.Second
)

// A node is one agent.
type node struct {
	name    string
	data    string
	view    string // where its model is shown or pulled to
	process *lab.Process
	client  *agent.Client
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i+1) }

// startRegistry starts the registry on s.addr, behind a link of limit bytes a second.
func (s *story) startRegistry(ctx context.Context, limit int64) (err error) {
	rate := strconv.FormatInt(limit, 10)
	s.registry, err = s.herd.Start(lab.Command{Name: "registry", Args: []string{
		"registry", "--listen", s.addr, "--data", s.path("registry"), "--limit-up", rate, "--limit-down", rate,
	}})
	if err != nil {
		return err
	}
	return s.registry.Ready(ctx, func(ctx context.Context) error {
		_, err := s.registrySent(ctx)
		return err
	})
}

// registrySent returns how many bytes the registry has sent, of whatever kind.
func (s *story) registrySent(ctx context.Context) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+"/spate/v1/registry", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var st struct {
		Sent int64 `json:"sentBytes"`
	}
	return st.Sent, json.NewDecoder(resp.Body).Decode(&st)
}

// freeAddr returns a loopback address that nothing listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// startNode starts the i-th agent and waits until it answers.
func (s *story) startNode(ctx context.Context, i int) (*node, error) {
	n := &node{name: nodeName(i), data: s.path(nodeName(i)), view: s.path("view", nodeName(i))}
	if err := os.MkdirAll(n.view, 0o755); err != nil {
		return nil, err
	}
	rate := strconv.FormatInt(s.opts.Link, 10)
	var err error
	n.process, err = s.herd.Start(lab.Command{Name: n.name, Args: []string{
		"agent", "--data", n.data, "--listen", "127.0.0.1:0", "--registry", "http://" + s.addr,
		"--key", s.keys.Verify(), "--mesh", s.keys.Mesh(n.name), "--mesh-listen", "127.0.0.1:0",
		"--limit-up", rate, "--limit-down", rate,
	}})
	if err != nil {
		return nil, err
	}
	n.client = agent.NewClient(n.data)
	s.herd.Defer(func() error { n.client.Close(); return nil })
	return n, n.process.Ready(ctx, func(ctx context.Context) error {
		_, err := n.client.Status(ctx)
		return err
	})
}

// artifact returns what n's agent says of the demo's model.
func (n *node) artifact(ctx context.Context, ref string) (agent.ArtifactStatus, error) {
	st, err := n.client.Status(ctx)
	if err != nil {
		return agent.ArtifactStatus{}, err
	}
	for _, a := range st.Artifacts {
		if a.Reference == ref {
			return a, nil
		}
	}
	return agent.ArtifactStatus{}, fmt.Errorf("%s does not know %s", n.name, ref)
}

// open shows the model at n.view: by a mount, else by a pull that ends when all is there.
func (s *story) open(ctx context.Context, n *node) error {
	if s.opts.Mount {
		return n.client.Mount(ctx, agent.MountRequest{Reference: s.ref, Dir: n.view})
	}
	return n.client.Pull(ctx, agent.PullRequest{Reference: s.ref, Dir: n.view}, func(agent.Event) {})
}

// spate runs this program to its end and returns what it wrote to standard output.
func (s *story) spate(ctx context.Context, args ...string) ([]byte, error) {
	return s.herd.Output(ctx, lab.Command{Name: args[0], Args: args, Env: []string{"COSIGN_PASSWORD="}})
}

// load loads the model at view in a process of its own; the clock started at start.
func (s *story) load(ctx context.Context, view string, start time.Time) (r lab.LoadResult, err error) {
	out, err := s.spate(ctx, "load", view, s.model, "--start", strconv.FormatInt(start.UnixNano(), 10), "--output", "json")
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}
