package torrent

import (
	"net"
	"slices"
)

// Banned reports whether the engine refuses the peer of the given name.
func (e *Engine) Banned(name string) bool {
	ip, _, _ := net.SplitHostPort(peerAddr(name).String())
	return slices.Contains(e.client.BadPeerIPs(), ip)
}
