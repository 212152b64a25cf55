package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/spate-project/spate/cache/piece"
)

// A failure is an error whose text is made for people, in place of that of its cause.
type failure struct {
	text   string
	causes []error
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return f.causes }

// explain says what was being done to what when err happened, and why it did.
// what is a tag, a digest or empty for the repository as a whole.
func (r *Repository) explain(doing, what string, err error) error {
	if err == nil {
		return nil
	}
	f := &failure{causes: []error{err}}
	if errors.Is(err, errdef.ErrNotFound) {
		f.causes = append(f.causes, piece.ErrNotHere)
	}
	f.text = fmt.Sprintf("%s %s: %s", doing, r.name(what), r.reason(err))
	return f
}

// name writes what as part of the repository.
func (r *Repository) name(what string) string {
	ref := r.Reference
	if strings.Contains(what, "/") {
		return what // a whole reference already
	}
	ref.Reference = what
	return ref.String()
}

// reason says why err happened, without the addresses that the parts of its
// chain quote: a redirect's query is as good as a password.
func (r *Repository) reason(err error) string {
	host := r.Reference.Host()
	var (
		answer *errcode.ErrorResponse
		dial   *net.OpError
	)
	switch {
	case errors.As(err, &answer):
		return answerReason(host, answer)
	case errors.Is(err, errdef.ErrNotFound):
		return "not found: the registry has no such repository, tag or content; check the spelling"
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return "the registry wants to know who asks; log in first: docker login " + host
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("the registry is not reachable: nobody listens at %s; is it running?", dialled(err, host))
	case errors.As(err, &dial) && dial.Op == "dial":
		return fmt.Sprintf("the registry is not reachable at %s: %v", dialled(err, host), dial.Err)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Sprintf("%s speaks HTTP without TLS; allow that only on a network you trust", host)
	}
	if ue := (*url.Error)(nil); errors.As(err, &ue) {
		err = ue.Err
	}
	return withoutQueries.ReplaceAllString(err.Error(), "$1$2")
}

// withoutQueries finds addresses together with what may be secret in them: user and query.
var withoutQueries = regexp.MustCompile(`(https?://)(?:[^\s/"@]*@)?([^\s"?]*)(?:\?[^\s"]*)?`)

// dialled returns the address that could not be reached, which a redirect or a
// token server may have made another one than the registry's.
func dialled(err error, host string) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Addr != nil {
		return op.Addr.String()
	}
	return host
}

func answerReason(host string, answer *errcode.ErrorResponse) string {
	said := http.StatusText(answer.StatusCode)
	if len(answer.Errors) > 0 {
		said = answer.Errors.Error()
	}
	if len(said) > 300 {
		said = said[:300] + "…"
	}
	said = withoutQueries.ReplaceAllString(said, "$1$2")
	switch answer.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Sprintf("the registry wants to know who asks (%s); log in first: docker login %s", said, host)
	case http.StatusForbidden:
		return fmt.Sprintf("the registry does not allow it (%s); ask for access or log in as somebody else: docker login %s", said, host)
	}
	return fmt.Sprintf("the registry answered %d: %s", answer.StatusCode, said)
}

// answerError makes an error of an answer that was not expected.
func answerError(resp *http.Response) error {
	if resp.StatusCode == http.StatusNotFound {
		return errdef.ErrNotFound
	}
	err := &errcode.ErrorResponse{Method: resp.Request.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, 8<<10)).Decode(&body) == nil {
		err.Errors = body.Errors
	}
	return err
}
