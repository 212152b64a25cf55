package agent

import (
	"errors"
	"net/http"
	"sync"

	"oras.land/oras-go/v2/registry"
	oras "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/spate-project/spate/oci/remote"
)

// repository returns the repository that reference is in, for reading. It is asked
// as whoever it let in last by way of the mirror; where there was nobody, or the
// registry refuses that login by now, as the agent's user. A login that comes later
// counts for what is open already.
func (a *Agent) repository(reference string) (*remote.Repository, error) {
	repo, err := remote.Open(reference, a.opts.Remote)
	if err != nil {
		return nil, err
	}
	repo.Client = &reader{agent: a, ref: repo.Reference, plain: repo.PlainHTTP, reference: reference, own: repo.Client}
	return repo, nil
}

// A reader sends a repository's requests, which have no bodies. It is safe for concurrent use.
type reader struct {
	agent     *Agent
	reference string
	ref       registry.Reference
	plain     bool
	own       oras.Client // the agent's user

	mu     sync.Mutex
	login  auth.Credential
	puller oras.Client // whoever has login; nil before there was one
}

// Do implements oras.Client.
func (r *reader) Do(req *http.Request) (*http.Response, error) {
	puller, err := r.asPuller()
	if err != nil {
		return nil, err
	}
	if puller == nil {
		return r.own.Do(req)
	}
	resp, err := puller.Do(req)
	if !refused(resp, err) {
		return resp, err
	}
	if resp != nil {
		resp.Body.Close()
	}
	return r.own.Do(req)
}

// asPuller returns a client with the mirror's login, and keeps it, with its tokens, until there is another one.
func (r *reader) asPuller() (oras.Client, error) {
	login, ok := r.agent.mirror.Credential(r.ref.Registry+"/"+r.ref.Repository, r.plain)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !ok || r.puller != nil && login == r.login {
		return r.puller, nil
	}
	opts := r.agent.opts.Remote
	opts.Credential = auth.StaticCredential(r.ref.Host(), login)
	repo, err := remote.Open(r.reference, opts)
	if err != nil {
		return nil, err
	}
	r.login, r.puller = login, repo.Client
	return r.puller, nil
}

// refused reports whether a registry or its token server does not let the client in, or not any more.
func refused(resp *http.Response, err error) bool {
	status := 0
	if answer := (*errcode.ErrorResponse)(nil); errors.As(err, &answer) {
		status = answer.StatusCode
	} else if err == nil {
		status = resp.StatusCode
	}
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}
