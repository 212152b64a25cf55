package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/telemetry"
	"github.com/spate-project/spate/p2p"
)

// The spans of an agent: mount and pull hold admit and, of a pull, what it
// waits for. A read of a mount is a span when it has to wait; it holds a fetch
// for each piece, which holds the leases and draws that the piece needed.
// Leases and draws of the fill stand alone.

// onStall counts each read that waits, and makes it a span.
func onStall(t *telemetry.Tracer, observe func(seconds float64)) cache.StallFunc {
	return func(ctx context.Context, d piece.Digest, pieces int) (context.Context, func(time.Duration, error)) {
		ctx, ended := t.Start(ctx, "read", slog.String("object", d.String()), slog.Int("pieces", pieces))
		return ctx, func(took time.Duration, err error) {
			observe(took.Seconds())
			ended(err)
		}
	}
}

// observer makes each step of the mesh a span. It is nil where no trace is kept.
func observer(t *telemetry.Tracer) p2p.Observer {
	if t == nil {
		return nil
	}
	return func(ctx context.Context, s p2p.Step) (context.Context, func(p2p.Outcome)) {
		attrs := []slog.Attr{slog.String("object", s.Object.String()), slog.Int("wanted", s.Count)}
		if s.First >= 0 {
			attrs = append(attrs, slog.Int("piece", s.First))
		}
		ctx, ended := t.Start(ctx, string(s.Kind), attrs...)
		return ctx, func(o p2p.Outcome) {
			attrs := []slog.Attr{slog.Int("pieces", o.Count), slog.Int64("bytes", o.Bytes)}
			if o.Source != "" {
				attrs = append(attrs, slog.String("source", o.Source))
			}
			ended(o.Err, attrs...)
		}
	}
}
