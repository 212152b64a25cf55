package registry

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// aged is a retention for which everything in a test is old enough.
var aged = Retention{Grace: time.Nanosecond}

// collectTestRetention is what the child that is killed collects by.
var collectTestRetention = Retention{Grace: time.Nanosecond, Untagged: time.Nanosecond, Tags: []TagRule{{Repository: "*", Tag: "pr-*"}}}

// old makes all files below a room of a repository as old as age.
func old(t *testing.T, dir, room string, age time.Duration) {
	t.Helper()
	then := time.Now().Add(-age)
	err := filepath.WalkDir(filepath.Join(dir, "repositories", room), func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return os.Chtimes(name, then, then)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *client) pushImage(repo, tag string, layer []byte) digest.Digest {
	c.t.Helper()
	config := fmt.Appendf(nil, `{"of":%q}`, digest.FromBytes(layer))
	c.pushBlob(repo, config)
	c.pushBlob(repo, layer)
	return c.pushManifest(repo, tag, image(config, layer))
}

// refer pushes a manifest whose subject is subject, with a blob of its own.
func (c *client) refer(repo string, subject digest.Digest, data []byte) digest.Digest {
	c.t.Helper()
	c.pushBlob(repo, data)
	m := image(data)
	m.Subject = &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 1}
	return c.pushManifest(repo, digest.FromBytes(marshal(c.t, m)).String(), m)
}

func collect(t *testing.T, reg *Registry, keep Retention, dryRun bool) Collected {
	t.Helper()
	c, err := reg.Store().Collect(t.Context(), keep, dryRun)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCollect takes away what a deleted image leaves behind, with what was said
// about it and what was said about that, and nothing else.
func TestCollect(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	base, top, other := noise(1, 1000), noise(2, 1000), noise(3, 1000)
	gone := c.pushImage("team/app", "v1", base)
	sig := c.refer("team/app", gone, []byte("signature"))
	c.refer("team/app", sig, []byte("of the signature"))
	kept := c.pushImage("team/app", "v2", top)
	keptSig := c.refer("team/app", kept, []byte("another signature"))
	child := c.pushImage("team/app", "v3", noise(4, 1000))
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: child, Size: 1}}}
	index.SchemaVersion = 2
	c.pushManifest("team/app", "multi", index)
	c.want(202, "DELETE", "/v2/team/app/manifests/v3", nil) // the index still needs it
	c.pushImage("other", "v1", base)                        // shares the layer
	c.pushBlob("team/app", other)                           // no manifest has it

	if got := collect(t, reg, Retention{Grace: time.Hour}, false); got.Manifests+got.Blobs+got.Tags != 0 {
		t.Errorf("collected %+v of what is new", got)
	}
	c.want(202, "DELETE", "/v2/team/app/manifests/"+gone.String(), nil)
	dry := collect(t, reg, aged, true)
	c.want(200, "GET", "/v2/team/app/manifests/"+sig.String(), nil)
	got := collect(t, reg, aged, false)
	if got.Manifests != 2 || got.Blobs != 5 || fmt.Sprint(dry) != fmt.Sprint(got) {
		t.Errorf("collected %+v, and %+v in a dry run; want 2 manifests: the signature and what refers to it, and 5 blobs", got, dry)
	}
	for _, d := range []digest.Digest{gone, sig} {
		c.want(404, "GET", "/v2/team/app/manifests/"+d.String(), nil)
	}
	for _, d := range []digest.Digest{kept, keptSig, child} {
		c.want(200, "GET", "/v2/team/app/manifests/"+d.String(), nil)
	}
	c.want(404, "GET", "/v2/team/app/blobs/"+digest.FromBytes(base).String(), nil)
	c.want(404, "GET", "/v2/team/app/blobs/"+digest.FromBytes(other).String(), nil)
	c.want(200, "GET", "/v2/team/app/blobs/"+digest.FromBytes(top).String(), nil)
	c.want(200, "GET", "/v2/other/blobs/"+digest.FromBytes(base).String(), nil)
	if got := collect(t, reg, aged, false); got.Manifests+got.Blobs != 0 {
		t.Errorf("a second collection found %+v", got)
	}
}

// TestCollectUntagged takes manifests away that lost their tag, if asked to.
func TestCollectUntagged(t *testing.T) {
	dir := t.TempDir()
	c, reg, _ := serve(t, dir, Options{})
	before := c.pushImage("r", "latest", noise(1, 100))
	after := c.pushImage("r", "latest", noise(2, 100))
	keep := aged
	if got := collect(t, reg, keep, false); got.Manifests != 0 {
		t.Errorf("collected %+v without being asked to", got)
	}
	keep.Untagged = time.Hour
	if got := collect(t, reg, keep, false); got.Manifests != 0 {
		t.Errorf("collected %+v within the hour", got)
	}
	old(t, dir, "r/_manifests", 2*time.Hour)
	if got := collect(t, reg, keep, false); got.Manifests != 1 || got.Blobs != 2 {
		t.Errorf("collected %+v, want the manifest without a tag and its blobs", got)
	}
	c.want(404, "GET", "/v2/r/manifests/"+before.String(), nil)
	c.want(200, "GET", "/v2/r/manifests/"+after.String(), nil)
}

// TestCollectTags keeps the newest tags that a rule is for, and young ones.
func TestCollectTags(t *testing.T) {
	dir := t.TempDir()
	c, reg, _ := serve(t, dir, Options{})
	for i := range 5 {
		tag := fmt.Sprint("pr-", i)
		c.pushImage("team/app", tag, noise(uint64(i), 100))
		old(t, dir, "team/app/_tags/"+tag, time.Duration(5-i)*time.Hour)
	}
	c.pushImage("team/app", "v1", noise(9, 100))
	old(t, dir, "team/app/_tags/v1", 100*time.Hour)
	c.pushImage("team/app/deep", "pr-1", noise(9, 100))
	rule, err := ParseTagRule("team/*:pr-* keep=1 age=150m")
	if err != nil {
		t.Fatal(err)
	}
	keep := Retention{Grace: time.Hour, Tags: []TagRule{rule}}
	tags := func() []string {
		list, err := reg.Store().Tags("team/app")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := collect(t, reg, keep, true); got.Tags != 3 || len(tags()) != 6 {
		t.Errorf("a dry run collects %+v and leaves %v", got, tags())
	}
	if got := collect(t, reg, keep, false); got.Tags != 3 || !slices.Equal(tags(), []string{"pr-3", "pr-4", "v1"}) {
		t.Errorf("collected %+v, left are %v", got, tags())
	}
	c.want(200, "GET", "/v2/team/app/deep/manifests/pr-1", nil)
}

func TestParseTagRule(t *testing.T) {
	for _, s := range []string{"", "a:b", "a keep=1", "a: keep=1", ":b keep=1", "a:b keep=-1", "a:b age=1", "a:b keep=1 keep=2", "a:b days=2", "[:b keep=1", "a:[ keep=1"} {
		if r, err := ParseTagRule(s); err == nil {
			t.Errorf("%q is read as %v", s, r)
		}
	}
	r, err := ParseTagRule(" team/*:pr-*  age=720h keep=10 ")
	if err != nil || r.String() != "team/*:pr-* keep=10 age=720h0m0s" {
		t.Errorf("%v, %v", r, err)
	}
}

// TestCollectDamaged leaves the blobs of a repository alone while a manifest of it cannot say which it needs.
func TestCollectDamaged(t *testing.T) {
	dir := t.TempDir()
	c, reg, _ := serve(t, dir, Options{})
	layer := noise(1, 100)
	d := c.pushImage("r", "v1", layer)
	name := filepath.Join(dir, manifestPath("r", d))
	right, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, bytes.ToUpper(right), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, reg, aged, false); got.Blobs != 0 || !slices.Equal(got.Left, []string{"r"}) {
		t.Errorf("collected %+v", got)
	}
	c.want(201, "PUT", "/v2/r/manifests/v1", right)
	if got := collect(t, reg, aged, false); got.Blobs != 0 || len(got.Left) != 0 {
		t.Errorf("collected %+v", got)
	}
	c.want(200, "GET", "/v2/r/blobs/"+digest.FromBytes(layer).String(), nil)
}

// TestCollectLookedFor keeps a blob that a client found and is about to refer to.
func TestCollectLookedFor(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{Retention: Retention{Grace: 2 * time.Second}})
	blob := noise(1, 100)
	d := c.pushBlob("r", blob)
	for range 6 {
		time.Sleep(500 * time.Millisecond)
		c.want(200, "HEAD", "/v2/r/blobs/"+d.String(), nil)
	}
	if got := collect(t, reg, Retention{Grace: 2 * time.Second}, false); got.Blobs != 0 {
		t.Errorf("collected %+v", got)
	}
}

// TestCollectBesidePushes collects without grace while clients push, tag, untag
// and delete: every image whose push was acknowledged is whole, and in the end
// nothing is left of those that were deleted.
func TestCollectBesidePushes(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	keep := Retention{Grace: time.Nanosecond, Untagged: time.Nanosecond}
	ctx, cancel := context.WithCancel(t.Context())
	var collector, pushers sync.WaitGroup
	collections := 0
	collector.Go(func() {
		for ctx.Err() == nil {
			if _, err := reg.Store().Collect(ctx, keep, false); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			collections++
			time.Sleep(20 * time.Millisecond) // or no push ends before the next one
		}
	})
	// An image of two layers, of which all pushers have the first in common.
	push := func(repo, tag string, layer []byte) digest.Digest {
		config, shared := fmt.Appendf(nil, `{"of":%q}`, digest.FromBytes(layer)), noise(0, 1000)
		m := image(config, shared, layer)
		for range 1000 {
			for _, b := range [][]byte{config, shared, layer} {
				c.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), b)
			}
			if c.do("PUT", "/v2/"+repo+"/manifests/"+tag, marshal(t, m)).status == 201 {
				return digest.FromBytes(marshal(t, m))
			}
		}
		t.Errorf("%s:%s cannot be pushed", repo, tag)
		return ""
	}
	whole := func(repo, tag string, d digest.Digest) {
		r := c.do("GET", "/v2/"+repo+"/manifests/"+tag, nil)
		if digest.FromBytes(r.body) != d {
			t.Errorf("%s:%s is %d %s, want %s", repo, tag, r.status, r.body, d)
			return
		}
		m, err := ParseManifest(r.body, digest.Canonical)
		if err != nil {
			t.Error(err)
			return
		}
		for _, b := range m.Blobs {
			if r := c.do("GET", "/v2/"+repo+"/blobs/"+b.Digest.String(), nil); digest.FromBytes(r.body) != b.Digest {
				t.Errorf("%s:%s lacks blob %s: %d", repo, tag, b.Digest, r.status)
			}
		}
	}
	for p := range 4 {
		pushers.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(p)))
			repo, mine := fmt.Sprint("r", p%2), fmt.Sprint("p", p)
			for i := range 15 {
				d := push(repo, mine, noise(uint64(p*100+i), 500+random.IntN(500)))
				whole(repo, mine, d)
				if random.IntN(3) == 0 {
					c.do("DELETE", "/v2/"+repo+"/manifests/"+mine, nil)
				}
			}
			c.do("DELETE", "/v2/"+repo+"/manifests/"+mine, nil)
		})
	}
	pushers.Wait()
	cancel()
	collector.Wait()
	if collections < 3 {
		t.Errorf("only %d collections", collections)
	}
	collect(t, reg, keep, false)
	if err := reg.Store().Sweep(time.Now()); err != nil {
		t.Error(err)
	}
	if u, err := reg.Store().Usage(); err != nil || u.Blobs != 0 {
		t.Errorf("%+v is left, %v", u, err)
	}
}

// A collection is killed before each change that it makes: what is needed is
// whole, and the next collection takes the rest.
func TestKillDuringCollection(t *testing.T) {
	for n := 1; ; n++ {
		dir := t.TempDir()
		c, _, stop := serve(t, dir, Options{})
		layer := noise(1, 1000)
		kept := c.pushImage("r", "v1", layer)
		referrer := c.refer("r", kept, []byte("kept"))
		gone := c.pushImage("r", "v2", noise(2, 1000))
		c.refer("r", gone, []byte("gone"))
		c.pushImage("s", "pr-1", layer)
		c.want(202, "DELETE", "/v2/r/manifests/"+gone.String(), nil)
		stop()

		ch := startChild(t, dir, fmt.Sprint("REGISTRY_TEST_KILL_AT=", n), "REGISTRY_TEST_COLLECT=1")
		done := ch.do("GET", "/collect", nil).status == 200
		ch.kill()

		c, reg, stop := serve(t, dir, Options{Retention: collectTestRetention})
		for _, path := range []string{"/v2/r/manifests/v1", "/v2/r/blobs/" + digest.FromBytes(layer).String()} {
			c.want(200, "GET", path, nil)
		}
		if list := c.want(200, "GET", "/v2/r/referrers/"+kept.String(), nil).body; !bytes.Contains(list, []byte(referrer)) {
			t.Errorf("killed before change %d: the referrer is lost: %s", n, list)
		}
		if _, err := reg.Collect(t.Context(), false); err != nil {
			t.Error(err)
		}
		if u, err := reg.Store().Usage(); err != nil || u.Blobs != 3 {
			t.Errorf("killed before change %d: %+v is left, want the image's two blobs and that of its referrer, %v", n, u, err)
		}
		stop()
		if t.Failed() {
			t.FailNow()
		}
		if done {
			if n < 8 {
				t.Errorf("only %d changes seen", n)
			}
			return
		}
	}
}
