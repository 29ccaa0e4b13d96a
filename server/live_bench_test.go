package server_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

// One change of a weight, kept on disk beside as many revisions as are kept.
func BenchmarkChange(b *testing.B) {
	folder := b.TempDir()
	file, text := filepath.Join(folder, "relevo.yaml"), fmt.Appendf(nil, liveText, folder)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		b.Fatal(err)
	}
	origin, err := server.OpenOrigin(file, text, false)
	if err != nil {
		b.Fatal(err)
	}
	s, stop := runOptions(b, server.Options{Config: origin.Config(), Origin: origin, Log: zap.NewNop()})
	n := 0
	change := func() {
		n++
		_, err := s.Change(b.Context(), admin.Edit{
			Match: func(*config.Document) error { return nil },
			Edit: func(d *config.Document) (*config.Document, error) {
				return d.Put("clusters/echo/endpoints/127.0.0.1:1/weight", fmt.Appendf(nil, "%d", 11+n%900))
			},
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for range 200 {
		change()
	}
	b.ReportAllocs()
	for b.Loop() {
		change()
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}
