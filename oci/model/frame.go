package model

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/spate-project/spate/oci"
)

// tarBlock is the unit of a tar, in bytes.
const tarBlock = 512

// A frame is what a tar with one file has before and behind the file's bytes.
// The zero value is that of a file which is its layer as it is.
type frame struct{ head, tail []byte }

// frameOf returns the frame of a plain tar that holds src and, so that whoever
// unpacks it makes the same directories each time, those that it is in. The tar
// depends on nothing but name, mode and bytes.
func frameOf(src source) (frame, error) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	var dirs []string
	for dir := path.Dir(src.name); dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	for _, dir := range slices.Backward(dirs) {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			return frame{}, fmt.Errorf("write a tar: %w", err)
		}
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: src.name, Mode: int64(src.mode), Size: src.stamp.size, ModTime: time.Unix(0, 0),
	}
	if err := w.WriteHeader(h); err != nil {
		return frame{}, fmt.Errorf("write a tar: %w", err)
	}
	padding := -src.stamp.size & (tarBlock - 1)
	return frame{head: head.Bytes(), tail: make([]byte, padding+2*tarBlock)}, nil
}

// around returns the layer of a file whose bytes data has.
func (f frame) around(data io.Reader) io.Reader {
	if f.size() == 0 {
		return data
	}
	return io.MultiReader(bytes.NewReader(f.head), data, bytes.NewReader(f.tail))
}

// size returns how many bytes a layer has more than its file.
func (f frame) size() int64 { return int64(len(f.head) + len(f.tail)) }

func (f frame) packing() string {
	if f.size() == 0 {
		return oci.PackingRaw
	}
	return oci.PackingTar
}
