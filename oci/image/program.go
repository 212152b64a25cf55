package image

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

// defaultPath is where runtimes look for a program when the image names no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Programs returns the absolute paths at which the program may lie that a
// container of the image begins with when it is told nothing else: the first of
// its Entrypoint and Cmd (image-spec, config.md). Of several the first that is
// there counts. None are returned when the image names no program. Programs
// fetches the image's config, and fails for what is no image.
func Programs(ctx context.Context, fetcher content.Fetcher, manifest []byte) ([]string, error) {
	programs, err := readPrograms(ctx, fetcher, manifest)
	if err != nil {
		return nil, fmt.Errorf("find the program of an image: %w", err)
	}
	return programs, nil
}

func readPrograms(ctx context.Context, fetcher content.Fetcher, manifest []byte) ([]string, error) {
	m, err := parseManifest(manifest)
	if err != nil {
		return nil, err
	}
	text, err := fetchConfig(ctx, fetcher, m)
	if err != nil {
		return nil, err
	}
	var image ocispec.Image
	if err := json.Unmarshal(text, &image); err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	command := append(image.Config.Entrypoint, image.Config.Cmd...)
	if len(command) == 0 || command[0] == "" {
		return nil, nil
	}
	program := command[0]
	if path.IsAbs(program) {
		return []string{path.Clean(program)}, nil
	}
	if strings.Contains(program, "/") {
		return []string{path.Join("/", image.Config.WorkingDir, program)}, nil
	}
	search := defaultPath
	for _, variable := range image.Config.Env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			search = value
		}
	}
	var paths []string
	for dir := range strings.SplitSeq(search, ":") {
		if path.IsAbs(dir) {
			paths = append(paths, path.Join(dir, program))
		}
	}
	return paths, nil
}
