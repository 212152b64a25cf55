package storm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/lab/netns"
)

// A node is one host in one run: an agent, or a download.
type node struct {
	*world
	host   *netns.Host
	data   string
	view   string // where its model is shown or pulled to
	client *agent.Client

	mu        sync.Mutex
	processes []*lab.Process // the last one is alive unless it was killed
	up        chan struct{}  // closed when the agent serves
	past      traffic        // of agents that were killed
	kills     int

	ready     float64 // seconds from the start of the storm
	firstByte float64 // seconds from the node's own start; 0: not measured
	stall     float64 // seconds that it waited for bytes; 0: not measured
	transfer  float64 // seconds that its download says it took; 0: not measured
}

// traffic is what an agent says about the model's pieces, in bytes, and the
// blocks of them that came twice.
type traffic struct{ origin, peers, served, wasted int64 }

// newNode returns a node with fresh directories below dir.
func (w *world) newNode(host *netns.Host, dir string) (*node, error) {
	n := &node{
		world: w, host: host, up: make(chan struct{}),
		data: filepath.Join(dir, host.Name()), view: filepath.Join(dir, "view", host.Name()),
	}
	n.client = agent.NewClient(n.data)
	return n, os.MkdirAll(n.view, 0o755)
}

func (n *node) name() string { return n.host.Name() }

// spawn starts a process on the node's host and counts it as the node's.
func (n *node) spawn(c lab.Command) (*lab.Process, error) {
	c.Name, c.Network = n.name(), n.host.Namespace()
	p, err := n.herd.Start(c)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.processes = append(n.processes, p)
	return p, nil
}

// start starts the node's agent and waits until it serves.
func (n *node) start(ctx context.Context) error {
	p, err := n.spawn(lab.Command{Args: []string{
		"agent", "--data", n.data, "--listen", "127.0.0.1:5050",
		"--registry", "http://" + n.originAddr(), "--plain-http", "--key", n.keys.Verify(),
		"--mesh", n.keys.Mesh(n.name()), "--mesh-listen", fmt.Sprintf("%v:%d", n.host.Addr(), meshPort),
	}})
	if err != nil {
		return err
	}
	err = p.Ready(ctx, func(ctx context.Context) error {
		_, err := n.client.Status(ctx)
		return err
	})
	if err == nil {
		_, up := n.fate()
		close(up)
	}
	return err
}

// kill ends the node's agent with SIGKILL and takes away the mount that it leaves.
func (n *node) kill(ctx context.Context) {
	past := n.traffic(ctx)
	n.mu.Lock()
	p := n.processes[len(n.processes)-1]
	n.past = past
	n.up = make(chan struct{})
	n.kills++
	n.mu.Unlock()
	p.Kill()
	unix.Unmount(n.view, unix.MNT_DETACH)
}

// fate returns how often the node was killed and what is closed when it serves.
func (n *node) fate() (kills int, up chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.kills, n.up
}

// usage returns what the node's processes have used until now.
func (n *node) usage() (u lab.Usage) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.processes {
		v := p.Usage()
		u.CPU += v.CPU
		u.Written += v.Written
		u.PeakRSS = max(u.PeakRSS, v.PeakRSS)
	}
	return u
}

// traffic returns what the node's agents have moved until now; of one that
// does not answer, nothing.
func (n *node) traffic(ctx context.Context) traffic {
	n.mu.Lock()
	t := n.past
	n.mu.Unlock()
	st, err := n.client.Status(ctx)
	if err != nil {
		return t
	}
	for _, a := range st.Artifacts {
		if a.Reference == n.ref {
			t.origin += a.Origin
			t.peers += a.Peers
			t.served += a.Served
			t.wasted += a.Wasted
		}
	}
	return t
}

// stop ends whatever the node runs.
func (n *node) stop() error {
	defer n.client.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.processes) == 0 {
		return nil
	}
	return n.processes[len(n.processes)-1].Stop(stopGrace)
}
