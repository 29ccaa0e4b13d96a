//go:build linux

package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// table is a part of the page.
type table struct {
	title    string
	cells    []cell
	outcomes []*outcome // beside the cells; nil: not tried
}

const faultHead = `# What can go wrong with an upgrade

Each line is a test with real processes: an upgrade is asked for while %d connections send requests, inline and through workers,
with requests in flight that take longer than the upgrade, and while others connect, ask and close. Then what the line says goes wrong.
None of these clients ever connects again, so that everything that is lost is counted. Where a process is left that owns the state,
another upgrade follows, which must succeed. To be killed is SIGKILL.

**Reported** is what ` + "`relevo upgrade`" + ` and the report say. **Failed** are requests without a reply, **lost** connections that ended,
**refused** those that could not be made. **Owner** is who has listeners and connections behind it. **Again** is how long it took, where an upgrade was
undone, from when the old process had learned of the failure until every client that asks all the time had its next reply: 100 ms at most.

Each process is killed before each message and behind each. Where two such moments are one and the same, there is one line: a moment before a
message is the one behind the message before it, unless both have a line. ABORT comes behind SIGKILL, so for the new process it is no moment at all, and
for the old one before and behind it are the same. FOLLOW is said when the new process owns everything: for it, behind FOLLOW is as behind STARTED.

Nothing is lost as long as a process is left that has the whole state. The old one has it until it says COMMIT, the new one
from END on; what is lost is lost where one of them is killed and the other has not got it:

* The old process dies before its listeners are sent: that is the death of the proxy, as it is without an upgrade.
* The old process dies between LISTENERS and END: its connections die with it. The new process goes on with the listeners, so nobody is
  refused.
* The old process dies between END and COUNTERS: no request is lost, but what it has counted is.
* The old process dies before FOLLOW: that another upgrade was asked for is lost.
* The old process dies while it undoes an upgrade. A new one that gives up, with FAILED, has nothing to go on with; one that has the whole state goes on
  with it until SIGKILL reaches it. From there the old one is the only one again, and its death that of the proxy.
* The new process dies behind STARTED: that is the death of the proxy. The old one ends with status 1, so that whoever watches it
  starts another one.
* Nothing can be written any more while an upgrade runs: no request is lost, but ` + "`upgrade.json`" + ` and the pid file stay as they were, and what the latter
  names has ended, for systemd, too. Where that is so before an upgrade begins, it is refused.

Kinds of messages are those of [wire/handover.md](wire/handover.md). ` + "`make upgrade-faults`" + ` writes this page.
`

// writeFaults writes the page.
func writeFaults(t *testing.T, name string, tables []table) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, faultHead, faultConnections)
	for _, tab := range tables {
		fmt.Fprintf(&b, "\n## %s\n\n| what | when | reported | failed | lost | refused | owner | again ms |\n|---|---|---|--:|--:|--:|---|--:|\n", tab.title)
		for i, o := range tab.outcomes {
			c := &tab.cells[i]
			if o == nil {
				fmt.Fprintf(&b, "| %s | %s | not tried: %s | | | | | |\n", c.row, c.moment, c.defect)
				continue
			}
			again := ""
			if o.again > 0 {
				again = fmt.Sprintf("%.1f", float64(o.again)/float64(time.Millisecond))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %d | %d | %d | %s | %s |\n", c.row, c.moment, o.reported.inWords(), o.failed, o.lost, o.refused, o.owner, again)
		}
	}
	t.Log(b.String())
	if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What is another at each run, or on each machine, is not on the page.
var ofThisRun = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`runtime_dir, .*, cannot`), "runtime_dir, …, cannot"},
	{regexp.MustCompile(`(/[\w.=-]+)+/([\w.-]+)`), "…/$2"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`…/[\w.-]+ check`), "relevo check"},
	{regexp.MustCompile(`pid=\d+`), "pid=…"},
	{regexp.MustCompile(`\s+`), " "},
	{regexp.MustCompile(`\|`), "¦"},
	{regexp.MustCompile(`\{Downstreams[^}]*\}`), "{…}"},
}

func (r upgraded) inWords() string {
	if r.Outcome == "" {
		return "nothing: nobody is left"
	}
	text := r.Outcome
	if r.Step != "" && r.Outcome != "done" {
		text += " at " + r.Step
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	for _, o := range ofThisRun {
		text = o.pattern.ReplaceAllString(text, o.text)
	}
	return strings.TrimSpace(text)
}
