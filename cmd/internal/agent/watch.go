package agent

import (
	"math"
	"time"
)

// watchWindow is over how long a Watch takes its rates.
const watchWindow = 5 * time.Second

// A Watch makes rates of one Status after the other of the same agent. The zero
// Watch is ready. It is for one goroutine.
type Watch struct{ seen []Status } // of the last watchWindow and one before, oldest first

// A View is a Status and how fast it changes.
type View struct {
	Status
	Rates            // of the node's link: all traffic
	Watched []Motion `json:"watched"` // as Artifacts
}

// A Motion is how an artifact changes, and those of its files whose swarms are
// at work: that are not whole, or sent something lately.
type Motion struct {
	Reference string `json:"reference"`
	Rates
	Forecast
	Active []FileMotion `json:"active"`
}

// A FileMotion is how one file of an artifact changes.
type FileMotion struct {
	ObjectStatus
	Rates
	Forecast
}

// Rates are bytes a second, over the last five seconds or since the Watch began.
type Rates struct {
	Down int64 `json:"downRate"`
	Up   int64 `json:"upRate"`
}

// A Forecast says how long what is absent takes, in seconds; -1 is not known,
// or never.
type Forecast struct {
	ETA   float64 `json:"etaSeconds"`   // as fast as it comes now
	Bound float64 `json:"boundSeconds"` // with the node's whole link (Status.LinkRate) for it alone
}

// Add takes the next Status. A first one has no rates yet.
func (w *Watch) Add(s Status) View {
	for len(w.seen) > 1 && s.Time.Sub(w.seen[1].Time) >= watchWindow {
		w.seen = w.seen[1:]
	}
	w.seen = append(w.seen, s)
	old := w.seen[0]
	took := s.Time.Sub(old.Time)
	v := View{Status: s, Rates: ratesOf(took, s.Received-old.Received, s.Sent-old.Sent), Watched: []Motion{}}
	for _, art := range s.Artifacts {
		was := find(old.Artifacts, func(x ArtifactStatus) bool { return x.Digest == art.Digest }, art)
		m := Motion{Reference: art.Reference, Active: []FileMotion{}}
		for _, f := range art.Files {
			before := find(was.Files, func(x ObjectStatus) bool { return x.Digest == f.Digest }, f)
			r := ratesOf(took, f.Origin+f.FromPeers-before.Origin-before.FromPeers, f.Served-before.Served)
			m.Down += r.Down
			m.Up += r.Up
			if f.Held < f.Pieces || r != (Rates{}) {
				m.Active = append(m.Active, FileMotion{f, r, forecast(f.Size-f.Present, r.Down, s.LinkRate)})
			}
		}
		m.Forecast = forecast(art.Size-art.Present, m.Down, s.LinkRate)
		v.Watched = append(v.Watched, m)
	}
	return v
}

// find returns the first x of list that is the one, or other.
func find[T any](list []T, is func(T) bool, other T) T {
	for _, x := range list {
		if is(x) {
			return x
		}
	}
	return other
}

// ratesOf makes rates of what came down and went up. Counts of an object that
// was opened anew begin anew, and count from their next view on.
func ratesOf(took time.Duration, down, up int64) Rates {
	if took <= 0 {
		return Rates{}
	}
	per := func(n int64) int64 { return int64(float64(max(n, 0)) / took.Seconds()) }
	return Rates{per(down), per(up)}
}

func forecast(absent, rate, linkRate int64) Forecast {
	return Forecast{ETA: seconds(absent, rate), Bound: seconds(absent, linkRate)}
}

// seconds returns how long n bytes take, to a tenth, or -1.
func seconds(n, rate int64) float64 {
	switch {
	case n == 0:
		return 0
	case rate == 0:
		return -1
	}
	return math.Round(10*float64(n)/float64(rate)) / 10
}
