package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeCertificate writes a self-signed certificate with a serial number, as old as age.
func writeCertificate(t *testing.T, dir string, serial int64, age time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)},
		&x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCertificate renews a certificate under a listener, and breaks it.
func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, dir, 1, 3*time.Hour)
	var logged bytes.Buffer
	c, err := openCertificate(certFile, keyFile, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: c.get})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) { conn.(*tls.Conn).Handshake(); conn.Close() }(conn)
		}
	}()
	serial := func() int64 {
		t.Helper()
		c.mu.Lock()
		c.looked = time.Time{}
		c.mu.Unlock()
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Errorf("serial %d, want 1", got)
	}
	writeCertificate(t, dir, 2, 2*time.Hour)
	if got := serial(); got != 2 {
		t.Errorf("serial %d after a renewal, want 2", got)
	}
	for range 2 {
		if err := os.WriteFile(keyFile, []byte("half of"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := serial(); got != 2 {
			t.Errorf("serial %d with a broken key, want 2", got)
		}
	}
	if !bytes.Contains(logged.Bytes(), []byte("cannot be read")) {
		t.Errorf("nothing is said: %s", &logged)
	}
	writeCertificate(t, dir, 3, time.Hour)
	if got := serial(); got != 3 {
		t.Errorf("serial %d after the repair, want 3", got)
	}
	if _, err := openCertificate(certFile, filepath.Join(dir, "none"), slog.Default()); err == nil {
		t.Error("a missing key is no error")
	}
}
