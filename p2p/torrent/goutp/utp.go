// Package utp stands in for github.com/anacrolix/go-utp, which anacrolix/torrent
// v1.62.0 requires but which not every module proxy serves. The mesh speaks TCP
// inside mutual TLS only, so uTP (BEP 29) is off and every constructor here fails.
package utp

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// Default names the implementation in error messages.
const Default = "go-utp (not built in)"

var errOff = errors.New("uTP is not built in")

// FirewallCallback reports whether a packet from addr is to be dropped.
type FirewallCallback func(addr net.Addr) bool

// Option configures a socket.
type Option func()

// WithLogger is accepted and has no effect.
func WithLogger(*slog.Logger) Option { return func() {} }

// Socket is the interface that anacrolix/torrent expects of a uTP socket.
type Socket interface {
	net.PacketConn
	Accept() (net.Conn, error)
	Addr() net.Addr
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	SetFirewallCallback(FirewallCallback)
}

// NewSocket always fails: uTP is off.
func NewSocket(network, addr string, opts ...Option) (Socket, error) { return nil, errOff }

// NewSocketFromPacketConn always fails: uTP is off.
func NewSocketFromPacketConn(pc net.PacketConn, opts ...Option) (Socket, error) { return nil, errOff }
