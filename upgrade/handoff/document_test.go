package handoff

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// The document lists every message and every part with the keys that the code has.
func TestDocumentListsEveryKey(t *testing.T) {
	b, err := os.ReadFile("../../docs/wire/handover.md")
	if err != nil {
		t.Fatal(err)
	}
	document := string(b)
	seen := map[reflect.Type]bool{}
	// row returns the fields of a struct as the document has them, and looks at the structs in it.
	var row func(typ reflect.Type) string
	row = func(typ reflect.Type) string {
		seen[typ] = true
		var fields []string
		for f := range typ.Fields() {
			key, _, _ := strings.Cut(f.Tag.Get("cbor"), ",")
			field := key + " " + f.Name
			part, more := f.Type, ""
			if part.Kind() == reflect.Slice {
				part, more = part.Elem(), " ..."
			}
			if part.Kind() == reflect.Pointer {
				part = part.Elem()
			}
			if part.Kind() == reflect.Struct {
				field += ": " + part.Name() + more
				if !seen[part] {
					if want := fmt.Sprintf("| %s | %s |\n", part.Name(), row(part)); !strings.Contains(document, want) {
						t.Errorf("docs/wire/handover.md does not have the row\n%s", want)
					}
				}
			}
			fields = append(fields, field)
		}
		if len(fields) == 0 {
			return "none"
		}
		return strings.Join(fields, ", ")
	}
	for _, k := range kinds(t) {
		fields := row(reflect.TypeOf(newMessage(k)).Elem())
		found := false
		for _, from := range []string{"old", "new", "both"} {
			found = found || strings.Contains(document, fmt.Sprintf("| %d | %s | %s | %s |\n", k, k, from, fields))
		}
		if !found {
			t.Errorf("docs/wire/handover.md does not have the row\n| %d | %s | ... | %s |", k, k, fields)
		}
	}
}
