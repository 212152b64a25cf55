package policyfile

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/spate-project/spate/signing"
)

// Every is how often Watch looks at the file.
const Every = 2 * time.Second

// Watch puts what the file at path says in the place of policy, which Load returned
// for it, each time that the file is another one, until ctx ends. The files that it
// names are read again then and not before. One that is not a policy changes
// nothing, and log is told so.
func Watch(ctx context.Context, path string, policy *signing.Policy, log *slog.Logger) {
	watch(ctx, path, policy, log, Every)
}

func watch(ctx context.Context, path string, policy *signing.Policy, log *slog.Logger, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last, _ := os.Stat(path)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, err := os.Stat(path)
		if err != nil && last == nil || err == nil && last != nil && os.SameFile(now, last) && now.ModTime().Equal(last.ModTime()) && now.Size() == last.Size() {
			continue
		}
		if last = now; err != nil {
			last = nil
			log.Error("the policy's file is gone; the policy stays as it was", "err", err)
			continue
		}
		p, err := Load(path)
		if err != nil {
			log.Error("the policy's file is not one; the policy stays as it was", "err", err)
			continue
		}
		policy.Replace(p)
		log.Info("the policy is another one now", "file", path, "rules", len(p.Rules))
	}
}
