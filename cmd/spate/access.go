package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/access"
	"github.com/spate-project/spate/oci/registry"
)

// accessFlags say who may use a registry, and where it is written what they do.
type accessFlags struct {
	htpasswd, rules, audit string
	rate                   float64
}

func (a *accessFlags) register(f *pflag.FlagSet) {
	f.StringVar(&a.htpasswd, "htpasswd", "", "`file` of users, as htpasswd -B makes it; without one everybody may do everything")
	f.StringVar(&a.rules, "access", "", "YAML `file` of rules: who may pull, push and delete in which repositories; every user everything when empty")
	f.Float64Var(&a.rate, "rate-limit", 0, "how `many` requests a second each user may send, and each address without a user; ten seconds' worth at once; 0 is no limit")
	f.StringVar(&a.audit, "audit-log", "", "`file` to add a line of JSON to for each manifest that is read, each push and deletion, and each refusal")
}

// access returns nil, which lets everybody do everything, when there is neither a
// file of users nor a limit.
func (a *accessFlags) access(log *slog.Logger) (registry.Access, error) {
	if a.rate < 0 {
		return nil, usage(fmt.Errorf("--rate-limit %v is less than none", a.rate))
	}
	if a.htpasswd == "" {
		if a.rules != "" {
			return nil, ui.WithHint(usage(errors.New("--access needs the users that its rules are about")), "name their file with --htpasswd")
		}
		if a.rate > 0 {
			return access.NewLimit(nil, a.rate), nil
		}
		return nil, nil
	}
	users, err := access.New(access.Options{Htpasswd: a.htpasswd, Rules: a.rules, Logger: log})
	if err != nil {
		return nil, err
	}
	return access.NewLimit(users, a.rate), nil
}

// auditLog opens a file to add lines of JSON to; none is nil. The caller calls done.
func auditLog(path string) (_ *slog.Logger, done func() error, err error) {
	if path == "" {
		return nil, func() error { return nil }, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the audit log: %w", err)
	}
	return slog.New(slog.NewJSONHandler(f, nil)), f.Close, nil
}
