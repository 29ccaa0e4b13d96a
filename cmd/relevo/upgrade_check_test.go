//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is checked is what the new process would load: also a revision that is in memory, in place of the file.
func TestUpgradeChecksTheRevisionInMemory(t *testing.T) {
	address, line := adminOf(t)
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line+"state_dir: none\n")
	tokens := filepath.Join(t.TempDir(), "tokens")
	write(t, tokens, "")
	said(t, address, "patch", "admin", fmt.Sprintf(`{"tcp": {"address": %q, "tokens_file": %q}}`, steadyAddress(t), tokens))
	if err := os.Remove(tokens); err != nil {
		t.Fatal(err)
	}
	p.ask(t)
	r := p.report(t)
	if r.Outcome != "refused" || r.Step != "preflight" || !strings.Contains(r.text, "check -c -") || !strings.Contains(r.text, tokens) {
		t.Errorf("a revision that names a file which is gone: reported is\n%s", r.text)
	}
	p.last = r.ID
	write(t, tokens, "")
	p.upgrade(t)
	p.stop(t)
}
