package ui

import (
	"errors"

	"github.com/spate-project/spate/cache/piece"
)

// What a command's exit code means.
const (
	ExitDone       = 0
	ExitFailed     = 1
	ExitUsage      = 2 // wrong flags or arguments; nothing was done
	ExitNotTrusted = 3 // the policy refused; nothing was fetched
	ExitPartly     = 4 // the deadline passed with part of the work done
)

type codedError struct {
	error
	code int
}

func (e *codedError) Unwrap() error { return e.error }

// WithCode returns err, nil when err is nil, so that ExitCode answers code.
func WithCode(err error, code int) error {
	if err == nil {
		return nil
	}
	return &codedError{err, code}
}

// ExitCode returns the code for err: ExitDone for nil, ExitNotTrusted for
// whatever wraps piece.ErrNotTrusted, the outermost code that WithCode gave, or
// ExitFailed.
func ExitCode(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return ExitDone
	case errors.Is(err, piece.ErrNotTrusted):
		return ExitNotTrusted
	case errors.As(err, &coded):
		return coded.code
	}
	return ExitFailed
}

type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

func (e *hintedError) Hint() string { return e.hint }

// WithHint returns err, nil when err is nil, with one sentence for people that
// says what to do next. Its text stays as it was.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hintedError{err, hint}
}

// Hint returns the outermost hint of err, or "". Any error can bring one along, by a method Hint.
func Hint(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	return ""
}
