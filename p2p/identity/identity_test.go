package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/p2p/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCA(t *testing.T) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA("test mesh", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue returns the directory of a new identity.
func issue(t *testing.T, ca *identity.CA, node string, life time.Duration) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "made", node)
	if err := ca.Issue(dir, node, life); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, dir string) *identity.Identity {
	t.Helper()
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A forger makes certificates that CA.Issue does not, with a CA of its own.
type forger struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newForger(t *testing.T) *forger {
	f := &forger{}
	f.cert, f.key = f.sign(t, &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
	})
	return f
}

func (f *forger) sign(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.Subject = big.NewInt(1), pkix.Name{CommonName: "forged"}
	parent, signer := f.cert, f.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// write writes an identity as change makes it of one that would be good.
func (f *forger) write(t *testing.T, change func(*x509.Certificate)) string {
	t.Helper()
	template := &x509.Certificate{
		DNSNames:    []string{"node"},
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(template)
	cert, key := f.sign(t, template)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put(t, dir, identity.CAFile, "CERTIFICATE", f.cert.Raw)
	put(t, dir, identity.CertFile, "CERTIFICATE", cert.Raw)
	put(t, dir, identity.KeyFile, "PRIVATE KEY", der)
	return dir
}

func put(t *testing.T, dir, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// copyFile takes name of another identity over into dir.
func copyFile(t *testing.T, dir, other, name string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(other, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestIssueAndLoad(t *testing.T) {
	ca := newCA(t)
	for _, name := range []string{"node-1", "Node_2.example.org", strings.Repeat("a", 253)} {
		dir := filepath.Join(t.TempDir(), "x")
		if err := ca.Issue(dir, name, time.Hour); err != nil {
			t.Fatal(err)
		}
		id := load(t, dir)
		if id.Name() != name {
			t.Errorf("its name is %q, want %q", id.Name(), name)
		}
		if err := id.Check(time.Now().Add(50 * time.Minute)); err != nil {
			t.Errorf("it is of no use within its hour: %v", err)
		}
		if err := id.Check(time.Now().Add(time.Hour)); err == nil {
			t.Error("it is valid after its hour")
		}
		for _, file := range []string{identity.CAFile, identity.CertFile, identity.KeyFile} {
			info, err := os.Stat(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", file, info.Mode())
			}
		}
	}
	for _, name := range []string{"", strings.Repeat("a", 254), "10.0.0.1", "::1", "*.mesh", "a b", "a\n", "ü", "a/b"} {
		if err := ca.Issue(filepath.Join(t.TempDir(), "x"), name, time.Hour); err == nil {
			t.Errorf("an identity of the name %q is issued", name)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(file, "node", time.Hour); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("issue into a file: %v, want an error that names it", err)
	}
}

func TestLoadErrors(t *testing.T) {
	ca, f := newCA(t), newForger(t)
	forge := func(change func(*x509.Certificate)) func(*testing.T) string {
		return func(t *testing.T) string { return f.write(t, change) }
	}
	good := func(t *testing.T, change func(t *testing.T, dir string)) string {
		dir := issue(t, ca, "node", time.Hour)
		change(t, dir)
		return dir
	}
	without := func(name string) func(*testing.T) string {
		return func(t *testing.T) string {
			return good(t, func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	holding := func(name, text string) func(*testing.T) string {
		return func(t *testing.T) string {
			return good(t, func(t *testing.T, dir string) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	of := func(name string) func(*testing.T) string {
		return func(t *testing.T) string {
			return good(t, func(t *testing.T, dir string) {
				copyFile(t, dir, issue(t, newCA(t), "node", time.Hour), name)
			})
		}
	}
	for _, test := range []struct {
		name string
		dir  func(*testing.T) string
		says string
		is   error
	}{
		{"no CA", without(identity.CAFile), identity.CAFile, fs.ErrNotExist},
		{"no certificate", without(identity.CertFile), identity.CertFile, fs.ErrNotExist},
		{"no key", without(identity.KeyFile), identity.KeyFile, fs.ErrNotExist},
		{"no directory", func(t *testing.T) string { return filepath.Join(t.TempDir(), "none") }, "none", fs.ErrNotExist},
		{"a CA that is no PEM", holding(identity.CAFile, "x"), "holds no PEM certificate", nil},
		{"a certificate that is no PEM", holding(identity.CertFile, "x"), "PEM", nil},
		{"an empty key", holding(identity.KeyFile, ""), "PEM", nil},
		{"another CA", of(identity.CAFile), "does not verify against its CA", nil},
		{"another certificate", of(identity.CertFile), "private key does not match", nil},
		{"another key", of(identity.KeyFile), "private key does not match", nil},
		{"expired", forge(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "issue a new one", nil},
		{"not yet valid", forge(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "is this node's clock right?", nil},
		{"no name", forge(func(c *x509.Certificate) { c.DNSNames = nil }), "carries no node name", nil},
		{"an empty name", forge(func(c *x509.Certificate) { c.DNSNames = []string{""} }), "node name", nil},
		{"a name for all", forge(func(c *x509.Certificate) { c.DNSNames = []string{"*.mesh"} }), "node name", nil},
		{"only to accept", forge(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), "does not verify", nil},
		{"only to dial", forge(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), "does not verify", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, err := identity.Load(test.dir(t))
			if err == nil {
				t.Fatalf("it is loaded, as %s", id.Name())
			}
			if !strings.Contains(err.Error(), test.says) || (test.is != nil && !errors.Is(err, test.is)) {
				t.Errorf("%v: want an error that says %q", err, test.says)
			}
		})
	}
	t.Run("nothing changed", func(t *testing.T) { load(t, f.write(t, func(*x509.Certificate) {})) })
}

// TestCheck: an identity that was good when loaded tells when it no longer is.
func TestCheck(t *testing.T) {
	id := load(t, issue(t, newCA(t), "node", 30*time.Minute))
	for after, good := range map[time.Duration]bool{0: true, 29 * time.Minute: true, 31 * time.Minute: false, -time.Hour: false} {
		if err := id.Check(time.Now().Add(after)); (err == nil) != good {
			t.Errorf("after %v: %v", after, err)
		}
	}
}

// shake connects server and client over TCP and returns how each side sees the other.
func shake(t *testing.T, server, client *tls.Config) (atServer, atClient tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		if serverErr = c.HandshakeContext(t.Context()); serverErr == nil {
			_, serverErr = c.Write([]byte{1})
		}
		atServer = c.ConnectionState()
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	if clientErr = c.HandshakeContext(t.Context()); clientErr == nil {
		// The server's refusal comes after the client's part of a TLS 1.3 handshake.
		_, clientErr = c.Read(make([]byte, 1))
	}
	atClient = c.ConnectionState()
	c.Close()
	<-done
	return atServer, atClient, serverErr, clientErr
}

func TestHandshake(t *testing.T) {
	ca := newCA(t)
	a, b := load(t, issue(t, ca, "a", time.Hour)), load(t, issue(t, ca, "b", time.Hour))
	foreign := load(t, issue(t, newCA(t), "a", time.Hour))

	atServer, atClient, serverErr, clientErr := shake(t, a.Server(), b.Client("a"))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("two good peers: %v, %v", serverErr, clientErr)
	}
	for _, side := range []struct {
		state tls.ConnectionState
		want  string
	}{{atServer, "b"}, {atClient, "a"}} {
		if name, err := identity.PeerName(side.state); err != nil || name != side.want {
			t.Errorf("the peer's name: %q, %v, want %q", name, err, side.want)
		}
		if side.state.Version != tls.VersionTLS13 {
			t.Errorf("version %x", side.state.Version)
		}
	}

	// What a stranger may send who checks nothing himself.
	stranger := func(id *identity.Identity) *tls.Config {
		c := &tls.Config{InsecureSkipVerify: true}
		if id != nil {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &id.Client("").Certificates[0], nil
			}
		}
		return c
	}
	expired := expiredOf(t)
	tls12 := b.Client("a")
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, test := range []struct {
		name           string
		server, client *tls.Config
	}{
		{"a server of another name", b.Server(), b.Client("a")},
		{"a server of another CA", foreign.Server(), b.Client("a")},
		{"a server whose certificate has expired", expired.server, expired.good.Client("old")},
		{"a client of another CA", a.Server(), stranger(foreign)},
		{"a client without a certificate", a.Server(), stranger(nil)},
		{"a client whose certificate has expired", expired.good.Server(), expired.client},
		{"an old protocol", a.Server(), tls12},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, _, serverErr, clientErr := shake(t, test.server, test.client); serverErr == nil || clientErr == nil {
				t.Errorf("they have met: server %v, client %v", serverErr, clientErr)
			}
		})
	}
	if _, err := identity.PeerName(tls.ConnectionState{}); err == nil {
		t.Error("a connection without a handshake has a peer's name")
	}
}

// An expiredPeer is the TLS side of a node whose certificate has expired, and a good node of the same CA.
type expiredPeer struct {
	server, client *tls.Config
	good           *identity.Identity
}

func expiredOf(t *testing.T) expiredPeer {
	f := newForger(t)
	good := load(t, f.write(t, func(c *x509.Certificate) { c.DNSNames = []string{"good"} }))
	dir := f.write(t, func(c *x509.Certificate) {
		c.DNSNames, c.NotAfter = []string{"old"}, time.Now().Add(-time.Minute)
	})
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, identity.CertFile), filepath.Join(dir, identity.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	server, client := good.Server(), good.Client("good")
	server.Certificates, client.Certificates = []tls.Certificate{cert}, []tls.Certificate{cert}
	return expiredPeer{server, client, good}
}
