package orders

import (
	"fmt"
	"time"
)

// A Standing is where one node stands with one order.
type Standing string

// The standings of a node.
const (
	Waiting  Standing = "waiting"  // it has told nothing yet, or waits for the order's hours
	Fetching Standing = "fetching" // it has admitted the order and fetches it
	Failing  Standing = "failing"  // it cannot go on now, and tries again
	Denied   Standing = "refused"  // its policy refuses a reference; it has fetched nothing of that
	Ready    Standing = "ready"    // it holds every byte of the order's plan, verified
)

// A Progress says how far one node is with one run of an order. Bytes are of
// verified pieces, of those that the order's plan names.
type Progress struct {
	Order string   `json:"order"`
	Run   int      `json:"run"`
	State Standing `json:"state"`

	Have  int64 `json:"haveBytes"`
	Total int64 `json:"totalBytes"` // 0 while it is not known
	Rate  int64 `json:"rate"`       // bytes a second, lately

	// Memory is how much was read into the page cache for an order that asks for
	// that; less than Total when a node that is ready had no room for more.
	Memory int64 `json:"memoryBytes,omitempty"`

	ETA   float64 `json:"etaSeconds"`      // how long the rest takes as fast as it comes now; -1 is not known
	Bound float64 `json:"boundSeconds"`    // and how long with the node's whole link for it alone; -1 is not known
	Error string  `json:"error,omitempty"` // why it fails, refuses or waits
}

// A Report says what a node is and how far it is with the orders that it works on.
type Report struct {
	Node   string            `json:"node"` // one name for one node
	Labels map[string]string `json:"labels,omitempty"`
	Zone   string            `json:"zone,omitempty"`   // where it is
	Orders []Progress        `json:"orders,omitempty"` // each once

	// Stock is what its cache holds; nil is what it told last.
	Stock *Stock `json:"stock,omitempty"`

	// Wait is how long the board may take to answer while the node has nothing
	// else to do than these orders, in seconds.
	Wait float64 `json:"waitSeconds,omitempty"`
}

// Work answers a Report: all that the node is to work on. What it works on and
// is not listed it is to let go.
type Work struct {
	Tasks []Task `json:"tasks"`
}

// A Task is one run of an order, for a node.
type Task struct {
	Order      string   `json:"order"`
	Run        int      `json:"run"`
	References []string `json:"references"`
	IntoMemory bool     `json:"intoMemory,omitempty"`
	Plan       Plan     `json:"plan,omitzero"`
	Rate       int64    `json:"rate,omitempty"`
	Between    Hours    `json:"between,omitempty"`
}

// Limits of one report.
const (
	maxLabels = 32
	maxWait   = 30 * time.Second
	maxError  = 512 // bytes; a longer text is cut
)

// CheckLabels reports whether a node may have these labels.
func CheckLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("%d labels, at most %d are accepted", len(labels), maxLabels)
	}
	for name, value := range labels {
		if name == "" || len(name) > maxName || len(value) > maxName {
			return fmt.Errorf("label %.40q=%.40q: a name of 1 to %d bytes and a value of as many at most are accepted", name, value, maxName)
		}
	}
	return nil
}

// check reports whether a foreign report is within bounds, and cuts its errors.
func (r *Report) check() error {
	if r.Node == "" || len(r.Node) > maxName {
		return fmt.Errorf("node name of %d bytes is outside 1..%d", len(r.Node), maxName)
	}
	if err := CheckLabels(r.Labels); err != nil {
		return err
	}
	if len(r.Zone) > maxName {
		return fmt.Errorf("zone of %d bytes, at most %d are accepted", len(r.Zone), maxName)
	}
	if r.Stock != nil {
		if err := r.Stock.check(); err != nil {
			return err
		}
	}
	if len(r.Orders) > maxOrders {
		return fmt.Errorf("progress of %d orders, at most %d are accepted", len(r.Orders), maxOrders)
	}
	if !(r.Wait >= 0 && r.Wait <= maxWait.Seconds()) {
		return fmt.Errorf("a wait of %v seconds is outside 0..%v", r.Wait, maxWait.Seconds())
	}
	seen := make(map[string]bool, len(r.Orders))
	for i := range r.Orders {
		p := &r.Orders[i]
		switch p.State {
		case Waiting, Fetching, Failing, Denied, Ready:
		default:
			return fmt.Errorf("order %.40q: no node is %.40q", p.Order, p.State)
		}
		if seen[p.Order] {
			return fmt.Errorf("order %.40q is listed twice", p.Order)
		}
		seen[p.Order] = true
		if p.Have < 0 || p.Total < p.Have || p.Rate < 0 || p.Memory < 0 || p.Memory > p.Total || p.ETA < -1 || p.Bound < -1 {
			return fmt.Errorf("order %.40q: its numbers are out of range", p.Order)
		}
		if p.State == Ready && p.Have != p.Total {
			return fmt.Errorf("order %.40q: ready with %d of %d bytes", p.Order, p.Have, p.Total)
		}
		p.Error = p.Error[:min(len(p.Error), maxError)]
	}
	return nil
}

// A View is an order and how far its nodes are.
type View struct {
	Order
	Holding int    `json:"holding"` // nodes that are connected now and hold all of it
	Nodes   []Node `json:"nodes"`   // by name: those that it was meant for, and those that have come since
}

// A Node is one node's part in a View.
type Node struct {
	Node      string `json:"node"`
	Connected bool   `json:"connected"`
	Progress
}
