//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// heirs is a program that hands over to itself, and does nothing else.
const heirs = `#!/bin/sh
dir=$(sed -n 's/^runtime_dir: "\(.*\)"$/\1/p' "$3")
export number=$((${number:--1} + 1))
trap 'from=$$ "$0" "$@" & exit 0' HUP
trap 'exit 0' TERM
echo $$ >"$dir/relevo.pid"
if test "$number" -gt 0; then
	printf '{"id": %d, "outcome": "done", "from": %d, "to": %d, "pause": 0.5}' "$number" "$from" $$ >"$dir/new"
	mv "$dir/new" "$dir/upgrade.json"
fi
echo '"msg":"serving"' >&2
while :; do sleep 0.01; done
`

// The processes of a chain are not this one's children when they begin, and are all the same known, waited for and ended.
func TestChainFollowsItsProcesses(t *testing.T) {
	if !canUpgrade {
		t.Skip("this program cannot be upgraded yet")
	}
	program := filepath.Join(t.TempDir(), "heirs")
	if err := os.WriteFile(program, []byte(heirs), 0o700); err != nil {
		t.Fatal(err)
	}
	group := 0
	t.Run("chain", func(t *testing.T) {
		p := newChain(t, program, "", "")
		group = p.group
		for i := range 5 {
			if r := p.upgrade(t); r.Pause != 0.5 || r.ID != uint64(i+1) || p.now.process.Pid != r.To {
				t.Errorf("upgrade %d came to process %d and the report %+v", i+1, p.now.process.Pid, r)
			}
		}
		if len(p.past) != 5 {
			t.Errorf("5 upgrades have left %d processes behind", len(p.past))
		}
		for i, g := range p.past {
			<-g.gone
			if g.err != nil || g.state.ExitCode() != 0 || g.state.Pid() != g.process.Pid {
				t.Errorf("process %d of the chain ended with %v, %v; want status 0", i+1, g.state, g.err)
			}
		}
		// The last one is left to the clean-up.
	})
	if err := syscall.Kill(-group, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("looking for processes of the chain's group comes to %v, want none to be left", err)
	}
}
