// Package model packs a directory as a model in the CNCF ModelPack format, one
// layer a file, and unpacks what it or others packed.
//
// Packing reads every file once: while the bytes go to the registry they become
// the layer's digest, the object's pieces and its root. The same files make the
// same artifact on any machine, so no owner and no time of a file is recorded,
// and of its mode only whether it can be run.
package model

import (
	"time"
)

// MaxFiles is how many files a model may have.
const MaxFiles = 2048

// MaxManifest is how large a model's manifest may be, in bytes, as registries have it.
const MaxManifest = 4 << 20

// Options change how Pack and Unpack work. The zero value is good.
type Options struct {
	// Concurrency is how many streams go to or come from the registry at once.
	// Default 2 for Pack, where the processor sets the pace, and 8 for Unpack.
	Concurrency int

	// Progress is told what has happened, by several goroutines at once. It must
	// not block for long: the work waits for it. Nil means that nobody cares.
	Progress func(Event)

	// Silence is how long a stream to Unpack may bring nothing before it counts
	// as broken off. Default one minute.
	Silence time.Duration

	// Name is the name of the model that Pack records. By default it is the one
	// that config.json gives, if any.
	Name string

	// CreatedAt is the time that Pack records. By default there is none.
	CreatedAt time.Time
}

func (o Options) progress(e Event) {
	if o.Progress != nil {
		o.Progress(e)
	}
}

// createdAt returns CreatedAt as documents have it.
func (o Options) createdAt() time.Time { return o.CreatedAt.UTC().Truncate(time.Second) }

// An Event tells how far Pack or Unpack is. The first one is Planned. Then come,
// for each file, Started, any number of Advanced and Finished, those of one file
// in order. An error ends the events: it is told by Pack and Unpack alone.
type Event struct {
	Step Step
	Path string // the file; empty for Planned

	// Done of Size bytes are done: of the file, or of all files for Planned.
	// Where a layer is an archive they are bytes of the archive. Done falls back
	// when a file has to be fetched anew.
	Done, Size int64

	Files int // how many files there are; for Planned only
}

// A Step is what an Event tells.
type Step int

const (
	Planned  Step = iota // it is known what there is to do
	Started              // a file is under way
	Advanced             // more of a file is done
	Finished             // a file is done, or was already there: then Finished follows Started at once
)

// String returns the step in lower case, as JSON output has it.
func (s Step) String() string {
	return [...]string{"planned", "started", "advanced", "finished"}[s]
}
