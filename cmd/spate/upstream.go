package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
)

// upstreamFlags say which registries a registry follows, and how.
type upstreamFlags struct {
	follow       []string
	fresh, stale time.Duration
	remotes      remoteFlags
}

func (u *upstreamFlags) register(f *pflag.FlagSet) {
	f.StringSliceVar(&u.follow, "upstream", nil, "follow a registry: take what repositories below a prefix lack from it, and keep it, as `PREFIX=URL`; an empty prefix is all of them; repeatable")
	f.DurationVar(&u.fresh, "upstream-fresh", time.Minute, "how long an upstream's word on a tag, or on a manifest's signatures and other referrers, counts without asking again")
	f.DurationVar(&u.stale, "upstream-stale", 24*time.Hour, "how long an upstream's word on a tag counts while the upstream fails")
	u.remotes.register(f)
}

// upstreams reads the registries that the flags name.
func (u *upstreamFlags) upstreams() ([]registry.Upstream, error) {
	var list []registry.Upstream
	opts := u.remotes.options()
	opts.Transport = remote.NewTransport()
	for _, f := range u.follow {
		prefix, host, opts, err := parseUpstream(f, opts)
		if err != nil {
			return nil, ui.WithHint(usage(fmt.Errorf("read an --upstream: %w", err)), "write it as hub/=https://registry-1.docker.io, or =https://HOST for every repository")
		}
		list = append(list, registry.Upstream{Prefix: prefix, Open: func(name string) (registry.UpstreamRepository, error) {
			return remote.Open(host+"/"+name, opts)
		}})
	}
	return list, nil
}

// parseUpstream reads PREFIX=URL, and how the host is spoken to.
func parseUpstream(s string, opts remote.Options) (prefix, host string, _ remote.Options, err error) {
	prefix, address, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", opts, errors.New("it has no =")
	}
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		return "", "", opts, fmt.Errorf("the prefix %q does not end in /", prefix)
	}
	u, opts, err := parseRegistry(address, opts)
	if err != nil {
		return "", "", opts, fmt.Errorf("what %q follows: %w", prefix, err)
	}
	return prefix, u.Host, opts, nil
}
