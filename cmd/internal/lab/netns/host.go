package netns

import (
	"fmt"
	"net/netip"
	"os"
)

// headers are the bytes of a packet that are not content: Ethernet 14, IPv4
// 20, TCP 20 and its timestamps 12.
const headers = 66

// A Host is a network namespace with one link. Its methods are safe for
// concurrent use until its network is closed.
type Host struct {
	name  string
	addr  netip.Addr
	space *space
}

// Name returns the name that the host was added by.
func (h *Host) Name() string { return h.name }

// Addr returns its address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Namespace returns what a process enters to run on the host. It stays the
// network's.
func (h *Host) Namespace() *os.File { return h.space.file }

// Counters are what has passed a host's link.
type Counters struct {
	ReceivedBytes, ReceivedPackets int64
	SentBytes, SentPackets         int64
}

// Counters returns what has passed the host's link until now: after its limit
// for what it sent. Loopback does not count.
func (h *Host) Counters() (Counters, error) {
	link, err := h.space.LinkByName(linkName)
	if err != nil {
		return Counters{}, fmt.Errorf("read the counters of %s: %w", h.name, err)
	}
	s := link.Attrs().Statistics
	return Counters{
		ReceivedBytes: int64(s.RxBytes), ReceivedPackets: int64(s.RxPackets),
		SentBytes: int64(s.TxBytes), SentPackets: int64(s.TxPackets),
	}, nil
}

// Sub returns what passed between before and c.
func (c Counters) Sub(before Counters) Counters {
	return Counters{
		c.ReceivedBytes - before.ReceivedBytes, c.ReceivedPackets - before.ReceivedPackets,
		c.SentBytes - before.SentBytes, c.SentPackets - before.SentPackets,
	}
}

// Received returns how much of it was the content of TCP. The kernel hands
// segments over in bundles that count as one packet, so that this is not a
// constant share. What was sent twice counts twice.
func (c Counters) Received() int64 { return c.ReceivedBytes - headers*c.ReceivedPackets }

// Sent is Received for what the host sent.
func (c Counters) Sent() int64 { return c.SentBytes - headers*c.SentPackets }
