package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/spate-project/spate/oci/model/format"
)

// step is how much of a tensor is compared at once.
const step = 1 << 20

const indexName = "model.safetensors.index.json"

// smallFiles are what an engine reads between config.json and the weights, in
// this order, as far as the model has them.
var smallFiles = [...]string{
	"generation_config.json",
	"tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json",
	indexName,
}

// LoadOptions are how Load reads. The zero value is usable.
type LoadOptions struct {
	// Start is when the clock started; zero is when Load was called.
	Start time.Time

	// Read copies the weights with pread instead of mapping the files.
	Read bool

	// Copy is how many bytes of tensors a second the engine's accelerator takes: so
	// long it waits after each step. 0 is no time.
	Copy int64

	// Loaded is called with each number of bytes just found equal, by Load's
	// goroutine; it may be nil.
	Loaded func(bytes int64)
}

// A LoadResult is what Load measured. Durations count from LoadOptions.Start.
type LoadResult struct {
	FirstByte  time.Duration `json:"first_byte_ns"`  // when config.json had been read
	LastTensor time.Duration `json:"last_tensor_ns"` // when the last tensor had been compared
	Waited     time.Duration `json:"waited_ns"`      // of that, until bytes of the mounted model were copied
	Bytes      int64         `json:"bytes"`          // of tensors
	Tensors    int           `json:"tensors"`
	Shards     []ShardResult `json:"shards"` // in the order of loading
}

// A ShardResult is one file of a LoadResult.
type ShardResult struct {
	Name  string        `json:"name"`
	Bytes int64         `json:"bytes"` // of tensors
	Begin time.Duration `json:"begin_ns"`
	End   time.Duration `json:"end_ns"`
}

// Load loads the model in the directory mounted as an inference engine does,
// and compares everything with the same model in the directory source: the
// configuration, the tokenizer and the index first, then the shards in the
// index's order, each mapped privately and walked tensor by tensor in the order
// of their names. An engine would copy each tensor to its accelerator; Load
// copies it to memory, and then compares it. Its memory stays constant: pages are let go as soon as they are
// compared.
//
// It fails at the first byte that differs or cannot be read, also where a
// mapped page cannot be (the kernel's SIGBUS). It looks at ctx between steps of
// 1 MiB; a file system that hangs holds it up.
func Load(ctx context.Context, mounted, source string, o LoadOptions) (LoadResult, error) {
	if o.Start.IsZero() {
		o.Start = time.Now()
	}
	l := loader{LoadOptions: o, mounted: mounted, source: source}
	if err := l.load(ctx); err != nil {
		return LoadResult{}, fmt.Errorf("load model from %s: %w", mounted, err)
	}
	return l.result, nil
}

type loader struct {
	LoadOptions
	mounted, source string
	result          LoadResult
}

func (l *loader) load(ctx context.Context) error {
	if err := l.small("config.json"); err != nil {
		return err
	}
	l.result.FirstByte = time.Since(l.Start)
	for _, name := range smallFiles {
		if err := l.small(name); err != nil && !errors.Is(err, errNotInSource) {
			return err
		}
	}
	shards, err := l.shardNames()
	if err != nil {
		return err
	}
	for _, name := range shards {
		if err := l.shard(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	l.result.LastTensor = time.Since(l.Start)
	return nil
}

// errNotInSource says that the model has no such file.
var errNotInSource = errors.New("no such file in the source")

// small compares one small file.
func (l *loader) small(name string) error {
	want, err := os.ReadFile(filepath.Join(l.source, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", name, errNotInSource)
	case err != nil:
		return fmt.Errorf("read the source: %w", err)
	}
	begin := time.Now()
	got, err := os.ReadFile(filepath.Join(l.mounted, name))
	l.result.Waited += time.Since(begin)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s differs from the source", name)
	}
	return nil
}

// shardNames returns the model's weight files in the order of loading, from the
// source, whose index the mounted one equals.
func (l *loader) shardNames() ([]string, error) {
	var names []string
	text, err := os.ReadFile(filepath.Join(l.source, indexName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		paths, err := filepath.Glob(filepath.Join(l.source, "*.safetensors"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			names = append(names, filepath.Base(path))
		}
	case err != nil:
		return nil, fmt.Errorf("read the source: %w", err)
	default:
		var index struct {
			WeightMap map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal(text, &index); err != nil {
			return nil, fmt.Errorf("%s: %w", indexName, err)
		}
		names = slices.Collect(maps.Values(index.WeightMap))
	}
	if len(names) == 0 {
		return nil, errors.New("the model has no .safetensors file")
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// shard compares one weight file.
func (l *loader) shard(ctx context.Context, name string) error {
	r := ShardResult{Name: name, Begin: time.Since(l.Start)}
	begin := time.Now()
	got, err := openWeights(filepath.Join(l.mounted, name), !l.Read)
	if err != nil {
		return err
	}
	l.result.Waited += time.Since(begin)
	defer got.close()
	want, err := openWeights(filepath.Join(l.source, name), true)
	if err != nil {
		return fmt.Errorf("open the source: %w", err)
	}
	defer want.close()
	if got.size != want.size {
		return fmt.Errorf("it has %d bytes, the source %d", got.size, want.size)
	}
	if !reflect.DeepEqual(got.header, want.header) {
		return errors.New("its header differs from the source's")
	}
	slices.SortFunc(got.header.Tensors, func(a, b format.Tensor) int { return cmp.Compare(a.Name, b.Name) })
	for _, t := range got.header.Tensors {
		for off := t.Begin; off < t.End; off += step {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(step, t.End-off)
			waited, err := equal(got, want, off, n)
			if err != nil {
				return fmt.Errorf("tensor %s: %w", t.Name, err)
			}
			l.result.Waited += waited
			if l.Copy > 0 {
				select {
				case <-time.After(time.Duration(float64(n) / float64(l.Copy) * float64(time.Second))):
				case <-ctx.Done():
				}
			}
			r.Bytes += n
			if l.Loaded != nil {
				l.Loaded(n)
			}
		}
		l.result.Tensors++
	}
	r.End = time.Since(l.Start)
	l.result.Bytes += r.Bytes
	l.result.Shards = append(l.result.Shards, r)
	return nil
}
