package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cache/piece"
)

func TestResult(t *testing.T) {
	v := map[string]string{"ref": "<m:1>"}
	text := func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "pushed m:1")
		return err
	}
	for format, want := range map[Format]string{Text: "pushed m:1\n", JSON: `{"ref":"<m:1>"}` + "\n"} {
		var stdout, stderr strings.Builder
		out := New(&stdout, &stderr)
		out.Format = format
		if err := out.Result(v, text); err != nil {
			t.Fatal(err)
		}
		if stdout.String() != want || stderr.Len() != 0 {
			t.Errorf("%s: stdout %q, want %q; stderr %q", format, &stdout, want, &stderr)
		}
	}
}

func TestFail(t *testing.T) {
	err := WithHint(fmt.Errorf("verify m:1: %w", piece.ErrNotTrusted), "sign it with spate push --sign-key")
	var stdout, stderr strings.Builder
	out := New(&stdout, &stderr)
	if code := out.Fail(err); code != ExitNotTrusted {
		t.Errorf("exit code %d", code)
	}
	if want := "spate: verify m:1: not trusted\nhint: sign it with spate push --sign-key\n"; stderr.String() != want {
		t.Errorf("stderr %q, want %q", &stderr, want)
	}

	stderr.Reset()
	out.Format = JSON
	out.Fail(err)
	var got struct {
		Error, Hint string
		Code        int
	}
	if err := json.Unmarshal([]byte(stderr.String()), &got); err != nil {
		t.Fatalf("%v in %q", err, &stderr)
	}
	if got.Error != "verify m:1: not trusted" || got.Hint != Hint(err) || got.Code != 3 {
		t.Errorf("%+v", got)
	}

	stderr.Reset()
	if code := out.Fail(nil); code != ExitDone || stderr.Len() != 0 {
		t.Errorf("no error: exit code %d, stderr %q", code, &stderr)
	}
	if stdout.Len() != 0 {
		t.Errorf("stdout %q", &stdout)
	}
}

func TestFailDisarmsTerminalSequences(t *testing.T) {
	var stderr strings.Builder
	New(io.Discard, &stderr).Fail(errors.New("no file \x1b[2J\u202egnp.exe\u009b31m"))
	if want := "spate: no file \ufffd[2J\ufffdgnp.exe\ufffd31m\n"; stderr.String() != want {
		t.Errorf("%q, want %q", &stderr, want)
	}
}

func TestFormatFlag(t *testing.T) {
	out := New(io.Discard, io.Discard)
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.Var(&out.Format, "output", "text or json")
	if err := flags.Parse([]string{"--output=yaml"}); err == nil || out.Format != Text {
		t.Errorf("--output=yaml: %v, format %q", err, out.Format)
	}
	if err := flags.Parse([]string{"--output=json"}); err != nil || out.Format != JSON {
		t.Errorf("--output=json: %v, format %q", err, out.Format)
	}
}

func TestTable(t *testing.T) {
	table := NewTable("node", "first byte", "from peers")
	table.Row("node-1", Duration(212*time.Millisecond), Size(800<<20))
	table.Row("a\tlonger\nname", 7, Size(0))
	var b strings.Builder
	if err := table.Print(&b); err != nil {
		t.Fatal(err)
	}
	want := "node           first byte  from peers\n" +
		"node-1         212ms       800 MiB\n" +
		"a\ufffdlonger name  7           0 B\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
}

func TestText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1234 * time.Nanosecond: "1µs", 12345 * time.Microsecond: "12ms", 1234 * time.Millisecond: "1.23s",
		45678 * time.Millisecond: "45.7s", 123456 * time.Millisecond: "2m3s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{-1: "0 B", 0: "0 B", 1 << 30: "1.00 GiB", 145410000000: "135 GiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	if got := Speed(100<<20, 2*time.Second); got != "50.0 MiB/s" {
		t.Errorf("Speed = %q", got)
	}
	if got := Speed(1, 0); got != "" {
		t.Errorf("Speed in no time = %q", got)
	}
}
