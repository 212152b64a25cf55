package mirror

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spate-project/spate/oci/remote"
)

// An origin is a repository at its registry, asked with one caller's credential.
type origin struct {
	repository string             // HOST/NAME, as the caller says it; HOST/ for a registry as a whole
	repo       *remote.Repository // nil for a registry as a whole
	base       string             // the address of /v2/NAME/
	caller     caller
	callers    *callers
}

// origin returns repository name of registry host as the caller of req asks it; name is empty for the registry as a whole.
func (m *Mirror) origin(req *http.Request, host, name string) (*origin, error) {
	plain := isLoopback(host) || slices.Contains(m.opts.PlainHTTP, host)
	o := &origin{repository: host + "/" + name, callers: m.callers, caller: caller{
		client:        m.client,
		authorization: req.Header.Get("Authorization"),
		challenge:     func(c string) string { return m.standIn(req, host, plain, c) },
	}}
	scheme := "https://"
	if plain {
		scheme = "http://"
	}
	if name == "" {
		o.base = scheme + dockerHub(host) + "/v2/"
		return o, nil
	}
	repo, err := remote.Open(o.repository, remote.Options{Transport: m.transport, PlainHTTP: plain, TLS: !plain})
	if err != nil {
		return nil, fail(http.StatusBadRequest, codeNameInvalid, err)
	}
	repo.Client = o.caller
	o.repo, o.base = repo, scheme+dockerHub(host)+"/v2/"+name+"/"
	return o, nil
}

// dockerHub returns where registry host is: only Docker Hub is called other than its address.
func dockerHub(host string) string {
	if host == "docker.io" {
		return "registry-1.docker.io"
	}
	return host
}

// ask sends a request for rest, below the repository's address. The answer is of
// status 200, or the error an *answered. The caller closes its body.
func (o *origin) ask(ctx context.Context, method, rest string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, o.base+rest, nil)
	if err != nil {
		return nil, fail(http.StatusBadRequest, codeUnsupported, fmt.Errorf("ask %s for %s: %w", o.repository, rest, err))
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := o.caller.Do(req)
	if a := (*answered)(nil); errors.As(err, &a) {
		return nil, err
	}
	if err != nil {
		path, _, _ := strings.Cut(rest, "?")
		return nil, fmt.Errorf("ask %s for %s: %w", o.repository, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, newAnswered("ask "+o.repository, resp)
	}
	if o.repo != nil {
		o.callers.letIn(o)
	}
	return resp, nil
}

// A caller sends requests with what the mirror's caller has to show for itself.
type caller struct {
	client        *http.Client
	authorization string              // for the registry alone
	challenge     func(string) string // what the caller is told in place of a challenge
}

// Do makes a challenge an error, an *answered, so that it reaches the caller
// also from within the policy's requests: the caller answers it, not the mirror.
func (c caller) Do(req *http.Request) (*http.Response, error) {
	if c.authorization != "" {
		req.Header.Set("Authorization", c.authorization)
	}
	req.Header.Set("User-Agent", "spate")
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, reason(err)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		a := newAnswered("ask "+req.URL.Host, resp)
		for i, challenge := range a.header["Www-Authenticate"] {
			a.header["Www-Authenticate"][i] = c.challenge(challenge)
		}
		return nil, a
	}
	return resp, nil
}

// checkRedirect follows ten redirects, and takes the credential off those that
// lead to another host or port; net/http minds only the host, and not its subdomains.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("the registry redirects without end")
	}
	if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme {
		req.Header.Del("Authorization")
	}
	return nil
}

// guard returns a copy of base that speaks to loopback and link-local addresses
// only under the names in local. It looks at the connection, so that no DNS entry gets around it.
func guard(base *http.Transport, local []string) *http.Transport {
	t := base.Clone()
	dial := t.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	t.DialTLSContext = nil
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if isLocal(conn.RemoteAddr()) && !names(local, addr) {
			conn.Close()
			return nil, fail(http.StatusForbidden, codeDenied,
				fmt.Errorf("%s leads to this machine's own services: name it among the agent's local registries if it is one", addr))
		}
		return conn, nil
	}
	return t
}

// isLocal reports whether addr is this machine's own or one that only its
// neighbours answer to, and of any that it cannot tell.
func isLocal(addr net.Addr) bool {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return true
	}
	ip := ap.Addr().Unmap()
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()
}

// names reports whether list holds addr, HOST:PORT, or its host alone where the port is the usual one.
func names(list []string, addr string) bool {
	addr = strings.ToLower(addr)
	host, usual := strings.CutSuffix(addr, ":443")
	if !usual {
		host, usual = strings.CutSuffix(addr, ":80")
	}
	return slices.Contains(list, addr) || usual && slices.Contains(list, host)
}
