package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// The help is read in terminals of 80 columns.
func TestHelpFitsTerminals(t *testing.T) {
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		_, help, _ := relevo(t, "", append(strings.Fields(c.CommandPath())[1:], "--help")...)
		for line := range strings.Lines(help) {
			// Examples are not broken, for they are copied.
			if line = strings.TrimRight(line, "\n"); utf8.RuneCountInString(line) > helpWidth && !strings.Contains(c.Example, line) {
				t.Errorf("%s --help has a line of %d characters, want %d at most: %s", c.CommandPath(), utf8.RuneCountInString(line), helpWidth, line)
			}
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(newRoot("relevo"))
}
