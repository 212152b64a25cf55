package mirror

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry"
)

// What a path names, as it is written there.
const (
	ping      = "v2"
	manifests = "manifests"
	blobs     = "blobs"
	referrers = "referrers"
	tags      = "tags"
	tokens    = "token"
)

// A route is a parsed path. The name matches the specification's grammar.
type route struct {
	what      string
	name      string
	reference string        // the last element: a digest, a tag, or "list"
	digest    digest.Digest // valid; empty when the reference is none
}

// rest is the path behind the repository's name.
func (rt route) rest() string { return rt.what + "/" + rt.reference }

// full writes what rt names in repository, HOST/NAME, as a whole reference.
func (rt route) full(repository string) string {
	if rt.digest != "" {
		return repository + "@" + rt.digest.String()
	}
	return repository + ":" + rt.reference
}

// maxName is the longest repository name, as in oci/registry.
const maxName = 255

// parseRoute reads a path from its end, since a repository may be called "blobs" or "tags/list".
func parseRoute(path string) (route, error) {
	if path == "/v2" || path == "/v2/" {
		return route{what: ping}, nil
	}
	if id, ok := strings.CutPrefix(path, tokenPath); ok && realmID.MatchString(id) {
		return route{what: tokens, name: noName, reference: id}, nil
	}
	unknown := fail(http.StatusNotFound, codeUnsupported, fmt.Errorf("%q is no path that images are pulled by", path))
	rest, ok := strings.CutPrefix(path, "/v2/")
	elements := strings.Split(rest, "/")
	n := len(elements)
	if !ok || n < 3 {
		return route{}, unknown
	}
	rt := route{what: elements[n-2], name: strings.Join(elements[:n-2], "/"), reference: elements[n-1]}
	ref := registry.Reference{Repository: rt.name, Reference: rt.reference}
	if len(rt.name) > maxName || ref.ValidateRepository() != nil {
		return route{}, fail(http.StatusBadRequest, codeNameInvalid, fmt.Errorf("%q is no repository name", rt.name))
	}
	switch rt.what {
	case manifests:
		if !strings.Contains(rt.reference, ":") {
			if ref.ValidateReferenceAsTag() != nil {
				return route{}, fail(http.StatusBadRequest, codeManifestInvalid, fmt.Errorf("%q is neither a digest nor a tag", rt.reference))
			}
			return rt, nil
		}
	case blobs, referrers:
	case tags:
		if rt.reference != "list" {
			return route{}, unknown
		}
		return rt, nil
	default:
		return route{}, unknown
	}
	var err error
	if rt.digest, err = digest.Parse(rt.reference); err != nil {
		return route{}, fail(http.StatusBadRequest, codeDigestInvalid, fmt.Errorf("parse digest %q: %v", rt.reference, err))
	}
	return rt, nil
}

// registry returns the registry that req is about: what its query calls ns, as
// containerd does, or the default. It is one that may be mirrored.
func (m *Mirror) registry(req *http.Request) (string, error) {
	host := m.opts.Default
	if ns := req.URL.Query()["ns"]; len(ns) > 1 {
		return "", fail(http.StatusBadRequest, codeNameInvalid, fmt.Errorf("ns names %d registries, want one", len(ns)))
	} else if len(ns) == 1 {
		var err error
		if host, err = parseHost(ns[0]); err != nil {
			return "", fail(http.StatusBadRequest, codeNameInvalid, err)
		}
	}
	switch {
	case host == "":
		return "", fail(http.StatusNotFound, codeNameUnknown,
			errors.New("the request names no registry and the mirror has no default one: add ?ns=HOST, as containerd does"))
	case len(m.opts.Registries) > 0 && host != m.opts.Default && !slices.Contains(m.opts.Registries, host):
		return "", fail(http.StatusForbidden, codeDenied,
			fmt.Errorf("registry %s is not among those that are mirrored here: add it to the agent's configuration", host))
	}
	return host, nil
}

// hostGrammar is that of a DNS name, which takes in IPv4 addresses.
var hostGrammar = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// parseHost reads a registry's HOST[:PORT] and returns it in lower case. HOST is
// a DNS name, an IPv4 address or an IPv6 address in brackets.
func parseHost(s string) (string, error) {
	bad := fmt.Errorf("%q is no registry: want HOST or HOST:PORT, such as ghcr.io", s)
	hostport := strings.ToLower(s)
	host, port := hostport, ""
	if i := strings.LastIndexByte(hostport, ':'); i >= 0 && !strings.HasSuffix(hostport, "]") {
		host, port = hostport[:i], hostport[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return "", bad
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if addr, err := netip.ParseAddr(inner); !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", bad
		}
	} else if len(host) > 253 || !hostGrammar.MatchString(host) {
		return "", bad
	}
	return hostport, nil
}

// isLoopback reports whether hostport, as parseHost returns it, can only be this machine.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
