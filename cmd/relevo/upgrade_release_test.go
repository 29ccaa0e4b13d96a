//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Other releases of this program: the same sources, of which some lines are others while it is built. A line that is not
// there any more fails the test: then it is to be said anew what another release would have there.
//
//	this  what is here
//	next  speaks versions 1 to 2; every map that it says has a field that nobody knows, every slot is longer, and behind
//	      each message comes one of a kind that nobody knows
//	far   speaks versions 8 to 9
type replacement struct{ file, from, to string }

const versions = "\tVersion    = 1\n\tMinVersion = 1\n"

var releaseChanges = map[string][]replacement{
	"this": nil,
	"next": {
		{"message.go", versions, "\tVersion    = 2\n\tMinVersion = 1\n"},
		{"encode.go", "encMode.MarshalToBuffer(m, to)", "marshalNext(m, to)"},
		{"encode.go", "return encodeHeader(to.Bytes()[at:], frame{m.kind(), files, to.Len() - at - headerLen})", `
	if err := encodeHeader(to.Bytes()[at:], frame{m.kind(), files, to.Len() - at - headerLen}); err != nil {
		return err
	}
	to.Write([]byte{headerMagic, 99, 0, 0, 1, 0, 0, 0, 0xA0})
	return nil`},
		{"slot.go", "le.AppendUint16(dst, slotSize)", "le.AppendUint16(dst, slotSize+8)"},
		{"slot.go", "return le.AppendUint64(dst, s.Tag)", "return le.AppendUint64(le.AppendUint64(dst, s.Tag), 1<<40)"},
	},
	"far": {{"message.go", versions, "\tVersion    = 9\n\tMinVersion = 8\n"}},
}

// nextFile is a file that the next release has.
const nextFile = `package handoff

import "bytes"

func marshalNext(m Message, to *bytes.Buffer) error {
	var b bytes.Buffer
	if err := encMode.MarshalToBuffer(m, &b); err != nil {
		return err
	}
	var v any
	if err := decMode.Unmarshal(b.Bytes(), &v); err != nil {
		return err
	}
	addNext(v)
	return encMode.MarshalToBuffer(v, to)
}

func addNext(v any) {
	switch v := v.(type) {
	case map[any]any:
		for _, each := range v {
			addNext(each)
		}
		v[900] = map[string][]int{"of the next release": {1, 2, 3}}
	case []any:
		for _, each := range v {
			addNext(each)
		}
	}
}
`

// releases builds them.
func releases(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	room, err := filepath.Abs("../../upgrade/handoff")
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for name, changes := range releaseChanges {
		replaced := map[string]string{}
		for i, c := range changes {
			file := filepath.Join(room, c.file)
			text, err := os.ReadFile(cmp.Or(replaced[file], file))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Count(string(text), c.from) != 1 {
				t.Fatalf("%s has %d times what release %q has otherwise, want it once: %s", c.file, strings.Count(string(text), c.from), name, c.from)
			}
			replaced[file] = filepath.Join(dir, fmt.Sprintf("%s-%d-%s", name, i, c.file))
			write(t, replaced[file], strings.Replace(string(text), c.from, c.to, 1))
		}
		if name == "next" {
			replaced[filepath.Join(room, "next.go")] = filepath.Join(dir, "next.go")
			write(t, filepath.Join(dir, "next.go"), nextFile)
		}
		overlay, err := json.Marshal(map[string]any{"Replace": replaced})
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name+".json"), string(overlay))
		programs[name] = filepath.Join(dir, name)
		build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-overlay", filepath.Join(dir, name+".json"),
			"-ldflags", "-X main.version="+name, "-o", programs[name], ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building release %q: %v\n%s", name, err, out)
		}
	}
	return programs
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
