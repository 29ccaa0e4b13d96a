//go:build linux

package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin/admintest"
)

var update = flag.Bool("update", false, "rewrite the output in docs/*.md that is not as documented")

// Documents are toured: what they tell to type is typed, in order, in one shell's surroundings, and what comes out must be
// what stands there. Go test -run Tours -update writes it anew where it is not.
//
// In a page these are run:
//
//	    $ COMMAND            in an indented block, with the output below it; a line that ends in \ goes on in the next. What ends
//	    OUTPUT               in & is a process that stays; the tour waits until it serves, if it does. What follows events ends
//	                         with what stands there. What is exported is so from then on. A line ... stands for any lines.
//	<!-- $ COMMAND -->       the same without output, and readers do not see it
//	<!-- file PATH -->       the fenced block below is what this file holds
//	<!-- not run -->         the indented block below is left alone: say there why, as in <!-- not run: needs systemd -->
//
// /etc/relevo, /run/relevo and /var/lib/relevo are folders of the test, and addresses in files and commands are free ones of this host.
// There are certificates: /etc/relevo/tls.crt with tls.key, issued by ca.crt, and ops.crt with ops.key, issued by /etc/relevo/clients.crt.
// Times, pids, users, hashes, secrets, ids of connections, durations below a second, versions and the ports of clients may be others than
// in the page.
func TestToursOfDocuments(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not on PATH: the tours need it")
	}
	for _, page := range []string{"api.md", "first-hour.md"} {
		t.Run(page, func(t *testing.T) {
			file := filepath.Join("../../docs", page)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			now := newTour(t, string(text)).run(t)
			if *update && now != string(text) {
				if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// What docs/first-hour.md says of a reason is what docs/limits.md promises.
func TestReasonsOfTheFirstHour(t *testing.T) {
	limits, err := limitsPage()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/first-hour.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| ([A-Z_]+) \\| ((?:`[a-z-]+`(?:, )?)+) \\|").FindAllStringSubmatch(string(page), -1)
	if len(rows) < 8 {
		t.Fatalf("docs/first-hour.md has %d rows with reasons, want its table", len(rows))
	}
	for _, row := range rows {
		for quoted := range strings.SplitSeq(row[2], ", ") {
			reason := strings.Trim(quoted, "`")
			if status, known := limits.status[reason]; !known || status != "" && status != row[1] {
				t.Errorf("docs/first-hour.md has the status %s for %s, and docs/limits.md %q", row[1], reason, status)
			}
		}
	}
}

// What may be otherwise in an output, and what may not.
func TestTourComparesOutput(t *testing.T) {
	r := &tour{places: []string{"127.0.0.1:12200", "127.0.0.1:20001"}}
	for _, tc := range []struct {
		want, got string
		same      bool
	}{
		{"ready, since 2026-11-27T01:18:59Z; revision 4, by root (unix, uid 0, pid 18880)", "ready, since 2027-01-01T00:00:00.5Z; revision 4, by a.b (unix, uid 7, pid 1)", true},
		{"ready, since 2026-11-27T01:18:59Z; revision 4, by file", "ready, since 2026-11-27T01:18:59Z; revision 5, by file", false},
		{"time     605µs, of which connecting 393µs", "time     1.271s, of which connecting 1.5ms", true},
		{`~ timeout: "250ms" -> "3s"`, `~ timeout: "251ms" -> "3s"`, false},
		{`timeout 3s, or less`, `timeout 4s, or less`, false},
		{"127.0.0.1:34567  127.0.0.1:12200", "127.0.0.1:45678   127.0.0.1:12200", true},
		{"127.0.0.1:34567  127.0.0.1:12200", "127.0.0.1:12200  127.0.0.1:12200", false},
		{`Etag: "a1da6b9863c4f229247d9a398cada367"`, `Etag: "cada367a1da6b9863c4f229247d9a398"` + "\r", true},
		{"a\n...\nz", "a\nb\nc\nz", true},
		{"a\n...\nz", "a\nz", true},
		{"a\n...", "b\na\nz", false},
		{"a", "a\nb", false},
		{"", "a", false},
	} {
		if got := r.matches(tc.want, tc.got); got != tc.same {
			t.Errorf("the output\n%s\nis taken for\n%s\n%v, want %v", tc.got, tc.want, got, tc.same)
		}
	}
}

// tour is one session through a page.
type tour struct {
	lines   []string // of the page, rewritten as it goes
	folder  string
	places  []string // what the page says and what it is here, by turns
	learned []string // hashes, secrets and ids of the page and what they are here, by turns
	exports string   // the commands that have exported something
	ran     int
}

var (
	address = regexp.MustCompile(`(?:127\.0\.0\.1|10\.1\.2\.3):\d{4,5}\b`)
	hashes  = regexp.MustCompile(`\b(?:[0-9a-f]{32,64}\b|relevo_[\w-]{43})`) // and secrets
	ids     = regexp.MustCompile(`(?m)^(\d+)  +(client|server)  `)           // of connections, in their list
	comment = regexp.MustCompile(`^<!-- (\$|file|not run)(.*) -->$`)
)

func newTour(t *testing.T, page string) *tour {
	t.Helper()
	// Sockets have short names.
	folder, err := os.MkdirTemp("", "tour") //nolint:usetesting // t.TempDir has the test's name in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	r := &tour{lines: strings.Split(page, "\n"), folder: folder}
	for _, place := range []string{"/etc/relevo", "/run/relevo", "/var/lib/relevo"} {
		here := filepath.Join(folder, filepath.Base(filepath.Dir(place)))
		if err := os.Mkdir(here, 0o700); err != nil {
			t.Fatal(err)
		}
		r.places = append(r.places, place, here)
	}
	r.certificates(t)
	bin := filepath.Join(folder, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	program := fmt.Sprintf("#!/bin/sh\n%s=1 exec '%s' \"$@\"\n", asProgram, os.Args[0])
	if err := os.WriteFile(filepath.Join(bin, "relevo"), []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

// certificates issues what the head of this file says there is.
func (r *tour) certificates(t *testing.T) {
	t.Helper()
	servers, clients := admintest.NewAuthority(t, "ca"), admintest.NewAuthority(t, "clients")
	cert, key := servers.Server(t)
	opsCert, opsKey := clients.Client(t, "ops", time.Now().Add(time.Hour))
	for from, to := range map[string]string{
		servers.File: "ca.crt", cert: "etc/tls.crt", key: "etc/tls.key", clients.File: "etc/clients.crt", opsCert: "ops.crt", opsKey: "ops.key",
	} {
		if err := os.Rename(from, filepath.Join(r.folder, to)); err != nil {
			t.Fatal(err)
		}
	}
}

// run goes through the page and returns it, with the output of now where it was not as documented and is to be rewritten.
func (r *tour) run(t *testing.T) string {
	t.Helper()
	var kind, what string // of the comment above
	for i := 0; i < len(r.lines); i++ {
		line := r.lines[i]
		m := comment.FindStringSubmatch(line)
		switch {
		case m != nil:
			kind, what = m[1], strings.TrimSpace(m[2])
			if kind == "$" {
				r.hidden(t, what)
			}
			continue
		case line == "":
			continue
		case strings.HasPrefix(line, "```"):
			end := i + 1 + slices.IndexFunc(r.lines[i+1:], func(s string) bool { return strings.HasPrefix(s, "```") })
			if kind == "file" {
				r.write(t, what, strings.Join(r.lines[i+1:end], "\n")+"\n")
			}
			i = end
		case strings.HasPrefix(line, "    "):
			end := r.blockEnd(i)
			if kind != "not run" && strings.HasPrefix(line, "    $ ") {
				end = r.block(t, i, end)
			}
			i = end - 1
		}
		kind = ""
	}
	if r.ran == 0 {
		t.Error("the page tells to type nothing")
	}
	return strings.Join(r.lines, "\n")
}

// blockEnd is the line behind an indented block that begins at this one.
func (r *tour) blockEnd(i int) int {
	end := i
	for ; i < len(r.lines) && (r.lines[i] == "" || strings.HasPrefix(r.lines[i], "    ")); i++ {
		if r.lines[i] != "" {
			end = i + 1
		}
	}
	return end
}

// block runs the commands of a block and returns where it ends, for its output may have been rewritten.
func (r *tour) block(t *testing.T, i, end int) int {
	t.Helper()
	for i < end {
		command := strings.TrimPrefix(r.lines[i], "    $ ")
		for i++; strings.HasSuffix(command, `\`); i++ {
			command += "\n" + strings.TrimPrefix(r.lines[i], "    ")
		}
		from := i
		for i < end && !strings.HasPrefix(r.lines[i], "    $ ") {
			i++
		}
		to := i
		for to > from && r.lines[to-1] == "" {
			to--
		}
		var want []string
		for _, line := range r.lines[from:to] {
			want = append(want, strings.TrimPrefix(line, "    "))
		}
		got, ok := r.command(t, command, strings.Join(want, "\n"))
		r.ran++
		if ok || !*update {
			continue
		}
		var fresh []string
		for line := range strings.Lines(got) {
			fresh = append(fresh, strings.TrimRight("    "+line, " \r\n"))
		}
		r.lines = slices.Replace(r.lines, from, to, fresh...)
		grown := len(fresh) - (to - from)
		i, end = i+grown, end+grown
		for j := i; j < len(r.lines); j++ { // the commands below have the hashes of the new output
			r.lines[j] = strings.NewReplacer(r.learned...).Replace(r.lines[j])
		}
	}
	return end
}

// here is what stands in the page as it is in this test, and there the other way round.
func (r *tour) here(text string) string {
	return strings.NewReplacer(append(slices.Clone(r.places), r.learned...)...).Replace(text)
}

func (r *tour) there(text string) string {
	back := slices.Clone(r.places)
	slices.Reverse(back)
	return strings.NewReplacer(back...).Replace(text)
}

// settle gives each address of the text one that is free.
func (r *tour) settle(t *testing.T, text string) {
	t.Helper()
	for _, a := range address.FindAllString(text, -1) {
		if !slices.Contains(r.places, a) {
			r.places = append(r.places, a, steadyAddress(t))
		}
	}
}

func (r *tour) write(t *testing.T, path, text string) {
	t.Helper()
	r.settle(t, text)
	path = r.here(path)
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.folder, path)
	}
	if err := os.WriteFile(path, []byte(r.here(text)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *tour) shell(command string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", r.exports+r.here(command))
	cmd.Dir = r.folder
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(r.folder, "bin")+":"+os.Getenv("PATH"),
		adminVariable+"="+r.here("unix:/run/relevo/admin.sock"), "COLUMNS=200", "LC_ALL=C.UTF-8", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func (r *tour) hidden(t *testing.T, command string) {
	t.Helper()
	r.settle(t, command)
	if r.stays(t, command) {
		return
	}
	if out, err := r.shell(command).CombinedOutput(); err != nil {
		t.Fatalf("$ %s: %v\n%s", command, err, out)
	}
}

// serves are the commands that say when they serve.
var serves = regexp.MustCompile(`^relevo (run|echo) `)

// stays starts what ends in &, and waits until it serves, if it does. It and all that take over from it end with the test.
func (r *tour) stays(t *testing.T, command string) bool {
	t.Helper()
	command, background := strings.CutSuffix(command, " &")
	if !background {
		return false
	}
	cmd, out := r.shell("exec "+command), newTranscript()
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = to, to
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	to.Close()
	if err != nil {
		t.Fatal(err)
	}
	dismiss := guard(t, cmd.Process.Pid)
	copied := make(chan struct{})
	go func() { // ends with the last process of the group
		_, _ = io.Copy(out, from)
		close(copied)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		<-copied
		dismiss()
		if t.Failed() {
			t.Logf("$ %s &\n%s", command, out)
		}
	})
	if serves.MatchString(command) {
		out.find(t, `"msg":"serving"|listening at `)
	}
	return true
}

var (
	// asks are the commands that change nothing: they are asked again until the answer is the documented one, or patience is over.
	asks = regexp.MustCompile(`^(relevo (status|failures|listeners|routes|clusters|endpoints( \w+)?$|connections( --.*)?$|streams|config (get|history|diff))|` +
		`curl [^X]*$)`)
	// follows are those that do not end.
	follows = regexp.MustCompile(`^(relevo events|curl -sN) `)
)

// command runs a command and compares its output with the documented one.
func (r *tour) command(t *testing.T, command, want string) (got string, ok bool) {
	t.Helper()
	r.settle(t, command)
	if r.stays(t, command) {
		return want, true
	}
	if strings.HasPrefix(command, "export ") {
		r.exports += r.here(command) + "\n"
		return "", true
	}
	deadline := time.Now().Add(5 * time.Second)
	if *update {
		deadline = time.Now().Add(time.Second)
	}
	for {
		if follows.MatchString(command) {
			got, ok = r.follow(t, command, want, deadline)
			break
		}
		var out bytes.Buffer
		cmd := r.shell(command)
		cmd.Stdout, cmd.Stderr = &out, &out // as at a terminal
		if err := cmd.Run(); err != nil {
			if _, ended := errors.AsType[*exec.ExitError](err); !ended {
				t.Fatalf("$ %s: %v", command, err)
			}
		}
		got = strings.TrimRight(r.there(out.String()), "\n")
		ok = r.matches(want, got)
		if ok || !asks.MatchString(command) || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond) // between two questions; the answer is what is waited for
	}
	if !ok && !*update {
		t.Errorf("$ %s\nprints\n%s\n\nand in the page it is\n%s", command, got, want)
	}
	r.learn(want, got)
	return got, ok
}

// follow runs a command that does not end, until it has printed what is documented, or the deadline is over.
func (r *tour) follow(t *testing.T, command, want string, deadline time.Time) (got string, ok bool) {
	t.Helper()
	cmd, out := r.shell("exec "+command), newTranscript()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatalf("$ %s: %v", command, err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for {
		got = strings.TrimRight(r.there(out.String()), "\n")
		if ok = r.matches(want, got); ok || time.Now().After(deadline) {
			return got, ok
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// learn notes what the hashes, secrets and ids of the page are here, for commands that have them.
func (r *tour) learn(want, got string) {
	said, are := learnable(want), learnable(got)
	for i := range min(len(said), len(are)) {
		if !slices.Contains(r.learned, said[i]) {
			r.learned = append(r.learned, said[i], are[i])
		}
	}
}

// learnable is what a later command may have of an output.
func learnable(output string) []string {
	list := hashes.FindAllString(output, -1)
	for _, m := range ids.FindAllStringSubmatch(output, -1) {
		list = append(list, "connections close "+m[1])
	}
	return list
}

// volatile is what may be otherwise each time, and what stands for it.
var volatile = []struct {
	what *regexp.Regexp
	as   string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{hashes, "HASH"},
	{regexp.MustCompile(`[\w.-]+ \(unix(, uid \d+)?, pid \d+\)`), "USER"},
	{regexp.MustCompile(`"who": "[^"]*"`), `"who"`},
	{regexp.MustCompile(`"([pu]id)": \d+|"(from|to)":\d+`), `"$1$2"`},
	{regexp.MustCompile(`\bpid \d+`), "PID"},
	{regexp.MustCompile(` (\d+(\.\d+)?(ns|µs|ms)|\d+\.\d+s|0s)\b`), " DURATION"},
	{regexp.MustCompile(`": 0\.\d+|": \d\.\d+e-\d+`), `": SECONDS`},
	{regexp.MustCompile(`\((devel|v[\d.]+[\w.-]*)\)|"(devel|v[\d.]+[\w.-]*)"`), "VERSION"},
	{regexp.MustCompile(`(?m)^id: .*|"id":"[\w-]+"`), "EVENT"},
	{ids, "ID  $2  "},
	{regexp.MustCompile(`(reading|ready|draining)  +\S+  +\S+  `), "$1 AGE IDLE "},
	{regexp.MustCompile(`(?m)^\S+  +\S+  +in-flight  (.*CLIENT) +\d+( .* )\d+  +(\d)$`), "AGE LEFT $1 ID $2 CONNECTION $3"},
	{regexp.MustCompile(`(passed-over|drained)((?:  +0){4})  +\d+  `), "$1 $2 FAILURES "},
	{regexp.MustCompile(`passed over until a probe succeeds|passed over; being probed`), "PASSED-OVER"},
	{regexp.MustCompile(` {2,}`), "  "},
	{regexp.MustCompile(`[ \t\r]+(\n|$)`), "$1"},
}

// plain is text without what may be otherwise.
func (r *tour) plain(text string) string {
	text = address.ReplaceAllStringFunc(text, func(a string) string {
		if slices.Contains(r.places, a) {
			return a
		}
		return "CLIENT"
	})
	for _, v := range volatile {
		text = v.what.ReplaceAllString(text, v.as)
	}
	return text
}

// matches says whether an output is as documented. A line of dots in the page stands for any number of lines.
func (r *tour) matches(want, got string) bool {
	expr := regexp.QuoteMeta("\n" + r.plain(want) + "\n")
	expr = strings.ReplaceAll(expr, "\n"+regexp.QuoteMeta("..."), `(\n.*)*`)
	return regexp.MustCompile("^" + expr + "$").MatchString("\n" + r.plain(got) + "\n")
}
