package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// The types here are values of flags, as pflag wants them: String, Set and Type, which is the word that stands
// for the value in the help.

// headers collects the pairs of a flag that may be given often.
type headers []bolt.Pair

func (h *headers) String() string { return "" }
func (h *headers) Type() string   { return "KEY=VALUE" }

func (h *headers) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return fmt.Errorf("want KEY=VALUE")
	}
	*h = append(*h, bolt.Pair{Key: key, Value: value})
	return nil
}

// boltVersion is a version of Bolt.
type boltVersion bolt.Version

func (v *boltVersion) String() string { return bolt.Version(*v).String() }
func (v *boltVersion) Type() string   { return "VERSION" }

func (v *boltVersion) Set(s string) error {
	parsed, err := bolt.ParseVersion(s)
	if err != nil {
		return fmt.Errorf("want %s", strings.Join(versionNames(), ", "))
	}
	*v = boltVersion(parsed)
	return nil
}

func versionNames() []string {
	return []string{bolt.V1.String(), bolt.V2.String(), bolt.V2CRC.String()}
}

// boltStatus is a status, by name or by its number on the wire.
type boltStatus wire.Status

func (v *boltStatus) String() string { return wire.Status(*v).String() }
func (v *boltStatus) Type() string   { return "STATUS" }

func (v *boltStatus) Set(s string) error {
	if code, err := strconv.ParseUint(s, 0, 16); err == nil {
		if found := bolt.StatusOf(uint16(code)); found != wire.Other {
			*v = boltStatus(found)
			return nil
		}
	}
	for known := range wire.Other {
		if strings.EqualFold(s, known.String()) {
			*v = boltStatus(known)
			return nil
		}
	}
	return fmt.Errorf("want a number that Bolt defines, or one of %s", strings.Join(statusNames(), ", "))
}

func statusNames() (list []string) {
	for s := range wire.Other {
		list = append(list, s.String())
	}
	return list
}

// outputForm is what -o says.
type outputForm string

const (
	outputText outputForm = "text"
	outputJSON outputForm = "json"
	outputYAML outputForm = "yaml"
)

// outputValue is the value of -o: one of the forms that a verb has.
type outputValue struct {
	form  outputForm
	forms []string
}

func (v *outputValue) String() string { return string(v.form) }
func (v *outputValue) Type() string   { return "FORM" }

func (v *outputValue) Set(s string) error {
	if !slices.Contains(v.forms, s) {
		return errors.New("want " + v.choice())
	}
	v.form = outputForm(s)
	return nil
}

// choice is "text, json or yaml".
func (v *outputValue) choice() string {
	last := len(v.forms) - 1
	return strings.Join(v.forms[:last], ", ") + " or " + v.forms[last]
}

// outputFlag adds -o to a verb, whose forms are text, JSON and more.
func outputFlag(cmd *cobra.Command, more ...outputForm) *outputForm {
	v := &outputValue{form: outputText}
	for _, f := range append([]outputForm{outputText, outputJSON}, more...) {
		v.forms = append(v.forms, string(f))
	}
	cmd.Flags().VarP(v, "output", "o", "what to print: "+v.choice())
	complete(cmd, "output", v.forms...)
	return &v.form
}

// versionFlag adds --version to a verb.
func versionFlag(cmd *cobra.Command) *boltVersion {
	v := boltVersion(bolt.V1)
	cmd.Flags().Var(&v, "version", "of the protocol: "+strings.Join(versionNames(), ", "))
	complete(cmd, "version", versionNames()...)
	return &v
}

// complete names the values that a flag's completion offers.
func complete(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // a flag that does not exist: a slip in this package
	}
}

// require marks a flag without which a verb cannot do anything.
func require(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err) // a flag that does not exist: a slip in this package
	}
}

// checkAddresses refuses what cannot be dialled whatever listens where.
func checkAddresses(flag string, list ...string) error {
	for _, a := range list {
		if _, _, err := net.SplitHostPort(strings.TrimSpace(a)); err != nil {
			return misused("--%s %q: want HOST:PORT", flag, a)
		}
	}
	return nil
}

// refuseZero refuses flags that say 0 where the packages below take that for "not given".
func refuseZero(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		f := cmd.Flags().Lookup(name)
		if v := f.Value.String(); f.Changed && (v == "0" || v == "0s") {
			return misused("--%s %s: want more than 0", name, v)
		}
	}
	return nil
}

// printJSON writes v as one indented object.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
