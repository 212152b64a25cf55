// Package registry serves the OCI distribution-spec 1.1 over a store on disk.
//
// A Registry is the HTTP layer: it parses, checks and answers. A Store is the
// disk: blobs, uploads, manifests, tags and referrers of every repository, each
// with a rule for what a crash leaves behind. Both take digests of every
// algorithm that go-digest knows.
//
// Blobs go from the file to the socket by sendfile, and from the socket to the
// file through two buffers, so memory does not depend on a blob's size.
package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options change how a Registry behaves. The zero value is good.
type Options struct {
	// Logger gets one line a request: at level error when the registry failed
	// (status 500 and up), else at level debug. Nil discards them.
	Logger *slog.Logger

	// MaxManifestBytes is the largest manifest that is accepted. Default 4 MiB,
	// the least that the specification asks for.
	MaxManifestBytes int64

	// UploadExpiry is how long an unfinished upload is kept after its last byte. Default 24 hours.
	UploadExpiry time.Duration

	// UploadSilence is how long an upload's client may send nothing before the
	// connection is given up. What was received is kept. Default one minute.
	UploadSilence time.Duration

	// Pushed, unless nil, is told of each manifest that a client has pushed to a
	// repository, before the client gets its answer. It must not block. It is
	// called by several goroutines at once.
	Pushed func(repo string, m *Manifest)

	// Upstreams are the registries that this one follows; the longest prefix of a
	// repository's name counts. What is pushed here comes first.
	Upstreams []Upstream

	// UpstreamFresh is how long an upstream's word on a tag, or on what refers to a
	// manifest, counts without asking again; 0 asks each time. UpstreamStale is how
	// long that on a tag counts while the upstream fails.
	UpstreamFresh, UpstreamStale time.Duration

	// Retention is what collections keep. Default: for 24 hours what was just
	// pushed, manifests without a tag for ever, and every tag.
	Retention Retention

	// Quota is how many bytes of blobs the registry may have, each counted once; 0
	// is no bound. What is beyond it is refused with status 507.
	Quota int64

	// Access decides who may do what below /v2/. Nil lets everybody do everything.
	Access Access

	// Audit, unless nil, gets a line for each manifest that is read, for what is
	// pushed and deleted, and for what Access refuses: who, what, and the answer's status.
	Audit *slog.Logger
}

// sweepInterval is how often Run tidies up.
const sweepInterval = time.Hour

// A Registry answers the paths below /v2/. It is an http.Handler, safe for
// concurrent use.
// Blobs take long: the http.Server has no ReadTimeout and no WriteTimeout.
type Registry struct {
	store *Store
	opts  Options
	log   *slog.Logger

	follower *follower
}

// Open opens the store in dir, which it creates where it is missing, and
// returns a registry over it. One process at a time may have dir open.
// The caller closes the registry.
func Open(dir string, opts Options) (*Registry, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.MaxManifestBytes == 0 {
		opts.MaxManifestBytes = 4 << 20
	}
	if opts.UploadExpiry == 0 {
		opts.UploadExpiry = 24 * time.Hour
	}
	if opts.UploadSilence == 0 {
		opts.UploadSilence = time.Minute
	}
	if opts.Retention.Grace == 0 {
		opts.Retention.Grace = 24 * time.Hour
	}
	store, err := OpenStore(dir, opts.Logger)
	if err != nil {
		return nil, err
	}
	if err := store.limit(opts.Quota); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &Registry{store: store, opts: opts, log: opts.Logger, follower: newFollower(store, opts)}, nil
}

// Store returns what the registry serves, for whatever reads blobs in the same process.
func (r *Registry) Store() *Store { return r.store }

// Run removes expired uploads and collects garbage, at once and then every hour,
// until ctx is done; it then returns nil. The registry serves without it, but
// reclaims no space.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if _, err := r.Collect(ctx, false); err != nil && ctx.Err() == nil {
			r.log.Error("tidy up the registry's store", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Collect does once what Run does, or in a dry run only says what of the
// repositories it would remove: see Store.Collect.
func (r *Registry) Collect(ctx context.Context, dryRun bool) (Collected, error) {
	var swept error
	if !dryRun {
		swept = r.store.Sweep(r.store.now().Add(-r.opts.UploadExpiry))
	}
	c, err := r.store.Collect(ctx, r.opts.Retention, dryRun)
	if c.Tags+c.Manifests+c.Blobs > 0 && !dryRun {
		r.log.Info("collected garbage", "tags", c.Tags, "manifests", c.Manifests, "blobs", c.Blobs, "bytes", c.Bytes)
	}
	for _, repo := range c.Left {
		r.log.Warn("a manifest is damaged, so the blobs of its repository are not collected; push it again or delete it", "repository", repo)
	}
	return c, errors.Join(swept, err)
}

// Close lets another process open the store. Unfinished uploads stay and can be
// resumed. The caller first ends the requests that are being served.
func (r *Registry) Close() error {
	r.follower.close()
	return r.store.Close()
}

// ServeHTTP answers one request and logs its outcome.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	rec.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	rt, user, err := r.serve(rec, req)
	if err != nil {
		writeError(rec, err)
	}
	r.audit(req, rt, user, rec)

	level := slog.LevelDebug
	if rec.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("method", req.Method), slog.String("path", req.URL.Path), slog.String("peer", req.RemoteAddr),
		slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes), slog.Duration("took", time.Since(start)),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	r.log.LogAttrs(req.Context(), level, "registry request", attrs...)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) (rt route, user string, err error) {
	rt, err = parseRoute(req.URL.Path)
	if err != nil {
		return rt, "", err
	}
	handlers := r.handlers(rt.kind)
	handle, ok := handlers[req.Method]
	if !ok {
		w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(handlers)), ", "))
		return rt, "", fail(http.StatusMethodNotAllowed, codeUnsupported, errors.New(req.Method+" is not supported on this path"))
	}
	user, err = r.allow(req, rt.name, actionOf(rt.kind, req.Method))
	if errors.Is(err, ErrUnauthorized) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry", charset="UTF-8"`)
	}
	if many, ok := errors.AsType[*TooManyError](err); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(many.After.Seconds())))) // RFC 9110, section 10.2.3
	}
	if err != nil {
		return rt, user, err
	}
	return rt, user, handle(w, req, rt)
}

// A handler answers one kind of request, or returns why it could not; it then
// has written nothing to w but header fields.
type handler func(w http.ResponseWriter, req *http.Request, rt route) error

func (r *Registry) handlers(k kind) map[string]handler {
	switch k {
	case kindBlob:
		return map[string]handler{"GET": r.getBlob, "HEAD": r.getBlob, "DELETE": r.deleteBlob}
	case kindUploads:
		return map[string]handler{"POST": r.postUpload}
	case kindUpload:
		return map[string]handler{"GET": r.getUpload, "PATCH": r.patchUpload, "PUT": r.putUpload, "DELETE": r.deleteUpload}
	case kindManifest:
		return map[string]handler{"GET": r.getManifest, "HEAD": r.getManifest, "PUT": r.putManifest, "DELETE": r.deleteManifest}
	case kindTags:
		return map[string]handler{"GET": r.getTags}
	case kindReferrers:
		return map[string]handler{"GET": r.getReferrers}
	default:
		return map[string]handler{"GET": r.ping, "HEAD": r.ping}
	}
}

// ping says that this is a registry (end-1).
func (r *Registry) ping(w http.ResponseWriter, _ *http.Request, _ route) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := io.WriteString(w, "{}")
	return err
}

// A recorder remembers an answer's status and size for the log. Its ReadFrom
// keeps the way to sendfile open.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

func (w *recorder) ReadFrom(src io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, src)
	w.bytes += n
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
