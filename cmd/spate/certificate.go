package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificateInterval is how often the files of a certificate are looked at, at most.
const certificateInterval = time.Second

// A certificate is a server's, read again when its files are replaced, as whoever
// renews it does. While the new files cannot be read, or do not fit each other,
// the one from before is used. It is safe for concurrent use.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu     sync.Mutex
	looked time.Time
	read   [2]time.Time // when the files were changed that were read last
	pair   *tls.Certificate
}

func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if err := c.reread(); err != nil {
		return nil, fmt.Errorf("load the TLS certificate: %w", err)
	}
	return c, nil
}

// get is for tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= certificateInterval {
		if err := c.reread(); err != nil {
			c.log.Error("the TLS certificate stays the one from before: the changed one cannot be read", "err", err)
		}
	}
	return c.pair, nil
}

// reread reads the files if one of them changed. One that is broken is said once.
func (c *certificate) reread() error {
	c.looked = time.Now()
	var changed [2]time.Time
	for i, name := range []string{c.certFile, c.keyFile} {
		fi, err := os.Stat(name)
		if err != nil {
			return err
		}
		changed[i] = fi.ModTime()
	}
	if changed == c.read {
		return nil
	}
	c.read = changed
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	if c.pair != nil {
		c.log.Info("the TLS certificate was read again", "path", c.certFile, "notAfter", pair.Leaf.NotAfter)
	}
	c.pair = &pair
	return nil
}
