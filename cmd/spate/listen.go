package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
)

// A listenFlags is where a daemon listens, and how it is kept safe.
type listenFlags struct {
	addr      string
	cert, key string
	insecure  bool
}

func (l *listenFlags) register(f *pflag.FlagSet, addr string) {
	f.StringVar(&l.addr, "listen", addr, "`address` to listen on; beyond loopback it needs TLS or --insecure")
	f.StringVar(&l.cert, "tls-cert", "", "PEM `file` with the server's certificate chain; read again when it is renewed")
	f.StringVar(&l.key, "tls-key", "", "PEM `file` with the certificate's key")
	f.BoolVar(&l.insecure, "insecure", false, "allow listening beyond loopback without TLS")
}

// open listens. The listener speaks TLS when there is a certificate.
func (l *listenFlags) open(log *slog.Logger) (net.Listener, error) {
	if (l.cert == "") != (l.key == "") {
		return nil, usage(fmt.Errorf("--tls-cert and --tls-key go together"))
	}
	tcp, err := net.ResolveTCPAddr("tcp", l.addr)
	if err != nil {
		return nil, usage(fmt.Errorf("--listen %s: %w", l.addr, err))
	}
	if !tcp.IP.IsLoopback() && l.cert == "" && !l.insecure {
		return nil, ui.WithHint(
			usage(fmt.Errorf("--listen %s is open to the network, without TLS", l.addr)),
			"give --tls-cert and --tls-key, or say --insecure when something else protects it")
	}
	var cert *certificate
	if l.cert != "" {
		if cert, err = openCertificate(l.cert, l.key, log); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("tcp", l.addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if cert != nil {
		ln = tls.NewListener(ln, &tls.Config{GetCertificate: cert.get, MinVersion: tls.VersionTLS12})
	}
	return ln, nil
}

// linkFlags are a process's bandwidth limits.
type linkFlags struct{ up, down ui.Rate }

func (l *linkFlags) register(f *pflag.FlagSet) {
	f.Var(&l.up, "limit-up", "most `bytes` a second to send, as in 50MiB or 400mbit; 0 is no limit")
	f.Var(&l.down, "limit-down", "most `bytes` a second to receive; 0 is no limit")
}

// shutdownGrace is how long requests under way may take after a signal.
const shutdownGrace = 5 * time.Second

// headerTimeout is how long a client may take to ask, idleTimeout how long a
// connection may wait for the next request. Bodies take the time they take.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

// serveUntil serves h until ctx ends, then lets what is under way finish for a while.
func serveUntil(ctx context.Context, h http.Handler, ln net.Listener) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		srv.Close()
	}
	return nil
}
