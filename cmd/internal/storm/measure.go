package storm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/lab/netns"
)

// A measurement is what the machine had done when the clock started.
type measurement struct {
	*storm
	hosts    []netns.Counters // of the nodes
	usage    []lab.Usage
	sent     netns.Counters // of the origin
	registry lab.Usage
	cpu      ticks
}

// measure begins a measurement.
func (s *storm) measure(ctx context.Context) (*measurement, error) {
	m := &measurement{storm: s, registry: s.registry.Usage()}
	var err error
	if m.sent, err = s.origin.Counters(); err != nil {
		return nil, err
	}
	for _, n := range s.nodes {
		c, err := n.host.Counters()
		if err != nil {
			return nil, err
		}
		m.hosts = append(m.hosts, c)
		m.usage = append(m.usage, n.usage())
	}
	m.cpu, err = readTicks()
	return m, err
}

// finish returns what happened since. before is the seconds that earlier phases took.
func (m *measurement) finish(ctx context.Context, before float64) (Sample, error) {
	cpu, err := readTicks()
	if err != nil {
		return Sample{}, err
	}
	r := Sample{OriginKilled: m.originKilled, Reads: m.reads}
	r.Prefetch, r.CPUBusy = before, cpu.busySince(m.cpu)
	sent, err := m.origin.Counters()
	if err != nil {
		return Sample{}, err
	}
	sent = sent.Sub(m.sent)
	u := m.storm.registry.Usage()
	r.Origin = Node{
		Name: m.origin.Name(), CPUSeconds: (u.CPU - m.registry.CPU).Seconds(), PeakRSSBytes: u.PeakRSS,
		LinkReceivedBytes: sent.ReceivedBytes, LinkSentBytes: sent.SentBytes,
	}
	r.OriginSent = sent.Sent()
	for i, n := range m.nodes {
		c, err := n.host.Counters()
		if err != nil {
			return Sample{}, err
		}
		c = c.Sub(m.hosts[i])
		u, t := n.usage(), n.traffic(ctx)
		kills, _ := n.fate()
		r.Nodes = append(r.Nodes, Node{
			Name: n.name(), Ready: n.ready, FirstByte: n.firstByte, Stall: n.stall,
			OriginBytes: t.origin, PeerBytes: t.peers, ServedBytes: t.served, WastedBlocks: t.wasted,
			CPUSeconds: (u.CPU - m.usage[i].CPU).Seconds(), PeakRSSBytes: u.PeakRSS,
			WrittenBytes:      u.Written - m.usage[i].Written,
			LinkReceivedBytes: c.ReceivedBytes, LinkSentBytes: c.SentBytes,
			Received: c.Received(), Kills: kills, transfer: n.transfer,
		})
	}
	return r, nil
}

// ticks is the time of all CPUs, in the kernel's units.
type ticks struct{ idle, all int64 }

func readTicks() (t ticks, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return ticks{}, err
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	// cpu user nice system idle iowait irq softirq steal guest…; guest is in user.
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return ticks{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return ticks{}, fmt.Errorf("/proc/stat: %w", err)
		}
		t.all += n
		if i == 3 || i == 4 {
			t.idle += n
		}
	}
	return t, nil
}

// busySince returns the share of all CPUs that was used since before.
func (t ticks) busySince(before ticks) float64 {
	if t.all == before.all {
		return 0
	}
	return 1 - float64(t.idle-before.idle)/float64(t.all-before.all)
}
