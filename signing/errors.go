package signing

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
)

// A DeniedError says that a policy refuses a reference, and why. It is
// piece.ErrNotTrusted: whoever meets it stops, and asking again is no use
// before somebody acts.
type DeniedError struct {
	Reference string        // as the user wrote it
	Digest    digest.Digest // what it was resolved to; empty when it was not
	Rule      string        // what the policy asks for
	Missing   string        // what was missing, or what is wrong with what there is
	Next      string        // what a person can do about it
}

func (e *DeniedError) Error() string {
	what := e.Reference
	if e.Digest != "" {
		what += " (" + e.Digest.String() + ")"
	}
	return fmt.Sprintf("admit %s: not trusted: %s: %s", what, e.Rule, e.Missing)
}

// Hint returns Next, for whoever prints errors for people.
func (e *DeniedError) Hint() string { return e.Next }

// Unwrap makes errors.Is(err, piece.ErrNotTrusted) true.
func (e *DeniedError) Unwrap() error { return piece.ErrNotTrusted }

// A refusal is a reason that lies in what was read, so that reading it again gives the same.
type refusal string

func (r refusal) Error() string { return string(r) }

func refusalf(format string, args ...any) refusal { return refusal(fmt.Sprintf(format, args...)) }

// isRefusal tells what a document is from what its source does: one that lists
// what it does not have, or sends other bytes, vouches for nothing.
func isRefusal(err error) bool {
	var r refusal
	var w *piece.WrongBytesError
	return errors.As(err, &r) || errors.As(err, &w) || errors.Is(err, errdef.ErrNotFound)
}
