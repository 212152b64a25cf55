package agent

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/prefetch/warm"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// TestMarks: marks are known again, and a file that a crash or a disk broke is one without marks.
func TestMarks(t *testing.T) {
	dir := t.TempDir()
	m := openMarks(dir, quiet())
	first, second := mark{digest.FromString("1"), 1}, mark{digest.FromString("2"), 2}
	for _, step := range []error{m.put("a", first), m.put("b", first), m.put("a", second), m.retain([]string{"a", "c"})} {
		if step != nil {
			t.Fatal(step)
		}
	}
	want := map[string]mark{"a": second}
	if got := openMarks(dir, quiet()).list; !maps.Equal(got, want) {
		t.Errorf("opened again there is %v, want %v", got, want)
	}
	path := filepath.Join(dir, marksName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A crash before the rename leaves a part of the next file.
	if err := os.WriteFile(path+".new", whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	m = openMarks(dir, quiet())
	if !maps.Equal(m.list, want) {
		t.Errorf("after a crash before the rename there is %v, want %v", m.list, want)
	}
	if err := m.put("a", first); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v is left, %v", entries, err)
	}
	for n := range whole {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if got := openMarks(dir, quiet()).list; len(got) > 0 {
			t.Errorf("of %d bytes of %d there is %v", n, len(whole), got)
		}
	}
	for _, text := range []string{"null", "[]", `{"a":1}`, "\x00\x00"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m := openMarks(dir, quiet())
		if _, ok := m.of("a"); ok {
			t.Errorf("%q has a mark", text)
		}
		if err := m.put("a", first); err != nil {
			t.Errorf("put after %q: %v", text, err)
		}
	}
}

// TestPinned: a pin of a warm set is told from one of a reference.
func TestPinned(t *testing.T) {
	sum := digest.FromString("x").String()
	if pool, ref, ok := pinned(pinName("gpu", "h:5000/m@"+sum)); pool != "gpu" || ref != "h:5000/m@"+sum || !ok {
		t.Errorf("%s, %s, %t", pool, ref, ok)
	}
	for _, name := range []string{"h:5000/m:v1", "warm:5000/m:v1", "warm:5000/m@" + sum, "warm:5000/m", "warm/m:v1", "warm"} {
		if _, _, ok := pinned(name); ok {
			t.Errorf("%s is taken for a pin of a warm set", name)
		}
	}
}

// A warmBench is a registry with models and the warm set of the pool gpu, and the data of a node.
type warmBench struct {
	t      *testing.T
	host   string
	repo   *remote.Repository
	signer signing.Signer
	policy *signing.Policy
	data   string
	pool   string
	quota  int64
}

func newWarmBench(t *testing.T) *warmBench {
	t.Helper()
	private, public, err := cosign.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &warmBench{t: t, host: newRegistry(t), data: t.TempDir(), pool: "gpu"}
	if b.signer, err = cosign.NewSigner(private, func() ([]byte, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	verifier, err := cosign.NewVerifier(public, "warm")
	if err != nil {
		t.Fatal(err)
	}
	b.policy = &signing.Policy{Verifiers: []signing.Verifier{verifier}}
	if b.repo, err = remote.Open(warm.ReferenceOf(b.host, b.pool), remote.Options{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// model pushes a model, and has nodes trust it if they shall.
func (b *warmBench) model(name string, size int64, trusted bool) (reference string) {
	b.t.Helper()
	source := filepath.Join(b.t.TempDir(), name)
	if err := lab.Synthesize(b.t.Context(), source, size, lab.ModelOptions{Shards: 1}); err != nil {
		b.t.Fatal(err)
	}
	policy := push(b.t, source, b.host+"/"+name+":v1")
	if trusted {
		b.policy.Verifiers = append(b.policy.Verifiers, policy.Verifiers...)
	}
	repo, err := remote.Open(b.host+"/"+name, remote.Options{})
	if err != nil {
		b.t.Fatal(err)
	}
	desc, err := repo.Resolve(b.t.Context(), "v1")
	if err != nil {
		b.t.Fatal(err)
	}
	return b.host + "/" + name + "@" + desc.Digest.String()
}

// change makes the references the entries of the set, in that order.
func (b *warmBench) change(references ...string) warm.Signed {
	b.t.Helper()
	s, err := warm.Change(b.t.Context(), b.repo, b.policy, b.signer, warm.ReferenceOf(b.host, "gpu"), "gpu", func(s *warm.Set) error {
		s.Entries = nil
		for i, r := range references {
			if err := s.Add(warm.Entry{Reference: r, Priority: -i}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// start starts an agent on the node's data.
func (b *warmBench) start() (a *Agent, end func()) {
	b.t.Helper()
	opts := Options{Data: b.data, Policy: b.policy, Link: link.New(0, 0), Registries: []string{b.host}, CacheQuota: b.quota}
	if b.pool != "" {
		opts.Labels = map[string]string{orders.PoolLabel: b.pool}
	}
	a, _, end = running(b.t, opts)
	return a, end
}

// eventually waits until is holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for start := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("%s: not after a minute", what)
		}
	}
}

// warmState returns how far a is with the entry.
func (a *Agent) warmState(reference string) (e WarmEntry) {
	for _, s := range a.warmth.status() {
		for _, e := range s.Entries {
			if e.Reference == reference {
				return e
			}
		}
	}
	return e
}

// TestWarmVersions: what a set says is fetched and pinned, and what it says no
// more is unpinned. An older set is not taken up, nor one by a stranger, while
// the node knows what the last one was; a node that is of no pool any more pins nothing.
func TestWarmVersions(t *testing.T) {
	b := newWarmBench(t)
	one, two := b.model("one", 1<<20, true), b.model("two", 1<<20, true)
	first := b.change(one)
	a, end := b.start()
	holds := func(a *Agent, version int64, reference string) {
		t.Helper()
		eventually(t, "the set holds "+reference, func() bool {
			s := a.warmth.status()
			return len(s) == 1 && s[0].Version == version && a.warmState(reference).State == orders.Ready &&
				slices.Equal(a.store.Pinned(), []string{pinName("gpu", reference)})
		})
	}
	holds(a, 1, one)
	end()

	second := b.change(two)
	a, end = b.start()
	holds(a, 2, two)
	end()

	resolve := func(s warm.Signed) ocispec.Descriptor {
		t.Helper()
		desc, err := b.repo.Resolve(t.Context(), s.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		return desc
	}
	told := func(a *Agent) bool {
		s := a.warmth.status()
		return len(s) == 1 && s[0].Problem != ""
	}
	outlast := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		a, end := b.start()
		defer end()
		holds(a, 2, two)
		eventually(t, what+": the problem is told", func() bool { return told(a) })
		holds(a, 2, two)
	}
	outlast("no set", b.repo.Delete(t.Context(), resolve(second)))
	outlast("an older one", b.repo.Tag(t.Context(), resolve(first), "gpu"))

	// While the entries of the last one are not known, all pins are kept.
	if err := os.RemoveAll(a.shelf.dir); err != nil {
		t.Fatal(err)
	}
	a, end = b.start()
	eventually(t, "the problem is told", func() bool { return told(a) })
	if s, pins := a.warmth.status()[0], a.store.Pinned(); s.Version != 2 || len(s.Entries) > 0 || !slices.Equal(pins, []string{pinName("gpu", two)}) {
		t.Errorf("without the last set's documents: %+v, pinned are %v", s, pins)
	}
	end()

	// A node that does not know what the last one was takes up any.
	if err := os.WriteFile(filepath.Join(b.data, marksName), []byte(`{"`), 0o600); err != nil {
		t.Fatal(err)
	}
	a, end = b.start()
	holds(a, 1, one)
	end()

	b.pool = ""
	a, end = b.start()
	eventually(t, "nothing is pinned", func() bool { return len(a.store.Pinned()) == 0 })
	end()
}

// TestWarmStates: an entry that has no room or is not trusted says so and keeps no other one waiting.
func TestWarmStates(t *testing.T) {
	b := newWarmBench(t)
	large, small, theirs := b.model("large", 4<<20, true), b.model("small", 1<<20, true), b.model("theirs", 1<<20, false)
	gone := b.host + "/gone@" + digest.FromString("gone").String()
	b.quota = 3 << 20
	b.change(large, theirs, gone, small)
	a, end := b.start()
	defer end()
	for reference, want := range map[string]orders.Standing{
		large: orders.Failing, theirs: orders.Denied, gone: orders.Failing, small: orders.Ready,
	} {
		eventually(t, reference+" is "+string(want), func() bool { return a.warmState(reference).State == want })
	}
	if e := a.warmState(large); !strings.Contains(e.Error, "there is no room") || !strings.Contains(e.Error, large) {
		t.Errorf("without room it says %q", e.Error)
	}
	if e := a.warmState(theirs); !strings.Contains(e.Error, "not trusted") {
		t.Errorf("not trusted it says %q", e.Error)
	}
	if got, want := a.store.Pinned(), []string{pinName("gpu", small)}; !slices.Equal(got, want) {
		t.Errorf("pinned are %v, want %v", got, want)
	}
	if got := warmEntries(a.warmth.status()); got[string(orders.Ready)] != 1 || got[string(orders.Denied)] != 1 || got[string(orders.Failing)] != 2 {
		t.Errorf("the metric is %v", got)
	}
	if err := a.SetQuota(16 << 20); err != nil {
		t.Fatal(err)
	}
	eventually(t, "with room the large one is ready", func() bool { return a.warmState(large).State == orders.Ready })
}

// TestWarmStranger: a set that the policy refuses changes nothing, and is named as the problem.
func TestWarmStranger(t *testing.T) {
	b := newWarmBench(t)
	b.change(b.model("one", 1<<20, true))
	b.policy = &signing.Policy{Verifiers: b.policy.Verifiers[1:]}
	a, end := b.start()
	defer end()
	eventually(t, "the problem is told", func() bool { return len(a.warmth.status()) == 1 })
	s := a.warmth.status()[0]
	if !strings.Contains(s.Problem, piece.ErrNotTrusted.Error()) || s.Version != 0 || len(s.Entries) > 0 {
		t.Errorf("the status is %+v", s)
	}
	if _, err := os.Stat(filepath.Join(b.data, marksName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is marked: %v", err)
	}
}
