// Package remote is the client of one repository in any OCI registry (OCI
// distribution-spec 1.1). It is oras-go's client plus what that lacks: reads of
// a range, uploads whose digest is known only at their end, blobs that cannot
// be read to their end when they are wrong, and errors that say what to do.
package remote

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	oras "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// Options tune a Repository. The zero value is ready to use.
type Options struct {
	// Transport carries every request, also those to a token server or to where
	// the registry redirects. It holds what TLS roots, proxies and limits there
	// are, and is worth sharing between repositories of one registry. Nil means
	// NewTransport().
	Transport http.RoundTripper

	// Credential looks up who we are at a host. Nil means the files and helpers
	// that docker login and podman login leave behind, which are only read.
	Credential auth.CredentialFunc

	// PlainHTTP speaks HTTP without TLS to a registry that is not on loopback.
	// Whoever is on the way then reads the credentials. Loopback needs no such
	// permission: without TLS below, it is always spoken to without.
	PlainHTTP bool

	// TLS speaks HTTPS to a registry on loopback too.
	TLS bool
}

// A Repository is one repository of one registry. It is a signing.Repository
// and an oras.Target. Every error says what was being done to what, where, and
// what to do next where a person can help; none holds a credential. Failures to
// find something match both errdef.ErrNotFound and piece.ErrNotHere.
//
// It is safe for concurrent use. Requests that carry no stream are repeated a
// few times while the registry is busy or failing (429, 5xx, a lost connection).
type Repository struct {
	*oras.Repository
}

// Open returns the repository that reference, HOST[:PORT]/NAME[:TAG|@DIGEST],
// is in. The tag or digest stays in Reference. Open sends nothing.
func Open(reference string, opts Options) (*Repository, error) {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		if i := strings.LastIndexByte(reference, '@'); i >= 0 && !strings.Contains(reference[:i], "/") {
			reference, err = reference[i+1:], fmt.Errorf("%w: a user and a password have no place in it, log in instead", errdef.ErrInvalidReference)
		}
		return nil, fmt.Errorf("open repository %q: %w; write HOST/NAME:TAG, such as 127.0.0.1:5000/models/qwen:v1", reference, err)
	}
	if opts.Transport == nil {
		opts.Transport = NewTransport()
	}
	if opts.Credential == nil {
		opts.Credential = loginFiles()
	}
	return &Repository{&oras.Repository{
		Reference: ref,
		PlainHTTP: opts.PlainHTTP || (isLoopback(ref.Registry) && !opts.TLS),
		Client: &auth.Client{
			Client:     &http.Client{Transport: retry.NewTransport(opts.Transport)},
			Header:     http.Header{"User-Agent": {"spate"}},
			Credential: opts.Credential,
			Cache:      auth.NewCache(),
		},
		SkipReferrersGC:      true, // deleting needs a permission that pushing does not
		ReferrerListMaxPages: 100,
		TagListMaxPages:      1000,
	}}, nil
}

// NewTransport returns a transport made for large blobs: no HTTP/2, so that
// parallel ranges get a connection and a congestion window each, and no
// compression, since blobs bring their own. It waits for an answer as long as the
// request's context does: a registry may hash a large blob anew before it accepts it.
func NewTransport() *http.Transport {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     30 * time.Second,
		MaxIdleConnsPerHost: 32,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// isLoopback reports whether hostport, a host with or without a port, can only be this machine.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(trimBrackets(host))
	return err == nil && addr.IsLoopback()
}

// trimBrackets takes the brackets off an IPv6 address that has no port.
func trimBrackets(host string) string {
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}
