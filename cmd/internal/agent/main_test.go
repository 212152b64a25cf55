package agent

import (
	"context"
	"net"
	"sync"
	"testing"
)

// running returns an agent that runs until end is called, or the test ends, and
// the address of its status.
func running(t *testing.T, opts Options) (a *Agent, addr string, end func()) {
	t.Helper()
	opts.Logger = quiet()
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx, ln) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return a, ln.Addr().String(), end
}
