package config

import (
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v2"
)

// YAML is the tree as a file that loads to the same tree, all defaults written out, in the order of the types.
func (c *Config) YAML() ([]byte, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return yamlOf(data)
}

// yamlOf is a JSON value as YAML, in the same order.
func yamlOf(data []byte) ([]byte, error) {
	ordered, err := parseJSON(data)
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	text, err := yaml.Marshal(ordered)
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return text, nil
}
