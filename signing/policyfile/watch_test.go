package policyfile

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/signing"
)

// A said is what was logged.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) count(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), part)
}

// TestWatch: another file is another policy; one with a mistake, and none, are not.
func TestWatch(t *testing.T) {
	path := filepath.Join(folder(t), "policy.yaml")
	policy, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	log := &said{}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { watch(ctx, path, policy, slog.New(slog.NewTextHandler(log, nil)), 10*time.Millisecond) })
	defer watching.Wait()
	defer cancel()
	time.Sleep(50 * time.Millisecond) // until it has looked at the first one
	until := func(what string, is func() bool) {
		t.Helper()
		for start := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Since(start) > time.Minute {
				t.Fatal(what)
			}
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	admits := func(want string) {
		t.Helper()
		_, _, err := policy.Admit(t.Context(), nowhere{}, "registry.example/models/qwen:v1")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	admits("nowhere")
	write("version: 1\nrules: [{name: a, references: [h/other], signers: [{key: cosign.pub}]}]\n")
	until("the policy stays as it was", func() bool { return policy.Generation() == 1 })
	admits("no rule of the policy is for registry.example/models/qwen")
	write("version: 1\nrules:\n")
	until("a mistake is not told", func() bool { return log.count("the policy stays as it was") == 1 })
	admits("no rule of the policy")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	until("a file that is gone is not told", func() bool { return log.count("is gone") == 1 })
	admits("no rule of the policy")
	write(good)
	until("a file that has come again is not taken up", func() bool { return policy.Generation() == 2 })
	admits("nowhere")
}

// nowhere is a repository that knows no reference.
type nowhere struct{ signing.Repository }

func (nowhere) Resolve(context.Context, string) (d ocispec.Descriptor, err error) {
	return d, errors.New("nowhere")
}
