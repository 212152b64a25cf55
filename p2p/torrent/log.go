package torrent

import (
	"context"
	"log/slog"
)

// quiet takes the engine's messages one level down: what is news to
// anacrolix/torrent is a detail of one swarm here.
type quiet struct{ slog.Handler }

const levelStep = slog.LevelInfo - slog.LevelDebug

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, l-levelStep)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level -= levelStep
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
