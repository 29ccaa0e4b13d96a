package config

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// maxFile is the size in bytes of the largest file that is read.
const maxFile = 16 << 20

// Parse makes a tree from one document of YAML or JSON. Its error is an *Errors with all that is wrong.
func Parse(data []byte) (*Config, error) {
	d, err := ParseDocument(data)
	if err != nil {
		return nil, err
	}
	return d.Config()
}

// ReadFile reads as much of a file as a configuration may have, and a little more, so that Parse sees when it is too large.
func ReadFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the configuration: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return data, nil
}

// Load reads the file and parses it. Its error is an *Errors that names the file, unless reading went wrong.
func Load(path string) (*Config, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(data)
	if faults, ok := errors.AsType[*Errors](err); ok {
		faults.Source = path
	}
	return c, err
}

//go:embed trial.yaml
var trial string

// Trial is a configuration for a first try on one machine: a listener on 127.0.0.1:12220, an endpoint at
// 127.0.0.1:12221, the REST API on 127.0.0.1:12280 and metrics on 127.0.0.1:12290.
func Trial() *Config {
	c, err := Parse([]byte(trial))
	if err != nil {
		panic(fmt.Sprintf("config: the trial configuration: %v", err))
	}
	return c
}

// least says no more than a configuration must.
const least = `
listeners: [{name: least, address: "127.0.0.1:1", protocol: bolt}]
routes: [{name: least, rules: [{cluster: least}]}]
clusters: [{name: least, protocol: bolt, endpoints: [{address: "127.0.0.1:1"}]}]
`

// Defaults is a configuration of one listener, one rule and one cluster that has the default wherever there is one.
func Defaults() *Config {
	c, err := Parse([]byte(least))
	if err != nil {
		panic(fmt.Sprintf("config: the least configuration: %v", err))
	}
	return c
}

// complete fills in the defaults that depend on other parts of the tree.
func (c *Config) complete() {
	for i := range c.Listeners {
		if c.Listeners[i].Routes == "" && len(c.Routes) == 1 {
			c.Listeners[i].Routes = c.Routes[0].Name
		}
		limitBy(c.Listeners[i].Filters, LimitByListener)
	}
	for i := range c.Routes {
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			if r.Name == "" {
				r.Name = ruleName(j)
			}
			limitBy(r.Filters, LimitByRoute)
		}
	}
}

// limitBy says where rate limits stand that do not say by what they count.
func limitBy(filters []Filter, by LimitBy) {
	for i := range filters {
		if f := filters[i].RateLimit; f != nil && f.By == "" {
			f.By = by
		}
	}
}

// ruleName is the name of the rule at index i where the file gives none.
func ruleName(i int) string { return "rule-" + strconv.Itoa(i+1) }
