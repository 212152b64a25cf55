// Package mirror is the pull side of the OCI distribution-spec 1.1, for clients
// on the same machine: containerd by certs.d/_default/hosts.toml,
//
//	server = "http://127.0.0.1:5050"
//
//	[host."http://127.0.0.1:5050"]
//	  capabilities = ["pull", "resolve"]
//
// and any other. Both parts are needed: when a host refuses, containerd asks the
// server, and a file without a host containerd 1.6 ignores, so that either alone is a
// way around the policy.
//
// A manifest is read at its registry, the origin, with the caller's own
// credential, and given out when the policy admits it: it is signed itself, or
// an admitted image index lists it. A blob is given out when an admitted manifest
// lists it; it comes from the mesh, or from the origin with the caller's
// credential, and is checked on the way. Everything else that hangs on a manifest,
// such as its signatures, is to be had at the origin.
//
// What the mirror holds itself, admitted manifests and the mesh's blobs, is for
// those whom the origin lets in: it is asked about each caller every few minutes,
// and while it is away its last word counts.
//
// A caller logs in at the origin, and at its token server by way of the mirror.
// The login that a repository has let in last is remembered, in memory alone, so
// that what is read of the image later can be asked for with it: see Mirror.Credential.
package mirror

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
)

// Options are what a Mirror is made of. Only Policy and Blobs are required.
type Options struct {
	// Policy admits manifests. Without one none is admitted.
	Policy *signing.Policy

	// Blobs is the mesh.
	Blobs Blobs

	// Default is the registry, HOST[:PORT], of requests that name none by ?ns=.
	// Without it they are refused.
	Default string

	// Registries are the only ones, beside Default, that are mirrored. None means
	// any: the policy decides what is given out.
	Registries []string

	// Local names registries that may be on a loopback or link-local address, as
	// Default and Registries may. No other name may lead there, neither by ?ns=,
	// by its DNS entry nor by a redirect: those addresses are this machine's own services.
	Local []string

	// PlainHTTP names registries that are spoken to without TLS. Whoever is on
	// the way then reads the callers' credentials. Those whose name is a loopback
	// address always are.
	PlainHTTP []string

	// Transport carries the requests; the mirror takes a copy and adds to it the
	// rule of Local, which a proxy must obey too. Nil means remote.NewTransport().
	Transport *http.Transport

	// Logger gets one line a request. Nil discards them.
	Logger *slog.Logger
}

// A Mirror answers the paths below /v2/. It is an http.Handler, safe for
// concurrent use. Blobs take long: the http.Server has no WriteTimeout.
type Mirror struct {
	opts      Options
	transport *http.Transport
	client    *http.Client
	local     []string // registries that may be on this machine
	callers   *callers
	log       *slog.Logger
	stats     [failed + 1]struct{ answers, bytes atomic.Int64 }
	reasons   tally // of blobs

	mu         sync.Mutex
	memory     *memory // of what the policy of generation has admitted
	generation uint64
}

// New returns a mirror that has sent nothing yet. An error says which registry
// of opts is none. The caller closes the mirror.
func New(opts Options) (*Mirror, error) {
	for _, list := range []*[]string{&opts.Registries, &opts.Local, &opts.PlainHTTP} {
		*list = slices.Clone(*list)
		for i, host := range *list {
			var err error
			if (*list)[i], err = parseHost(host); err != nil {
				return nil, err
			}
		}
	}
	if opts.Default != "" {
		var err error
		if opts.Default, err = parseHost(opts.Default); err != nil {
			return nil, err
		}
	}
	if opts.Transport == nil {
		opts.Transport = remote.NewTransport()
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mirror{opts: opts, memory: newMemory(maxManifests, maxMemory), callers: newCallers(), log: opts.Logger, reasons: newTally()}
	m.local = slices.Concat(opts.Registries, opts.Local, []string{opts.Default})
	m.transport = guard(opts.Transport, m.local)
	m.client = &http.Client{Transport: m.transport, CheckRedirect: checkRedirect}
	return m, nil
}

// Close lets go of idle connections. The caller first ends the requests that are being served.
func (m *Mirror) Close() { m.transport.CloseIdleConnections() }

// admitted returns the memory of what the policy, as it is now, has admitted. What
// is added to it after the policy was replaced nobody sees.
func (m *Mirror) admitted() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.opts.Policy.Generation(); g != m.generation {
		m.memory, m.generation = newMemory(maxManifests, maxMemory), g
	}
	return m.memory
}

// A path says where an answer came from.
type path int

const (
	fromOrigin path = iota
	fromMesh
	fromMemory // a manifest that was admitted before
	denied
	failed
)

func (p path) String() string {
	return [...]string{"origin", "mesh", "memory", "denied", "failed"}[p]
}

// Stats count since the start, a request once.
type Stats struct {
	Origin Count // answers of the origin's, refusals and challenges among them
	Mesh   Count
	Memory Count // manifests that were admitted before
	Denied Count // by the policy, or by the rules for registries
	Failed Count // bad requests, and origins that were not there or sent what they should not
}

// A Count is a number of answers and of their bodies' bytes.
type Count struct{ Answers, Bytes int64 }

// Stats returns the counts.
func (m *Mirror) Stats() Stats {
	count := func(p path) Count { return Count{m.stats[p].answers.Load(), m.stats[p].bytes.Load()} }
	return Stats{Origin: count(fromOrigin), Mesh: count(fromMesh), Memory: count(fromMemory), Denied: count(denied), Failed: count(failed)}
}

// ServeHTTP answers one request, and counts and logs where the answer came from.
// An answer that cannot be finished ends in a broken connection, never in wrong bytes.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w}
	rec.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	rt, err := parseRoute(req.URL.Path)
	host := ""
	if err == nil && rt.what != tokens {
		host, err = m.registry(req)
	}
	if err == nil {
		err = m.serve(rec, req, host, rt)
	}
	broken := err != nil && rec.status != 0
	if err != nil && !broken {
		rec.path = writeError(rec, err)
	} else if broken {
		rec.path = failed
	}
	m.stats[rec.path].answers.Add(1)
	m.stats[rec.path].bytes.Add(rec.bytes)

	attrs := []slog.Attr{
		slog.String("path", rec.path.String()), slog.String("method", req.Method), slog.String("registry", host),
		slog.String("repository", rt.name), slog.String("what", rt.what), slog.String("reference", rt.reference),
		slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes), slog.Duration("took", time.Since(start)),
	}
	if rec.why != "" {
		attrs = append(attrs, slog.String("why", string(rec.why)))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	} else if rec.why != "" && rec.status < http.StatusMultipleChoices && rec.bytes > 0 {
		m.reasons[rec.why].Add(1)
	}
	m.log.LogAttrs(req.Context(), level(req, rec.path, rt), "mirror request", attrs...)
	if broken {
		panic(http.ErrAbortHandler)
	}
}

// level puts what an operator wants to know before the rest: refusals, failures,
// and the way of each layer.
func level(req *http.Request, p path, rt route) slog.Level {
	switch {
	case req.Context().Err() != nil: // the caller went away
		return slog.LevelDebug
	case p == denied || p == failed:
		return slog.LevelWarn
	case rt.what == blobs && req.Method == http.MethodGet:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// serve answers, or returns why it could not; it then may have written a part.
func (m *Mirror) serve(w *recorder, req *http.Request, host string, rt route) error {
	if rt.what == tokens {
		return m.getToken(w, req, rt.reference)
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return fail(http.StatusMethodNotAllowed, codeUnsupported,
			errors.New(req.Method+" is not supported: a mirror is read only, push to the registry itself"))
	}
	o, err := m.origin(req, host, rt.name)
	if err != nil {
		return err
	}
	if err := m.enter(req.Context(), o, rt); err != nil {
		return err
	}
	switch rt.what {
	case manifests:
		return m.getManifest(w, req, o, rt)
	case blobs:
		return m.getBlob(w, req, o, rt)
	}
	return m.pass(w, req, o, rt)
}

// A recorder remembers what an answer was, for the counts and the log.
type recorder struct {
	http.ResponseWriter
	path   path
	why    Reason // of a blob, else empty
	status int    // 0 before the answer began
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
