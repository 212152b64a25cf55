package prefetch

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/model/format"
)

const (
	// maxIndex bounds an index of shards, in bytes. The largest have some 20 MB.
	maxIndex = 100 << 20

	// beginAtOnce is how many files' first bytes are read at the same time.
	beginAtOnce = 8
)

// A File is one file of a model.
type File struct {
	Path   string // in the model, slash-separated
	Object piece.Object

	// Data is what Model reads the head of weights through, and config.json and
	// the indexes of shards. Full has no use for it.
	Data io.ReaderAt
}

// Full plans all bytes of a model's files, each once: configuration, code,
// weights in the natural order of their names, and the rest.
func Full(files []File) Plan {
	var p Plan
	for _, f := range inOrder(files, nil) {
		p.add(f.Object.Digest, 0, f.Object.Size)
	}
	return p
}

// Model plans what an engine reads when it loads a model on one rank, in the
// order in which it does so, each byte once:
//
//   - configuration, tokenizer and code
//   - the heads of all safetensors and GGUF files, which engines look into
//     before they load a tensor
//   - the weights, file by file in natural order: of safetensors by the names of
//     the tensors, of others as they lie. Where a file's tensors are ordered by
//     type first, as safetensors writes them, that makes a stream for each type.
//     What an index of shards does not list comes after what it lists.
//   - what no engine reads
//
// Whether a rank is given or not, only tensors that the rank does not need are
// left out. Model reads through the files' Data, of several files at once. An
// error names the file; Full plans the model without a look into it.
func Model(files []File, rank Rank) (Plan, error) {
	if err := rank.Check(); err != nil {
		return nil, err
	}
	listed, err := readIndexes(files)
	if err != nil {
		return nil, err
	}
	ordered := inOrder(files, listed)
	begin(ordered)
	var p, rest Plan
	tensors := 0
	cut := newCutter(files, rank)
	for _, f := range ordered {
		switch f.kind {
		case oci.LayerWeightConfig, oci.LayerCode:
			p.add(f.Object.Digest, 0, f.Object.Size)
		case oci.LayerWeight:
			t, err := f.table()
			if err != nil {
				return nil, fmt.Errorf("plan the prefetch of %s: %w", f.Path, err)
			}
			if tensors += len(t.Tensors); tensors > format.MaxTensors {
				return nil, fmt.Errorf("plan the prefetch of %s: the model has more than %d tensors", f.Path, format.MaxTensors)
			}
			p.add(f.Object.Digest, 0, t.Header)
			if err := cut.add(&rest, f, t); err != nil {
				return nil, err
			}
		default:
			rest.add(f.Object.Digest, 0, f.Object.Size)
		}
	}
	return append(p, rest...), nil
}

// A modelFile is the first file of a model that is a certain object.
type modelFile struct {
	File
	kind  string // one of the oci.Layer constants
	aside bool   // there is an index of shards, and it does not list the file
	twice bool   // other files are the same object
}

// inOrder returns a model's objects in the order in which an engine reads them.
// listed are the weights of each directory that has an index of shards.
func inOrder(files []File, listed map[string]map[string]bool) []modelFile {
	all := make([]modelFile, len(files))
	for i, f := range files {
		index := listed[path.Dir(f.Path)]
		all[i] = modelFile{File: f, kind: format.KindOf(f.Path, f.Object.Size), aside: index != nil && !index[f.Path]}
	}
	slices.SortStableFunc(all, func(a, b modelFile) int {
		if a.kind == oci.LayerWeight && b.kind == a.kind && a.aside != b.aside {
			if a.aside {
				return 1
			}
			return -1
		}
		return format.Compare(a.kind, a.Path, b.kind, b.Path)
	})
	place := make(map[piece.Digest]int)
	ordered := all[:0]
	for _, f := range all {
		if i, ok := place[f.Object.Digest]; ok {
			ordered[i].twice = true
			continue
		}
		place[f.Object.Digest] = len(ordered)
		ordered = append(ordered, f)
	}
	return ordered
}

// begin has the first bytes of files with heads fetched, several at a time: they
// tell how long the heads are, most of which are not longer than a piece. Whoever
// reads them again gets the error too.
func begin(files []modelFile) {
	var g errgroup.Group
	g.SetLimit(beginAtOnce)
	for _, f := range files {
		if f.format() != "" && f.Object.Size > 0 {
			g.Go(func() error {
				f.Data.ReadAt(make([]byte, 1), 0)
				return nil
			})
		}
	}
	g.Wait()
}

// format returns the extension of the weights that have a head, and "" for other files.
func (f modelFile) format() string {
	switch ext := strings.ToLower(path.Ext(f.Path)); ext {
	case ".safetensors", ".gguf":
		return ext
	}
	return ""
}

// table reads the head of a file of weights. Where there is none the table is empty.
func (f modelFile) table() (*format.Table, error) {
	switch f.format() {
	case ".safetensors":
		return format.ReadSafetensors(f.Data, f.Object.Size, format.MaxHeader)
	case ".gguf":
		return format.ReadGGUF(f.Data, f.Object.Size, format.MaxHeader)
	}
	return &format.Table{}, nil
}

// readIndexes reads the indexes of shards, and returns the paths of what they list by directory.
func readIndexes(files []File) (map[string]map[string]bool, error) {
	listed := make(map[string]map[string]bool)
	for _, f := range files {
		if !strings.HasSuffix(f.Path, ".safetensors.index.json") {
			continue
		}
		var index struct {
			WeightMap map[string]string `json:"weight_map"`
		}
		if f.Object.Size > maxIndex {
			return nil, fmt.Errorf("plan the prefetch of %s: it has %d bytes, more than %d", f.Path, f.Object.Size, maxIndex)
		}
		if err := json.NewDecoder(io.NewSectionReader(f.Data, 0, f.Object.Size)).Decode(&index); err != nil {
			return nil, fmt.Errorf("plan the prefetch of %s: %w", f.Path, err)
		}
		dir := path.Dir(f.Path)
		if listed[dir] == nil {
			listed[dir] = make(map[string]bool)
		}
		for _, shard := range index.WeightMap {
			listed[dir][path.Join(dir, shard)] = true
		}
	}
	return listed, nil
}
