package ui

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

func TestExitCode(t *testing.T) {
	failed := errors.New("connection refused")
	notTrusted := fmt.Errorf("mount m:1: no signature by key 1: %w", piece.ErrNotTrusted)
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"nil", nil, ExitDone},
		{"any error", failed, ExitFailed},
		{"cancelled", context.Canceled, ExitFailed},
		{"usage", WithCode(failed, ExitUsage), ExitUsage},
		{"wrapped", fmt.Errorf("prefetch: %w", WithCode(failed, ExitPartly)), ExitPartly},
		{"outermost code", WithCode(WithCode(failed, ExitUsage), ExitPartly), ExitPartly},
		{"hinted", WithHint(WithCode(failed, ExitUsage), "see --help"), ExitUsage},
		{"not trusted", notTrusted, ExitNotTrusted},
		{"not trusted is never hidden by a code", WithCode(notTrusted, ExitPartly), ExitNotTrusted},
		{"not trusted among others", errors.Join(failed, WithHint(notTrusted, "sign it")), ExitNotTrusted},
		{"code of nil", WithCode(nil, ExitUsage), ExitDone},
		{"hint of nil", WithHint(nil, "what?"), ExitDone},
	}
	for _, tt := range tests {
		if got := ExitCode(tt.err); got != tt.want {
			t.Errorf("%s: exit code %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestHint(t *testing.T) {
	err := WithHint(errors.New("no route to host"), "is the registry up?")
	if err.Error() != "no route to host" {
		t.Errorf("the hint changed the text to %q", err)
	}
	for _, err := range []error{err, fmt.Errorf("pull: %w", err), errors.Join(errors.New("also"), err)} {
		if got := Hint(err); got != "is the registry up?" {
			t.Errorf("Hint(%v) = %q", err, got)
		}
	}
	if got := Hint(fmt.Errorf("pull: %w", WithHint(err, "try again"))); got != "try again" {
		t.Errorf("outermost hint is %q", got)
	}
	if got := Hint(errors.New("plain")); got != "" {
		t.Errorf("hint of a plain error is %q", got)
	}
}
