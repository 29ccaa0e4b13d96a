package handoff

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "append the frames of messages that have other fields now to testdata")

// The format of version 1, byte for byte: each kind with all its fields set, a line for each release that had other ones. Two
// programs of the same sources would agree on anything. Whoever adds a field appends a line with -update; a line that is
// there is never changed and never taken out, because releases write it.
func TestFramesOfVersion1(t *testing.T) {
	for _, k := range kinds(t) {
		t.Run(k.String(), func(t *testing.T) {
			file := filepath.Join("testdata", "v1", k.String()+".hex")
			text, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			lines := strings.Fields(string(text))
			full := newMessage(k)
			fill(reflect.ValueOf(full).Elem(), k.String())
			now := hex.EncodeToString(framed(t, full))
			if *update && !slices.Contains(lines, now) {
				lines = append(lines, now)
				if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if len(lines) == 0 || lines[len(lines)-1] != now {
				t.Errorf("with all fields set it is now\n%s\nwhich is not the last line of %s", now, file)
			}
			for i, line := range lines {
				frame, err := hex.DecodeString(line)
				if err != nil {
					t.Fatalf("%s:%d: %v", file, i+1, err)
				}
				m, err := decoded(frame)
				if err != nil {
					t.Errorf("%s:%d: %v", file, i+1, err)
					continue
				}
				if !within(reflect.ValueOf(m).Elem(), reflect.ValueOf(full).Elem()) {
					t.Errorf("%s:%d: it means something else now (-written +read):\n%s", file, i+1, cmp.Diff(full, m))
				}
				if again := framed(t, m); !bytes.Equal(again, frame) {
					t.Errorf("%s:%d: it is written otherwise now:\n%x", file, i+1, again)
				}
			}
		})
	}
}

// fill sets all that is in v to something that is its own: texts to the name of their field, numbers to what comes of the whole
// path; where there is a sign, half of them have it.
func fill(v reflect.Value, path string) {
	name := path[strings.LastIndexByte(path, '.')+1:]
	n := crc32.ChecksumIEEE([]byte(path)) | 1
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(name)
	case reflect.Int, reflect.Int32, reflect.Int64:
		x := int64(int32(n))
		if v.Kind() != reflect.Int32 {
			x <<= 20
		}
		v.SetInt(x)
	case reflect.Uint8:
		v.SetUint(uint64(n % 256))
	case reflect.Uint32:
		v.SetUint(uint64(n))
	case reflect.Uint, reflect.Uint64:
		v.SetUint(uint64(n) << 20)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), path)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(name))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), path)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), path+strings.Repeat("+", i))
		}
	case reflect.Struct:
		for f, field := range v.Fields() {
			fill(field, path+"."+f.Name)
		}
	default:
		panic(path + " is of a type that no message has had yet")
	}
}

// within says that full has all that is in v; a field that is zero is not in it.
func within(v, full reflect.Value) bool {
	if v.IsZero() {
		return true
	}
	switch v.Kind() {
	case reflect.Pointer:
		return within(v.Elem(), full.Elem())
	case reflect.Struct:
		for f, field := range v.Fields() {
			if !within(field, full.FieldByIndex(f.Index)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		if v.Len() != full.Len() {
			return false
		}
		for i := range v.Len() {
			if !within(v.Index(i), full.Index(i)) {
				return false
			}
		}
		return true
	default:
		return v.Equal(full)
	}
}
