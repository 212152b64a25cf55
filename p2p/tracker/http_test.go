package tracker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/p2p/tracker"
)

// A body is a message of which nothing comes until it is ended.
type body struct {
	reading chan<- *body
	once    sync.Once
	ended   chan struct{}
}

func (b *body) Read([]byte) (int, error) {
	b.once.Do(func() { b.reading <- b })
	<-b.ended
	return 0, io.ErrUnexpectedEOF
}

// TestBodiesAtATime: only so many messages are read at a time, by what they
// may take; the others wait, and not for ever.
func TestBodiesAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = tracker.BodyRoom / tracker.MaxBody
		s := newServer()
		reading := make(chan *body, 2*room)
		var answers sync.WaitGroup
		post := func(ctx context.Context, length int64) *httptest.ResponseRecorder {
			req := httptest.NewRequestWithContext(ctx, http.MethodPost, tracker.AnnouncePath, &body{reading: reading, ended: make(chan struct{})})
			req.ContentLength = length
			rec := httptest.NewRecorder()
			answers.Go(func() { s.ServeHTTP(rec, req) })
			return rec
		}
		for range room {
			post(t.Context(), -1)
		}
		synctest.Wait()
		if len(reading) != room {
			t.Fatalf("%d messages are read, want %d", len(reading), room)
		}
		gone, cancel := context.WithCancel(t.Context())
		left, waits := post(gone, 1<<20), post(t.Context(), tracker.MaxBody)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(reading) != room || left.Code != http.StatusServiceUnavailable {
			t.Errorf("%d messages are read, want %d; who left is answered %d", len(reading), room, left.Code)
		}
		close((<-reading).ended)
		synctest.Wait()
		if len(reading) != room {
			t.Errorf("%d messages are read after one has ended, want %d", len(reading), room)
		}
		late := post(t.Context(), 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if late.Code != http.StatusServiceUnavailable {
			t.Errorf("who waited too long is answered %d", late.Code)
		}
		for len(reading) > 0 {
			close((<-reading).ended)
		}
		answers.Wait()
		if waits.Code != http.StatusBadRequest {
			t.Errorf("who waited is answered %d", waits.Code)
		}
		post(t.Context(), 2*tracker.BodyRoom) // more than is accepted takes no more room
		close((<-reading).ended)
		answers.Wait()
	})
}

// pipes is a listener that accepts what is sent to it.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// TestStalledBody: a message that stalls is given up, and a connection that
// is used again after a while is none that stalls.
func TestStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
		srv := &http.Server{Handler: newServer()}
		served := make(chan struct{})
		go func() {
			defer close(served)
			srv.Serve(ln)
		}()
		defer func() {
			srv.Close()
			<-served
			time.Sleep(time.Second) // the server's connections linger
		}()
		client, server := net.Pipe()
		defer client.Close()
		ln.conns <- server
		answers := bufio.NewReader(client)
		head := "POST " + tracker.AnnouncePath + " HTTP/1.1\r\nHost: tracker\r\nContent-Length: %d\r\n\r\n%s"
		say := func(length int, text string) *http.Response {
			t.Helper()
			fmt.Fprintf(client, head, length, text)
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			io.Copy(io.Discard, resp.Body)
			return resp
		}
		const good = `{"node":"a"}`
		for range 2 {
			if resp := say(len(good), good); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %s", resp.Status)
			}
			time.Sleep(time.Hour)
		}
		start := time.Now()
		resp := say(tracker.MaxBody, `{"node":"a","swarms":[`)
		if waited := time.Since(start); resp.StatusCode != http.StatusRequestTimeout || waited > 30*time.Second {
			t.Errorf("a stalled message is answered %s after %v", resp.Status, waited)
		}
	})
}

// TestErrRefused: a refusal is told from a tracker that has no answer.
func TestErrRefused(t *testing.T) {
	full := tracker.New(tracker.Options{Memory: 1, Logger: slog.New(slog.DiscardHandler)})
	for _, test := range []struct {
		name    string
		server  *tracker.Server
		message tracker.Announce
		refused bool
	}{
		{"a message that is wrong", newServer(), tracker.Announce{}, true},
		{"an address of no use", newServer(), tracker.Announce{Node: "a", Addr: "0.0.0.0:1"}, true},
		{"a name too long for any message", newServer(), tracker.Announce{Node: strings.Repeat("a", tracker.MaxBody)}, true},
		{"a tracker that is full", full, announceOf("a"), false},
	} {
		remote := tracker.NewClient(&http.Client{Transport: trackers{"host": test.server}}, "http://host")
		for where, announce := range map[string]func(context.Context, tracker.Announce) (tracker.Peers, error){
			"over HTTP": remote.Announce, "directly": tracker.Local{Server: test.server}.Announce,
		} {
			if _, err := announce(t.Context(), test.message); err == nil || errors.Is(err, tracker.ErrRefused) != test.refused {
				t.Errorf("%s, %s: %.300v", test.name, where, err)
			}
		}
	}
}
