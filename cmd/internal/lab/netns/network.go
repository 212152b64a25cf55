// Package netns makes a small network inside this machine: hosts that are
// network namespaces, on one bridge, each behind a link of its own rate.
//
// Nothing has a name outside of it and nothing existing is touched. Namespaces
// are held by file descriptors alone, so the kernel takes all of it away when
// the last process in it and the one that made it have ended, in whatever way.
package netns

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// latency is how long a packet may wait in front of a link before it is dropped.
	latency = 50 * time.Millisecond

	// A link sends at its own rate over burstTime, and at any rate below it. A
	// burst has room for a segment as the sender's kernel makes it (TSO), 64 KiB
	// and headers: else it would be cut into packets, here, at ten times the work.
	burstTime          = 5 * time.Millisecond
	minBurst, maxBurst = 128 << 10, 256 << 10 // bytes

	bridgeName = "bridge"
	linkName   = "eth0" // in each host
)

// subnet holds the hosts' addresses, the first of which is .0.1.
var subnet = netip.MustParsePrefix("10.83.0.0/16")

// A Network is a bridge and the hosts on it. Its methods are not safe for
// concurrent use.
type Network struct {
	bridge *space
	hosts  []*Host
}

// A Link is the rates of a host's link in bytes a second, Ethernet headers
// included; 0 is no limit.
type Link struct{ Up, Down int64 }

// New makes a network without hosts. It needs root (CAP_SYS_ADMIN and
// CAP_NET_ADMIN). The caller must Close it.
func New() (*Network, error) {
	bridge, err := newSpace()
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	n := &Network{bridge: bridge}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := errors.Join(bridge.LinkAdd(link), bridge.LinkSetUp(link)); err != nil {
		n.Close()
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	return n, nil
}

// Add adds a host with an address and a loopback of its own. The name is for
// errors. The network owns it.
func (n *Network) Add(name string, link Link) (*Host, error) {
	h, err := n.add(name, link)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	return h, nil
}

func (n *Network) add(name string, link Link) (*Host, error) {
	s, err := newSpace()
	if err != nil {
		return nil, err
	}
	h := &Host{name: name, addr: subnet.Addr(), space: s}
	n.hosts = append(n.hosts, h)
	for range n.hosts {
		h.addr = h.addr.Next()
	}
	bridge, err := n.bridge.LinkByName(bridgeName)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("port%d", len(n.hosts))
	attrs.MasterIndex = bridge.Attrs().Index
	port := &netlink.Veth{LinkAttrs: attrs, PeerName: linkName, PeerNamespace: netlink.NsFd(s.file.Fd())}
	if err := n.bridge.LinkAdd(port); err != nil {
		return nil, fmt.Errorf("make a link: %w", err)
	}
	if err := n.bridge.raise(attrs.Name, link.Down); err != nil {
		return nil, err
	}
	if err := errors.Join(s.raise("lo", 0), s.raise(linkName, link.Up)); err != nil {
		return nil, err
	}
	eth, err := s.LinkByName(linkName)
	if err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   h.addr.AsSlice(),
		Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen()),
	}}
	if err := s.AddrAdd(eth, addr); err != nil {
		return nil, fmt.Errorf("give it the address %v: %w", h.addr, err)
	}
	return h, nil
}

// Close lets go of the network. The kernel removes each host when its last process has ended.
func (n *Network) Close() error {
	errs := []error{n.bridge.close()}
	for _, h := range n.hosts {
		errs = append(errs, h.space.close())
	}
	return errors.Join(errs...)
}

// A space is a network namespace and the conversation with the kernel about it.
type space struct {
	*netlink.Handle
	file *os.File
}

// newSpace makes a network namespace.
func newSpace() (*space, error) {
	file, err := unshare()
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &space{handle, file}, nil
}

// unshare makes a namespace without this thread staying in it. A thread that
// cannot leave is never unlocked and dies with its goroutine.
func unshare() (*os.File, error) {
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- made{nil, err}
			return
		}
		defer home.Close()
		ns, err := netns.New()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		if err != nil {
			done <- made{nil, err}
			return
		}
		done <- made{os.NewFile(uintptr(ns), "network namespace"), nil}
	}()
	m := <-done
	return m.file, m.err
}

// raise brings a link up, behind a limit of rate bytes a second unless that is 0.
func (s *space) raise(name string, rate int64) error {
	link, err := s.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if rate > 0 {
		burst := uint32(min(max(seconds(burstTime, rate), minBurst), maxBurst))
		qdisc := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
			},
			Rate:   uint64(rate),
			Buffer: netlink.Xmittime(uint64(rate), burst),
			Limit:  uint32(min(seconds(latency, rate)+int64(burst), math.MaxUint32)),
		}
		if err := s.QdiscAdd(qdisc); err != nil {
			return fmt.Errorf("limit link %s to %d bytes a second: %w", name, rate, err)
		}
	}
	if err := s.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring link %s up: %w", name, err)
	}
	return nil
}

// seconds returns the bytes that rate a second makes in d.
func seconds(d time.Duration, rate int64) int64 { return int64(d.Seconds() * float64(rate)) }

func (s *space) close() error {
	s.Handle.Close()
	return s.file.Close()
}
