package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v2"

	"github.com/relevo-proxy/relevo/server/revision"
)

const (
	// adminPatience bounds one question, and all tries of a change that an upgrade is in the way of.
	adminPatience = 30 * time.Second
	// maxAnswer is the size in bytes of the largest answer that is read.
	maxAnswer = 64 << 20
)

// adminVerb is the RunE of a verb that takes so many arguments and asks a process that runs: a signal interrupts it.
func adminVerb(least, most int, run func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return arguments(least, most, func(cmd *cobra.Command, args []string) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		cmd.SetContext(ctx)
		return run(cmd, args)
	})
}

// adminClient asks the admin door of a process that runs.
type adminClient struct {
	address  string // as it was said
	base     string // of URLs
	token    string // "" for none
	http     *http.Client
	unusable error // why nothing can be asked
}

// newAdminClient is a client of a door. What is wrong with the flags, the first question says.
func newAdminClient(d adminDoor) *adminClient {
	c := &adminClient{address: cmp.Or(d.address, os.Getenv(adminVariable), defaultAdmin), base: "http://localhost"}
	transport := &http.Transport{DisableKeepAlives: true}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if path, ok := strings.CutPrefix(c.address, "unix:"); ok {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		return c
	}
	if c.base = strings.TrimSuffix(c.address, "/"); !strings.Contains(c.base, "://") {
		c.base = "http://" + c.base
	}
	if c.unusable = c.checkBase(); c.unusable != nil {
		return c
	}
	if c.token, c.unusable = d.token(); c.unusable != nil {
		return c
	}
	if c.token != "" && !c.private() {
		c.unusable = misused("a token is not sent to %s unencrypted: use https://", c.address)
		return c
	}
	transport.TLSClientConfig, c.unusable = d.tls()
	return c
}

// checkBase refuses an address that is more than a scheme, a host and a port.
func (c *adminClient) checkBase() error {
	u, err := url.Parse(c.base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return misused("%q is no address of a door: want unix:/PATH, https://HOST:PORT or http://HOST:PORT", c.address)
	}
	return nil
}

// private says that nobody on the way reads what is sent.
func (c *adminClient) private() bool {
	u, err := url.Parse(c.base)
	if err != nil {
		return false
	}
	ip, _ := netip.ParseAddr(u.Hostname()) // the zero Addr is no loopback address
	return u.Scheme == "https" || u.Hostname() == "localhost" || ip.IsLoopback()
}

// question is a request. Its path may have parameters.
type question struct {
	method, path string
	header       map[string]string
	body         []byte
}

// adminAnswer is what came back.
type adminAnswer struct {
	code   int
	header http.Header
	body   []byte
}

// problemAnswer is an answer that says no.
type problemAnswer struct {
	code   int
	Detail string `json:"detail"`
	Errors []struct {
		Pointer string `json:"pointer"`
		Detail  string `json:"detail"`
	} `json:"errors"`
}

func (p *problemAnswer) Error() string {
	lines := []string{cmp.Or(p.Detail, http.StatusText(p.code))}
	for _, e := range p.Errors {
		if e.Pointer == "" { // the whole
			lines = append(lines, e.Detail)
			continue
		}
		lines = append(lines, e.Pointer+": "+e.Detail)
	}
	return strings.Join(lines, "\n")
}

// ask asks, again and again for a while if an upgrade is in the way. An answer that says no is an error: a *failure with the
// exit status, around a *problemAnswer.
func (c *adminClient) ask(ctx context.Context, q question) (adminAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, adminPatience)
	defer cancel()
	for {
		a, err := c.once(ctx, q)
		if err != nil || a.code < 300 {
			return a, err
		}
		if (a.code == http.StatusServiceUnavailable || a.code == http.StatusTooManyRequests) && a.header.Get("Retry-After") != "" && pauseFor(ctx, time.Second) {
			continue
		}
		return a, problemOf(c, a)
	}
}

// problemOf is an answer that says no as an error.
func problemOf(c *adminClient, a adminAnswer) error {
	p := &problemAnswer{code: a.code}
	if json.Unmarshal(a.body, p) != nil {
		p.Detail = fmt.Sprintf("%s answers %d", c.address, a.code)
	}
	status := exitFailed
	switch a.code {
	case http.StatusBadRequest:
		status = exitUsage
	case http.StatusUnprocessableEntity:
		status = exitConfig
	case http.StatusForbidden, http.StatusUnauthorized:
		status = exitPermission
	}
	return &failure{status, p}
}

// refused gives an error another exit status where the answer was 422, and that not about a configuration.
func refused(err error, status int) error {
	if p, ok := errors.AsType[*problemAnswer](err); ok && p.code == http.StatusUnprocessableEntity {
		return &failure{status, p}
	}
	return err
}

// pauseFor waits, and says whether there is time left.
func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *adminClient) once(ctx context.Context, q question) (adminAnswer, error) {
	resp, err := c.open(ctx, q)
	if err != nil {
		return adminAnswer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return adminAnswer{}, fmt.Errorf("reading the answer of %s: %w", c.address, err)
	}
	return adminAnswer{resp.StatusCode, resp.Header, body}, nil
}

// open asks once. The body of the answer is the caller's to close.
func (c *adminClient) open(ctx context.Context, q question) (*http.Response, error) {
	if c.unusable != nil {
		return nil, c.unusable
	}
	r, err := http.NewRequestWithContext(ctx, q.method, c.base+q.path, bytes.NewReader(q.body))
	if err != nil {
		return nil, misused("%q is no path: %w", q.path, err)
	}
	for name, value := range q.header {
		r.Header.Set(name, value)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(r)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, &failure{exitPermission, fmt.Errorf("%s: no permission: join group relevo or use sudo", c.address)}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &failure{exitNothing, fmt.Errorf("nothing answers at %s: is Relevo running, and does its configuration have `admin`?", c.address)}
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, errors.New("interrupted")
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s has not answered in time", c.address)
	case err != nil:
		return nil, fmt.Errorf("asking %s: %w", c.address, errors.Unwrap(err))
	}
	return resp, nil
}

// get asks for what is at a path and reads it into v.
func (c *adminClient) get(ctx context.Context, path string, v any) (adminAnswer, error) {
	a, err := c.ask(ctx, question{method: http.MethodGet, path: path})
	if err != nil {
		return a, err
	}
	return a, c.decode(a, v)
}

// decode reads an answer, an object of JSON, into v.
func (c *adminClient) decode(a adminAnswer, v any) error {
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", c.address, err)
	}
	return nil
}

// revisions is the newest revisions, the newest first.
func (c *adminClient) revisions(ctx context.Context, limit int) ([]revision.Info, error) {
	var list struct{ Revisions []revision.Info }
	_, err := c.get(ctx, fmt.Sprintf("%s?limit=%d", revisionsAPI, limit), &list)
	return list.Revisions, err
}

// show writes an answer, an object of JSON, in a form for programs; or has text write it for people.
func show(w io.Writer, form outputForm, body []byte, text func(w io.Writer) error) error {
	switch form {
	case outputJSON:
		_, err := w.Write(body)
		return err
	case outputYAML:
		var v yaml.MapSlice
		if err := yaml.Unmarshal(body, &v); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		out, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(out)
		}
		return err
	default:
		return text(w)
	}
}
