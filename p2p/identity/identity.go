// Package identity says who a node is within its mesh: a certificate of the
// mesh's own CA that carries the node's name. Peers meet over mutual TLS 1.3
// only, and each side knows the other by that name, never by its address.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The files of an identity, as Load finds them in one directory.
const (
	CAFile   = "ca.crt"   // the mesh's CA certificates, PEM
	CertFile = "node.crt" // the node's certificate chain, PEM
	KeyFile  = "node.key" // its private key, PEM
)

const maxName = 253 // of DNS

// An Identity is a node's certificate and the CA that it shares with its
// peers. It is immutable and safe for concurrent use.
type Identity struct {
	name string
	cert tls.Certificate
	ca   *x509.CertPool
}

// Load reads an identity from dir. It fails when a file is missing, when the
// key does not fit the certificate, when the certificate is not of this CA or
// names no node, and when it has expired or is not valid yet: a node that no
// peer will accept should say so at once.
func Load(dir string) (*Identity, error) {
	caPEM, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("load mesh identity: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("load mesh identity from %s: %w", dir, err)
	}
	id := &Identity{cert: cert, ca: x509.NewCertPool()}
	if !id.ca.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("load mesh identity: %s holds no PEM certificate", filepath.Join(dir, CAFile))
	}
	if id.name, err = nameOf(cert.Leaf); err != nil {
		return nil, fmt.Errorf("load mesh identity from %s: %v", dir, err)
	}
	if err := id.Check(time.Now()); err != nil {
		return nil, fmt.Errorf("load mesh identity from %s: %w", dir, err)
	}
	return id, nil
}

// nameOf returns the node name that a certificate carries: its first DNS name.
func nameOf(c *x509.Certificate) (string, error) {
	if len(c.DNSNames) == 0 {
		return "", errors.New("the certificate carries no node name (a DNS subject alternative name)")
	}
	name := c.DNSNames[0]
	return name, checkName(name)
}

// checkName reports whether peers can verify a certificate by this name.
func checkName(s string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	switch {
	case s == "" || len(s) > maxName:
		return fmt.Errorf("a node name of %d bytes: want 1 to %d", len(s), maxName)
	case strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(allowed, r) }):
		return fmt.Errorf("node name %q: want letters, digits, dashes, underscores and dots only", s)
	case net.ParseIP(s) != nil:
		return fmt.Errorf("node name %q is an IP address: want a name", s)
	}
	return nil
}

// Name returns the node's name within the mesh.
func (id *Identity) Name() string { return id.name }

// Check reports whether peers will accept the certificate at time now.
func (id *Identity) Check(now time.Time) error {
	leaf := id.cert.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the mesh certificate of %s expired at %s: issue a new one",
			id.name, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the mesh certificate of %s is valid only from %s: is this node's clock right?",
			id.name, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	inter := x509.NewCertPool()
	for _, der := range id.cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			inter.AddCert(c)
		}
	}
	// A node both dials and accepts, so both usages are needed.
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := leaf.Verify(x509.VerifyOptions{
			DNSName: id.name,
			Roots:   id.ca, Intermediates: inter, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{use},
		})
		if err != nil {
			return fmt.Errorf("the mesh certificate of %s does not verify against its CA: %w", id.name, err)
		}
	}
	return nil
}

// Server returns the TLS configuration of the accepting side: it demands a certificate of the same CA.
func (id *Identity) Server() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    id.ca,
	}
}

// Client returns the TLS configuration of the dialling side, which accepts
// only the peer whose certificate carries the name want.
func (id *Identity) Client(want string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		RootCAs:      id.ca,
		ServerName:   want,
	}
}

// PeerName returns the name of the peer at the other end of a finished handshake.
func PeerName(s tls.ConnectionState) (string, error) {
	if !s.HandshakeComplete || len(s.VerifiedChains) == 0 {
		return "", errors.New("the peer has shown no verified certificate")
	}
	return nameOf(s.PeerCertificates[0])
}
