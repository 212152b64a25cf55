package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/spate-project/spate/cache/piece"
)

// What a Store does not hold. Each is of the class piece.ErrNotHere.
var (
	ErrNameUnknown     = fmt.Errorf("repository unknown: %w", piece.ErrNotHere)
	ErrBlobUnknown     = fmt.Errorf("blob unknown: %w", piece.ErrNotHere)
	ErrManifestUnknown = fmt.Errorf("manifest unknown: %w", piece.ErrNotHere)
	ErrUploadUnknown   = fmt.Errorf("upload unknown, finished or expired: %w", piece.ErrNotHere)
)

// ErrInterrupted says that an upload's sender failed before the end. What was received is kept.
var ErrInterrupted = errors.New("the sender broke off")

// A DigestError says that bytes do not have the digest that they were sent under.
type DigestError struct{ Want, Got digest.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("the bytes received have digest %s, not %s", e.Got, e.Want)
}

// A ManifestError says why bytes are no manifest that the registry takes.
type ManifestError struct{ Reason string }

func (e *ManifestError) Error() string { return e.Reason }

// A MissingError lists what a manifest refers to and its repository does not hold.
type MissingError struct{ Digests []digest.Digest }

func (e *MissingError) Error() string {
	return fmt.Sprintf("push these first, the repository does not hold them: %s", e.Digests)
}

// Error codes of the distribution specification.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeUnsupported         = "UNSUPPORTED"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeTooMany             = "TOOMANYREQUESTS"

	// codeUnknown is what registries answer with a status of 500 and up, where the specification has no code.
	codeUnknown = "UNKNOWN"
)

// A failure is an error with its answer. Handlers make one where the error alone does not tell the answer.
type failure struct {
	status int
	code   string
	err    error
}

func fail(status int, code string, err error) error { return &failure{status, code, err} }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// answer decides, for every error of the package, the status, the code and what
// the client is told. A client learns no path of the server; the log does.
func answer(err error) (status int, code, message string) {
	var (
		f   *failure
		dig *DigestError
		man *ManifestError
		mis *MissingError

		many *TooManyError
	)
	switch {
	case errors.As(err, &f):
		return f.status, f.code, err.Error()
	case errors.As(err, &many):
		return http.StatusTooManyRequests, codeTooMany, err.Error()
	case errors.Is(err, ErrUnauthorized):
		return http.StatusUnauthorized, codeUnauthorized, err.Error()
	case errors.Is(err, ErrDenied):
		return http.StatusForbidden, codeDenied, err.Error()
	case errors.Is(err, ErrNameUnknown):
		return http.StatusNotFound, codeNameUnknown, err.Error()
	case errors.Is(err, ErrBlobUnknown):
		return http.StatusNotFound, codeBlobUnknown, err.Error()
	case errors.Is(err, ErrManifestUnknown):
		return http.StatusNotFound, codeManifestUnknown, err.Error()
	case errors.Is(err, ErrUploadUnknown):
		return http.StatusNotFound, codeUploadUnknown, err.Error()
	case errors.Is(err, ErrInterrupted):
		return http.StatusBadRequest, codeUploadInvalid, err.Error()
	case errors.As(err, &dig):
		return http.StatusBadRequest, codeDigestInvalid, err.Error()
	case errors.As(err, &man):
		return http.StatusBadRequest, codeManifestInvalid, err.Error()
	case errors.As(err, &mis):
		return http.StatusBadRequest, codeManifestBlobUnknown, err.Error()
	case errors.Is(err, ErrFull):
		return http.StatusInsufficientStorage, codeDenied, err.Error()
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return http.StatusInsufficientStorage, codeUnknown,
			"the registry's disk is full; an upload keeps what was received and can go on once there is space"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return http.StatusInternalServerError, codeUnknown,
			"the registry is not permitted to use its own store: see to the owner and mode of its data directory"
	default:
		return http.StatusInternalServerError, codeUnknown, "the registry failed; its log says why"
	}
}

// writeError answers with the specification's error document; a list of missing blobs becomes one error each.
func writeError(w http.ResponseWriter, err error) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	status, code, message := answer(err)
	items := []item{{Code: code, Message: message}}
	if mis := (*MissingError)(nil); errors.As(err, &mis) {
		items = nil
		for _, d := range mis.Digests {
			items = append(items, item{code, message, map[string]digest.Digest{"digest": d}})
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client may be gone; nobody is left to tell.
	_ = json.NewEncoder(w).Encode(map[string][]item{"errors": items})
}
