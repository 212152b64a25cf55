package mirror

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/signing"
)

// Error codes of the distribution specification.
const (
	codeDenied          = "DENIED"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestInvalid = "MANIFEST_INVALID"
	codeNameInvalid     = "NAME_INVALID"
	codeNameUnknown     = "NAME_UNKNOWN"
	codeUnsupported     = "UNSUPPORTED"

	// codeUnknown is what registries answer with a status of 500 and up, where the specification has no code.
	codeUnknown = "UNKNOWN"
)

// A failure is an error with its answer.
type failure struct {
	status int
	code   string
	err    error
}

func fail(status int, code string, err error) error { return &failure{status, code, err} }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// An answered is an answer of the origin's that is not what was asked for, and
// that the caller gets as it is: a challenge, a refusal, not found.
type answered struct {
	status int
	header http.Header // what may be passed on
	body   []byte
	what   string
}

func (a *answered) Error() string {
	return fmt.Sprintf("%s: the registry answered %d", a.what, a.status)
}

// passed are the fields of an origin's answer that mean the same when the mirror says them.
var passed = []string{"Content-Type", "Www-Authenticate", "Retry-After", "Warning", "Oci-Filters-Applied", "Ratelimit-Limit", "Ratelimit-Remaining"}

func passable(h http.Header) http.Header {
	out := http.Header{}
	for _, name := range passed {
		if v := h.Values(name); len(v) > 0 {
			out[name] = v
		}
	}
	return out
}

// maxErrorBody bounds what is passed on of an origin's error document, in bytes.
const maxErrorBody = 64 << 10

// newAnswered takes resp over and closes it.
func newAnswered(what string, resp *http.Response) *answered {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // a part of an explanation is better than none
	return &answered{status: resp.StatusCode, header: passable(resp.Header), body: body, what: what}
}

// writeError answers with what err means to the caller.
func writeError(w *recorder, err error) path {
	// What an answer that was never begun would have said of its body.
	for _, name := range []string{"Content-Length", "Docker-Content-Digest", "Etag"} {
		w.Header().Del(name)
	}
	if a := (*answered)(nil); errors.As(err, &a) {
		maps.Copy(w.Header(), a.header)
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body) // the caller may be gone; nobody is left to tell
		return fromOrigin
	}
	type item struct {
		Code    string            `json:"code"`
		Message string            `json:"message"`
		Detail  map[string]string `json:"detail,omitempty"`
	}
	status, it := http.StatusBadGateway, item{Code: codeUnknown, Message: err.Error()}
	var (
		f *failure
		d *signing.DeniedError
	)
	switch {
	case errors.As(err, &d):
		status, it.Code, it.Message = http.StatusForbidden, codeDenied, err.Error()+"; "+d.Next
		it.Detail = map[string]string{
			"reference": d.Reference, "digest": d.Digest.String(), "rule": d.Rule, "missing": d.Missing, "next": d.Next,
		}
	case errors.As(err, &f):
		status, it.Code, it.Message = f.status, f.code, f.Error()
	case errors.Is(err, piece.ErrNotTrusted):
		status, it.Code = http.StatusForbidden, codeDenied
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]item{"errors": {it}})
	if it.Code == codeDenied {
		return denied
	}
	return failed
}

// reason takes the address out of an HTTP client's error: a redirect's query is as good as a password.
func reason(err error) error {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		return u.Err
	}
	return err
}
