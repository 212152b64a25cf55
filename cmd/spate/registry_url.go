package main

import (
	"errors"
	"net/url"

	"github.com/spate-project/spate/oci/remote"
)

// parseRegistry reads the URL of a registry, and how it is spoken to. Its errors
// quote nothing of the address: a password may be in it.
func parseRegistry(address string, opts remote.Options) (*url.URL, remote.Options, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, opts, errors.New("it is not the URL of a registry")
	case u.User != nil:
		return nil, opts, errors.New("a user and a password have no place in the URL; log in with docker login instead")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "":
		return nil, opts, errors.New("the URL has a path; it names a registry alone")
	}
	opts.TLS = u.Scheme == "https"
	opts.PlainHTTP = opts.PlainHTTP && !opts.TLS
	repo, err := remote.Open(u.Host+"/x", opts)
	if err != nil {
		return nil, opts, errors.New("it is not the URL of a registry")
	}
	if repo.PlainHTTP == opts.TLS {
		return nil, opts, errors.New("the registry is beyond loopback and without TLS; add --plain-http on a network you trust")
	}
	return u, opts, nil
}
