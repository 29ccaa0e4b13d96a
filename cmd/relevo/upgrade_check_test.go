//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is checked is what the new process would load: also a revision that is in memory, in place of the file, and its folders.
func TestUpgradeChecksTheRevisionInMemory(t *testing.T) {
	address, line := adminOf(t)
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line+"state_dir: none\n")
	folder := filepath.Join(t.TempDir(), "folder")
	tokens := filepath.Join(folder, "tokens")
	restore := func() {
		t.Helper()
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, tokens, "")
	}
	for _, c := range []struct{ section, patch, names string }{
		{"access_log", fmt.Sprintf(`{"path": %q}`, filepath.Join(folder, "access.log")), folder},
		{"admin", fmt.Sprintf(`{"tcp": {"address": %q, "tokens_file": %q}}`, steadyAddress(t), tokens), tokens},
	} {
		restore()
		said(t, address, "patch", c.section, c.patch)
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		p.ask(t)
		r := p.report(t)
		if r.Outcome != "refused" || r.Step != "preflight" || !strings.Contains(r.text, "check --as-started -c -") || !strings.Contains(r.text, c.names) {
			t.Errorf("a revision that names what is gone, %s: reported is\n%s", c.names, r.text)
		}
		p.last = r.ID
	}
	restore()
	p.upgrade(t)
	p.stop(t)
}
