package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"pgregory.net/rapid"
)

func jsonSchema(t *testing.T) *jsonschema.Resolved {
	t.Helper()
	var schema jsonschema.Schema
	if err := json.Unmarshal(JSONSchema(), &schema); err != nil {
		t.Fatalf("the JSON Schema is none: %v", err)
	}
	resolved, err := schema.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	if err != nil {
		t.Fatalf("the JSON Schema is broken: %v", err)
	}
	return resolved
}

func validate(t fatal, schema *jsonschema.Resolved, d *Document) error {
	t.Helper()
	var v any
	if err := json.Unmarshal(d.JSON(), &v); err != nil {
		t.Fatalf("a document's JSON is none: %v", err)
	}
	return schema.Validate(v)
}

// The schema takes what Parse takes.
func TestJSONSchemaTakesValidFiles(t *testing.T) {
	schema := jsonSchema(t)
	paths := append(files(t, "good"), "trial.yaml")
	for _, pattern := range []string{"examples/*.yaml", "examples/sidecar/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s finds %v, %v", pattern, found, err)
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		if err := validate(t, schema, document(t, read(t, path))); err != nil {
			t.Errorf("the JSON Schema refuses %s: %v", path, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := drawDocument(t)
		if err := validate(t, schema, d); err != nil {
			t.Fatalf("the JSON Schema refuses a valid configuration: %v\n%s", err, d.JSON())
		}
	})
}

// Of the bad files it refuses all that are bad in a way that a schema can tell.
func TestJSONSchemaRefusesBadFiles(t *testing.T) {
	cannotTell := []string{"admin_open.yaml", "admin_plain.yaml", "duplicates.yaml", "override.yaml"}
	unreadable := []string{"bomb.yaml", "documents.yaml", "syntax.yaml", "loop.yaml"}
	schema := jsonSchema(t)
	for _, path := range files(t, "bad") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		d, err := ParseDocument(data)
		if refused := err != nil; refused != slices.Contains(unreadable, filepath.Base(path)) {
			t.Errorf("%s cannot be read: %v, %v", path, refused, err)
		}
		if err != nil {
			continue
		}
		err = validate(t, schema, d)
		if refused := err != nil; refused == slices.Contains(cannotTell, filepath.Base(path)) {
			t.Errorf("the JSON Schema refuses %s: %v, %v", path, refused, err)
		}
	}
}

// One fault at a time, each in a configuration that is valid without.
func TestJSONSchemaRefuses(t *testing.T) {
	schema := jsonSchema(t)
	valid := document(t, order)
	if err := validate(t, schema, valid); err != nil {
		t.Fatalf("the JSON Schema refuses what is valid: %v", err)
	}
	for _, patch := range []string{
		`{"colour": 1}`, `{"clusters": []}`, `{"listeners": null}`, `{"log": {"level": "warning"}}`, `{"log": {"levle": "warn"}}`,
		`{"stop_timeout": 3}`, `{"stop_timeout": "3"}`, `{"stop_timeout": "none"}`, `{"max_buffered": "1GB"}`, `{"max_buffered": 1}`,
		`{"workers": {"max": 0}}`, `{"workers": {"max": "many"}}`, `{"workers": {"queue": 1000001}}`, `{"runtime_dir": "run"}`, `{"admin": {}}`,
		`{"access_log": {"format": "text", "fields": ["time"]}}`, `{"access_log": {"template": "{time}"}}`, `{"access_log": {"sample": "1.234%"}}`,
		`{"access_log": {"fields": ["time", "time"]}}`, `{"access_log": {"fields": ["tiem"]}}`, `{"access_log": {"path": "log"}}`,
		`{"routes": [{"name": "r", "rules": [{}]}]}`, `{"routes": [{"name": "r", "rules": [{"cluster": "a", "reply": {"status": "ERROR"}}]}]}`,
		`{"routes": [{"name": "r s", "rules": [{"cluster": "a"}]}]}`, `{"routes": [{"name": "r", "rules": [{"cluster": "a", "retry": {"on": []}}]}]}`,
		`{"routes": [{"name": "r", "rules": [{"cluster": "a", "match": {"service": {"exact": "a", "regex": "b"}}}]}]}`,
		`{"routes": [{"name": "r", "rules": [{"cluster": "a", "match": {"header": {"": "b"}}}]}]}`,
		`{"routes": [{"name": "r", "rules": [{"cluster": "a", "filters": [{"rate_limit": {"rate": 1, "by": "header"}}]}]}]}`,
		`{"routes": [{"name": "r", "rules": [{"cluster": "a", "filters": [{"rate_limit": {"rate": 1, "header": "x"}}]}]}]}`,
		`{"routes": [{"name": "r", "rules": [{"cluster": "a", "filters": [{"fault": {}}]}]}]}`,
		`{"listeners": [{"name": "a", "address": "a", "protocol": "bolt"}]}`, `{"listeners": [{"name": "a", "address": ":1", "protocol": "bolt", "max_age": "1h"}]}`,
		`{"listeners": [{"name": "a", "address": ":1", "protocol": "bolt", "connection_filters": [{"source": {"allow": []}}]}]}`,
	} {
		d, err := valid.Patch("", []byte(patch))
		if err != nil {
			t.Fatalf("%s: %v", patch, err)
		}
		if _, err := d.Config(); err == nil {
			t.Errorf("a configuration with %s is valid", patch)
		}
		if err := validate(t, schema, d); err == nil {
			t.Errorf("the JSON Schema takes a configuration with %s", patch)
		}
	}
}

// Every type of the tree has a definition, and every field a property.
func TestJSONSchemaIsWhole(t *testing.T) {
	var schema struct {
		Properties map[string]any
		Defs       map[string]struct{ Properties map[string]any } `json:"$defs"`
	}
	if err := json.Unmarshal(JSONSchema(), &schema); err != nil {
		t.Fatal(err)
	}
	for typ, fields := range tree() {
		properties := schema.Defs[typ.Name()].Properties
		if typ == reflect.TypeFor[Config]() {
			properties = schema.Properties
		}
		for _, f := range fields {
			if _, ok := properties[f.name]; !ok {
				t.Errorf("the JSON Schema lacks %s of %v", f.name, typ)
			}
		}
		if len(properties) != len(fields) {
			t.Errorf("the JSON Schema has %d properties of %v, want %d", len(properties), typ, len(fields))
		}
	}
}
