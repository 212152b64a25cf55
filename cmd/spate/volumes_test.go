package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

// TestVolumes mounts a model of 60 files as an image, with ctr and as the image
// volume of a pod, lazily, and reads every file of it.
func TestVolumes(t *testing.T) {
	n := newSite(t, nil).newNode("node")
	dir, sums := volumeDir(t, 60)
	ref := n.registry + "/qwen:v1"
	out, err := n.spate("push", dir, ref, "--image-volume", "--sign-key", n.keys.Sign(), "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var p pushed
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatal(err)
	}
	if p.Files != 60 || len(p.Images) != 2 || p.Model == "" || p.Model == p.Digest || !p.Signed {
		t.Errorf("pushed %+v", p)
	}

	c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())
	c.Pull(ref)
	s := n.status()
	if len(s.Layers) != 60 {
		t.Errorf("there are %d layers, want 60", len(s.Layers))
	}
	for _, l := range s.Layers {
		if l.Path != "lazy-file" {
			t.Errorf("a layer is not lazy: %+v", l)
		}
	}
	if present := s.Artifacts[0].Present; present > p.Bytes/2 {
		t.Errorf("a pull has fetched %d bytes of %d", present, p.Bytes)
	}

	if got := podSums(t, n, c, ref); got != sums {
		t.Errorf("a pod reads\n%s\nwant\n%s", got, sums)
	}

	mounted := t.TempDir()
	t.Cleanup(func() { detachBelow(filepath.Dir(mounted)) })
	c.Ctr("image", "mount", "--snapshotter", containerdtest.Snapshotter, ref, mounted)
	if got := readSums(t, mounted); got != sums {
		t.Errorf("ctr mounts\n%s\nwant\n%s", got, sums)
	}
	if err := os.WriteFile(filepath.Join(mounted, "config.json"), nil, 0o644); err == nil {
		t.Error("the mount can be written to")
	}
	c.Ctr("image", "unmount", "--rm", "--snapshotter", containerdtest.Snapshotter, mounted)
	c.RemoveImage(ref)
	for _, l := range n.status().Layers {
		if strings.HasPrefix(l.Image, ref) {
			t.Errorf("the volume is removed, and there is layer %+v", l)
		}
	}

	// The same tag is a model for those that look for one.
	repo, err := remote.Open(ref, remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.unpacks(p, dir); err != nil {
		t.Error(err)
	}
	_, manifests, err := image.Manifests(t.Context(), repo, "v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifests {
		one := n.registry + "/qwen@" + m.Descriptor.Digest.String()
		_, err := n.spate("verify", one, "--key", n.keys.Verify())
		if isModel := m.Descriptor.Digest.String() == p.Model; isModel != (err != nil && strings.Contains(err.Error(), "archive")) {
			t.Errorf("verify %s: %v", one, err)
		}
	}
}

// unpacks reports whether the model of an image volume has the files of dir.
func (s *site) unpacks(p pushed, dir string) error {
	to := filepath.Join(s.dir, "unpacked")
	if _, err := s.spate("pull", "--direct", s.registry+"/qwen@"+p.Model, to, "--key", s.keys.Verify()); err != nil {
		return err
	}
	if got, want := readSums(s.t, to), readSums(s.t, dir); got != want {
		return fmt.Errorf("the model holds\n%s\nwant\n%s", got, want)
	}
	return nil
}

// volumeDir makes the directory of a model of so many files, and returns what readSums has of it.
func volumeDir(t *testing.T, files int) (dir, sums string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name string, b []byte, mode fs.FileMode) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, mode)); err != nil {
			t.Fatal(err)
		}
		files--
	}
	write("config.json", []byte(`{"model_type":"qwen2"}`), 0o644)
	write("sub/dir/tokenizer.json", []byte("{}"), 0o644)
	write("sub/run.sh", []byte("#!/bin/sh\n"), 0o755)
	write("empty.bin", nil, 0o644)
	write("model.safetensors", noise(12<<20, 1), 0o644)
	for files > 0 {
		write(fmt.Sprintf("model-%05d.safetensors", files), noise(100_000+files, uint64(files)), 0o644)
	}
	return dir, readSums(t, dir)
}

// readSums reads all files below dir and returns their paths and digests, as sha256sum does.
func readSums(t testing.TB, dir string) string {
	t.Helper()
	var sums strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		fmt.Fprintf(&sums, "%o %x %s\n", info.Mode().Perm(), sha256.Sum256(b), name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums.String()
}

// podSums mounts ref as the image volume of a pod and reads it in a container.
func podSums(t *testing.T, n *node, c *containerdtest.Containerd, ref string) string {
	t.Helper()
	app := n.push("app", map[string][]byte{})
	n.command(app, "/bin/busybox", "sleep", "1000")
	if _, err := n.spate("index", app, "--sign-key", n.keys.Sign()); err != nil {
		t.Fatal(err)
	}
	c.Pull(app)
	c.Ctr("image", "tag", app, "registry.k8s.io/pause:3.10.2") // what containerd 2.4.2 starts a pod with

	conn, err := grpc.NewClient("unix://"+c.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	runtime := cri.NewRuntimeServiceClient(conn)
	pod := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "reader", Uid: "1", Namespace: "default"},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	sandbox, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	id := sandbox.PodSandboxId
	defer func() {
		_, stopErr := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		if err := errors.Join(stopErr, err); err != nil {
			t.Error(err)
		}
	}()
	container, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "reader"},
		Image:    &cri.ImageSpec{Image: app},
		Command:  []string{"/bin/busybox", "sleep", "1000"},
		Mounts:   []*cri.Mount{{ContainerPath: "/model", Image: &cri.ImageSpec{Image: ref}, Readonly: true}},
		Linux:    &cri.LinuxContainerConfig{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
		t.Fatal(err)
	}
	shell := func(script string) string {
		t.Helper()
		script = "b=/bin/busybox; cd /model; " + script
		r, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container.ContainerId, Timeout: 60, Cmd: []string{"/bin/busybox", "sh", "-c", script}})
		if err != nil || r.ExitCode != 0 {
			t.Fatalf("%s: %v: %s", script, err, r.GetStderr())
		}
		return string(r.Stdout)
	}
	if out := shell("$b touch new 2>&1; true"); !strings.Contains(out, "Read-only") {
		t.Errorf("a pod writes to an image volume: %q", out)
	}
	return shell("$b find . -type f | $b sort | while read f; do" +
		" echo $($b stat -c %a $f) $($b sha256sum $f | $b cut -c-64) ${f#./}; done")
}

// command has an image, which has been pushed as ref, run args when nothing else is asked for.
func (s *site) command(ref string, args ...string) {
	s.t.Helper()
	repo, err := remote.Open(ref, remote.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx := s.t.Context()
	read := func(desc ocispec.Descriptor, doc any) {
		s.t.Helper()
		text, err := content.FetchAll(ctx, repo, desc)
		if err == nil {
			err = json.Unmarshal(text, doc)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	write := func(mediaType string, doc any) ocispec.Descriptor {
		s.t.Helper()
		text, err := json.Marshal(doc)
		if err != nil {
			s.t.Fatal(err)
		}
		desc := content.NewDescriptorFromBytes(mediaType, text)
		if err := repo.Push(ctx, desc, bytes.NewReader(text)); err != nil {
			s.t.Fatal(err)
		}
		return desc
	}
	desc, err := repo.Resolve(ctx, repo.Reference.Reference)
	if err != nil {
		s.t.Fatal(err)
	}
	var manifest ocispec.Manifest
	var config ocispec.Image
	read(desc, &manifest)
	read(manifest.Config, &config)
	config.Config.Cmd = args
	manifest.Config = write(manifest.Config.MediaType, config)
	if err := repo.Tag(ctx, write(manifest.MediaType, manifest), repo.Reference.Reference); err != nil {
		s.t.Fatal(err)
	}
}
