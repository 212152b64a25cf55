package tracker_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

func swarmID(i int) (id tracker.SwarmID) {
	binary.BigEndian.PutUint32(id[:], uint32(i))
	return id
}

// heap returns the bytes in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemory lets hostile nodes announce as much as they can, in the shapes
// that cost most, and measures.
func TestMemory(t *testing.T) {
	const memory = 4 << 20
	const maxPieces = 4 * piece.TargetPieces
	lease := func(s *tracker.Server, node string, id tracker.SwarmID, want int) error {
		_, err := s.Lease(tracker.LeaseRequest{Node: node, Swarm: id, Want: want, Max: 64})
		return err
	}
	for name, attack := range map[string]func(s *tracker.Server, k int) error{
		"large swarms": func(s *tracker.Server, k int) error {
			_, err := s.Announce(tracker.Announce{Node: fmt.Sprint(k), Swarms: []tracker.Holding{{Swarm: swarmID(k), Pieces: maxPieces}}})
			return err
		},
		"small swarms": func(s *tracker.Server, k int) error {
			_, err := s.Announce(tracker.Announce{Node: fmt.Sprint(k), Swarms: []tracker.Holding{{Swarm: swarmID(k), Pieces: 1}}})
			return err
		},
		"nodes of one small swarm": func(s *tracker.Server, k int) error {
			name := fmt.Sprintf("%0253d", k)
			_, err := s.Announce(tracker.Announce{Node: name, Addr: name + ":65535", Swarms: []tracker.Holding{{Pieces: 1, Have: bits(1)}}})
			return err
		},
		"nodes of one large swarm": func(s *tracker.Server, k int) error {
			have := bits(maxPieces)
			for i := range have {
				have[i] = byte(i * k)
			}
			_, err := s.Announce(tracker.Announce{Node: fmt.Sprint(k), Swarms: []tracker.Holding{{Pieces: maxPieces, Have: have}}})
			if err == nil {
				_, err = s.Lease(tracker.LeaseRequest{Node: fmt.Sprint(k), Want: -1, Done: []int{k, 7 * k}})
			}
			return err
		},
		"leases": func(s *tracker.Server, k int) error {
			const perSwarm = maxPieces / 64
			id, at := swarmID(k/perSwarm), k%perSwarm
			if at == 0 {
				if _, err := s.Announce(tracker.Announce{Node: fmt.Sprint(k / perSwarm), Swarms: []tracker.Holding{{Swarm: id, Pieces: maxPieces}}}); err != nil {
					return err
				}
			}
			return lease(s, fmt.Sprint(k/perSwarm), id, 64*at)
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			s := tracker.New(tracker.Options{Memory: memory, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
			honest := tracker.Announce{Node: "honest", Swarms: []tracker.Holding{{Swarm: tracker.SwarmID{0xff}, Pieces: 1000}}}
			if _, err := s.Announce(honest); err != nil {
				t.Fatal(err)
			}
			before := heap()
			accepted := 0
			for attack(s, accepted) == nil {
				if accepted++; accepted > memory/64 {
					t.Fatalf("%d messages are accepted, without an end", accepted)
				}
			}
			used := heap() - before
			t.Logf("%d messages, %.1f MiB", accepted, float64(used)/(1<<20))
			if used > 3*memory/2 {
				t.Errorf("%d bytes are used, of %d allowed", used, memory)
			}
			if err := s.Audit(); err != nil {
				t.Error(err)
			}
			// Who is known already goes on, and when the others are gone there is room again.
			if _, err := s.Announce(honest); err != nil {
				t.Errorf("a known node is refused: %v", err)
			}
			now = now.Add(4*tracker.DefaultInterval + 1)
			if _, err := s.Announce(honest); err != nil {
				t.Errorf("a node that was away is refused: %v", err)
			}
			if err := attack(s, 0); err != nil {
				t.Errorf("there is no room again: %v", err)
			}
			if err := s.Audit(); err != nil {
				t.Error(err)
			}
			runtime.KeepAlive(s)
		})
	}
}

// TestMessageMemory: a message takes memory in proportion to its length, whatever it says.
func TestMessageMemory(t *testing.T) {
	id := strings.Repeat("00", 32)
	many := func(one string, n int) string { return strings.TrimSuffix(strings.Repeat(one+",", n), ",") }
	var named []string
	for i := range 4096 {
		named = append(named, fmt.Sprintf(`{"swarm":"%064x","pieces":65536}`, i))
	}
	for name, m := range map[string]struct {
		path, body string
		status     int
	}{
		"empty swarms":              {tracker.AnnouncePath, `{"node":"a","swarms":[` + many("{}", 512<<10) + `]}`, http.StatusBadRequest},
		"swarms twice":              {tracker.AnnouncePath, `{"node":"a","swarms":[{}],"swarms":[` + many("{}", 512<<10) + `]}`, http.StatusBadRequest},
		"all large swarms":          {tracker.AnnouncePath, `{"node":"a","swarms":[` + strings.Join(named, ",") + `]}`, http.StatusServiceUnavailable},
		"a bitmap":                  {tracker.AnnouncePath, `{"node":"a","swarms":[{"have":"` + strings.Repeat("A", 2<<20) + `"}]}`, http.StatusBadRequest},
		"depth":                     {tracker.AnnouncePath, strings.Repeat(`[`, 1<<20), http.StatusBadRequest},
		"swarms of depth":           {tracker.AnnouncePath, `{"swarms":` + strings.Repeat(`[`, 1<<20), http.StatusBadRequest},
		"an oversize announce":      {tracker.AnnouncePath, `{"node":"` + strings.Repeat("a", tracker.MaxBody), http.StatusRequestEntityTooLarge},
		"reports":                   {tracker.LeasePath, `{"node":"a","swarm":"` + id + `","done":[` + many("0", 400<<10) + `]}`, http.StatusBadRequest},
		"an oversize lease request": {tracker.LeasePath, `{"node":"a","done":[` + many("0", 1<<20), http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			s := tracker.New(tracker.Options{Logger: slog.New(slog.DiscardHandler)})
			req := httptest.NewRequest(http.MethodPost, m.path, strings.NewReader(m.body))
			rec := httptest.NewRecorder()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s.ServeHTTP(rec, req)
			runtime.ReadMemStats(&after)
			if rec.Code != m.status {
				t.Errorf("status %d: %.200s; want %d", rec.Code, rec.Body, m.status)
			}
			took := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d bytes for a message of %d", took, len(m.body))
			if took > 32*uint64(len(m.body)) {
				t.Errorf("%d bytes were allocated for a message of %d", took, len(m.body))
			}
			if err := s.Audit(); err != nil {
				t.Error(err)
			}
		})
	}
}

// fuzzed is what the fuzz targets know about a server: two nodes of one swarm.
func fuzzed(t testing.TB) *tracker.Server {
	s := tracker.New(tracker.Options{Memory: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	for _, node := range []string{"a", "b"} {
		_, err := s.Announce(tracker.Announce{Node: node, Addr: node + ":1", Swarms: []tracker.Holding{{Pieces: 20, Have: bits(20, 1, 2)}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// feed posts body and checks the answer and the server.
func feed(t *testing.T, s *tracker.Server, path string, body []byte) {
	req := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, req)
	switch rec.Code {
	case http.StatusOK:
		if !json.Valid(rec.Body.Bytes()) {
			t.Errorf("the answer is no JSON: %q", rec.Body)
		}
	case http.StatusBadRequest, http.StatusConflict, http.StatusServiceUnavailable, http.StatusRequestEntityTooLarge:
		if rec.Body.Len() > 1<<10+len(body) {
			t.Errorf("an error of %d bytes", rec.Body.Len())
		}
	default:
		t.Errorf("status %d: %s", rec.Code, rec.Body)
	}
	if err := s.Audit(); err != nil {
		t.Error(err)
	}
	// The others go on.
	if _, err := s.Lease(tracker.LeaseRequest{Node: "b", Want: -1}); err != nil && !bytes.Contains(body, []byte(`"b"`)) {
		t.Errorf("the next honest request: %v", err)
	}
}

func FuzzAnnounce(f *testing.F) {
	for _, a := range []tracker.Announce{
		{},
		{Node: "a", Addr: "a:1", Swarms: []tracker.Holding{{Pieces: 20, Have: bits(20, 3, 19)}}},
		{Node: "a", Swarms: []tracker.Holding{{Pieces: 21}}},
		{Node: "c", Addr: "[::1]:9", Swarms: []tracker.Holding{{Swarm: swarmID(1), Pieces: 65536}, {Swarm: swarmID(2), Pieces: 1}}},
	} {
		b, err := json.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"node":"a","swarms":null}`))
	f.Add([]byte(`{"node":"a","swarms":{}}`))
	f.Add([]byte(`{"node":"a","swarms":[{"pieces":1e3}]}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, body []byte) { feed(t, fuzzed(t), tracker.AnnouncePath, body) })
}

func FuzzLease(f *testing.F) {
	for _, r := range []tracker.LeaseRequest{
		{},
		{Node: "a", Want: -1, Max: 2},
		{Node: "a", Want: 19, Max: 64, Unheld: true, Done: []int{0, 1}, Failed: []int{3}},
		{Node: "b", Want: 20, Max: 1 << 40},
		{Node: "c", Swarm: swarmID(1), Want: -1},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"node":"a","want":1e99}`))
	f.Add([]byte(`{"node":"a","done":[-1]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := fuzzed(t)
		feed(t, s, tracker.LeasePath, body)
		feed(t, s, tracker.LeasePath, body) // again, with what the first one left
	})
}

// FuzzAnswer feeds a client with foreign answers.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"interval":10,"swarms":{"`+strings.Repeat("00", 32)+`":[{"node":"a","addr":"b:1"}]}}`))
	f.Add(200, []byte(`{"first":1,"count":2,"open":3}`))
	f.Add(200, []byte(`{"interval":-1}`))
	f.Add(200, []byte(`null`))
	f.Add(409, []byte(``))
	f.Add(500, bytes.Repeat([]byte("x"), 4096))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c := tracker.NewClient(&http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}, nil
		})}, "http://tracker")
		if p, err := c.Announce(t.Context(), tracker.Announce{}); err == nil && p.Interval < 0 {
			t.Errorf("interval %v", time.Duration(p.Interval))
		} else if err != nil && len(err.Error()) > 2048 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		if _, err := c.Lease(t.Context(), tracker.LeaseRequest{}); err != nil && len(err.Error()) > 2048 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
