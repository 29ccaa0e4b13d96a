package yard

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	scrapeTimeout = 5 * time.Second // of one look, on a machine that has nothing to spare
	maxScrape     = 16 << 20        // bytes of metrics
)

// Metrics are what a process tells of itself, in the text form of Prometheus.
type Metrics string

// Scrape reads the metrics at a URL.
func Scrape(ctx context.Context, url string) (Metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	content, err := io.ReadAll(io.LimitReader(reply.Body, maxScrape))
	if err != nil {
		return "", err
	}
	if reply.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s", url, reply.Status)
	}
	return Metrics(content), nil
}

// Value returns the value of the series of that name, labels included.
func (m Metrics) Value(series string) (float64, error) {
	name, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
	for line := range strings.Lines(string(m)) {
		id, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, l, _ := strings.Cut(strings.TrimSuffix(id, "}"), "{"); n == name && sameLabels(l, labels) {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", series)
}

// sameLabels compares two lists of labels, whose values hold no commas, in whatever order.
func sameLabels(a, b string) bool {
	return slices.Equal(slices.Sorted(strings.SplitSeq(a, ",")), slices.Sorted(strings.SplitSeq(b, ",")))
}

// kibibytes returns the bytes of a size as /proc writes it: "1234 kB".
func kibibytes(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, " kB")
	if !ok {
		return 0, fmt.Errorf("%q is not a size in kB", s)
	}
	n, err := strconv.ParseFloat(number, 64)
	return n * 1024, err
}
