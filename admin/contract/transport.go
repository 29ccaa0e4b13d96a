package contract

import (
	"bytes"
	"io"
	"net/http"
	"strings"
)

// Transport is next, with an eye on every answer: what is wrong goes to report. Streams are looked at as they are read.
func (d *Document) Transport(next http.RoundTripper, report func(error)) http.RoundTripper {
	return watcher{d, next, report}
}

type watcher struct {
	document *Document
	next     http.RoundTripper
	report   func(error)
}

// RoundTrip reads the whole answer before it is passed on, unless it is a stream.
func (w watcher) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	check := func(body []byte) {
		if err := w.document.Check(r, resp.StatusCode, resp.Header, body); err != nil {
			w.report(err)
		}
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream) && r.Method != http.MethodHead {
		resp.Body = &watchedStream{ReadCloser: resp.Body, check: check}
		return resp, nil
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	check(body)
	return resp, nil
}
