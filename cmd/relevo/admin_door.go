package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

const (
	// defaultAdmin is where the packages have the admin door.
	defaultAdmin = "unix:/run/relevo/admin.sock"
	// adminVariable is the environment variable that says where it is instead.
	adminVariable = "RELEVO_ADMIN"
	// tokenVariable is the environment variable that holds the token for a door over the network.
	tokenVariable = "RELEVO_ADMIN_TOKEN"
)

// adminDoor is what finds the admin door, and what it asks for.
type adminDoor struct{ address, tokenFile, caFile, certFile, keyFile string }

// adminFlags adds to a verb what finds the admin door.
func adminFlags(cmd *cobra.Command) *adminDoor {
	d, f := &adminDoor{}, cmd.Flags()
	f.StringVar(&d.address, "address", "",
		"the admin door: unix:/PATH, https://HOST:PORT or http://HOST:PORT (default $"+adminVariable+", else "+defaultAdmin+")")
	f.StringVar(&d.tokenFile, "token-file", "", "a file with the token for a door over the network (default the token in $"+tokenVariable+", if any)")
	f.StringVar(&d.caFile, "ca-file", "", "the authorities that the door's certificate is checked against, in PEM (default the system's)")
	f.StringVar(&d.certFile, "cert-file", "", "a client certificate for the door, in PEM, with --key-file")
	f.StringVar(&d.keyFile, "key-file", "", "the private key of --cert-file, in PEM")
	return d
}

// token is the secret that the door asks for, "" for none.
func (d *adminDoor) token() (string, error) {
	if d.tokenFile == "" {
		return os.Getenv(tokenVariable), nil
	}
	text, err := os.ReadFile(d.tokenFile)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", misused("%s does not hold a token, and nothing else", d.tokenFile)
	}
	return token, nil
}

// tls is which certificates are believed and shown, nil for the system's and none.
func (d *adminDoor) tls() (*tls.Config, error) {
	if (d.certFile == "") != (d.keyFile == "") {
		return nil, misused("--cert-file and --key-file go together")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if d.caFile != "" {
		text, err := os.ReadFile(d.caFile)
		if err != nil {
			return nil, fmt.Errorf("reading the authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, misused("%s has no certificate in PEM", d.caFile)
		}
	}
	if d.certFile != "" {
		pair, err := tls.LoadX509KeyPair(d.certFile, d.keyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
