package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"go.yaml.in/yaml/v2"

	"github.com/relevo-proxy/relevo/server/config"
)

//go:embed openapi.yaml
var openAPI []byte

// OpenAPI is the OpenAPI document of the admin door, as JSON. The caller does not change it.
var OpenAPI = sync.OnceValue(func() []byte {
	var v yaml.MapSlice
	err := yaml.Unmarshal(openAPI, &v)
	var text, indented bytes.Buffer
	if err == nil {
		err = appendJSON(&text, v)
	}
	if err == nil {
		err = json.Indent(&indented, text.Bytes(), "", "  ")
	}
	if err != nil {
		panic(fmt.Sprintf("admin: openapi.yaml: %v", err)) // which every test of the package would meet
	}
	return append(indented.Bytes(), '\n')
})

// appendJSON writes a value of YAML as JSON, in its order, with what it shares with others in its place.
func appendJSON(b *bytes.Buffer, v any) error {
	switch v := v.(type) {
	case yaml.MapSlice:
		before, seen := byte('{'), map[string]bool{}
		for _, item := range together(v) {
			key, ok := item.Key.(string)
			if !ok || seen[key] {
				return fmt.Errorf("the key %v is no text, and needs quotes, or is there twice", item.Key)
			}
			seen[key] = true
			b.WriteByte(before)
			before = ','
			if err := appendJSON(b, key); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := appendJSON(b, item.Value); err != nil {
				return err
			}
		}
		if len(v) == 0 {
			b.WriteByte(before)
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := appendJSON(b, item); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	default:
		text, err := json.Marshal(v)
		b.Write(text)
		return err
	}
	return nil
}

// together are the fields of an object, those of its x-also among them. yaml.v2 would merge only objects that lose their order.
func together(v yaml.MapSlice) (fields yaml.MapSlice) {
	for _, item := range v {
		switch also, shared := item.Value.(yaml.MapSlice); {
		case item.Key == "x-shared":
		case item.Key == "x-also" && shared:
			fields = append(fields, together(also)...)
		default:
			fields = append(fields, item)
		}
	}
	return fields
}

// descriptions returns what says how the door is used.
func descriptions() []route {
	schema := serveFixed("application/schema+json", config.JSONSchema())
	return []route{
		{http.MethodGet, "/v1/schema", "the JSON Schema of the configuration", schema},
		{http.MethodGet, "/v1/schema.json", "the same, where the OpenAPI document looks for it", schema},
		{http.MethodGet, "/v1/openapi.json", "this API as an OpenAPI document", serveFixed("application/json", OpenAPI())},
	}
}

// serveFixed answers with what is the same as long as the process runs, which a client may keep and ask about by its ETag.
func serveFixed(kind string, body []byte) http.Handler {
	sum := sha256.Sum256(body)
	etag := quoted(hex.EncodeToString(sum[:16]))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", etag)
		if seen := r.Header.Get("If-None-Match"); seen == "*" || strings.Contains(seen, etag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(body)
	})
}
