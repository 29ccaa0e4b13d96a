package admin

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/relevo-proxy/relevo/server/config"
)

// keys are what a door on TCP shows, and whom it believes. They do not change: what the files say next is another one.
type keys struct {
	config  *tls.Config
	leaf    *x509.Certificate // of the door
	clients *x509.CertPool    // nil: no certificate lets anybody in
}

// loadKeys reads what c names. The error is a *config.Errors, and says nothing of what is in the files.
func loadKeys(c *config.TLS) (*keys, error) {
	var all faults
	certificate, _, err := readCredentials(c.CertFile)
	if err != nil {
		all.add("tls.cert_file", "%s", err)
	}
	key, _, err := readCredentials(c.KeyFile)
	if err != nil {
		all.add("tls.key_file", "%s", err)
	}
	k := &keys{}
	if len(all) == 0 {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			all.add("tls", "%s, %s: %s", c.CertFile, c.KeyFile, err)
		}
		k.leaf = pair.Leaf
		k.config = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	}
	if c.ClientCAFile != "" {
		authorities, _, err := readCredentials(c.ClientCAFile)
		pool := x509.NewCertPool()
		if err != nil {
			all.add("tls.client_ca_file", "%s", err)
		} else if !pool.AppendCertsFromPEM(authorities) {
			all.add("tls.client_ca_file", "%s has no certificate in PEM", c.ClientCAFile)
		}
		k.clients = pool
	}
	if len(all) > 0 {
		return nil, all.error()
	}
	if k.clients != nil {
		// A client's certificate is asked for and not judged here, but at each request: /healthz needs none, and an
		// authority that is taken out of the file, or a certificate that expires, ends connections that are open, too.
		k.config.ClientCAs, k.config.ClientAuth, k.config.VerifyPeerCertificate = k.clients, tls.RequestClientCert, isBounded
	}
	return k, nil
}

// maxShown is how many bytes of certificates a client may show. They are kept as long as its connection, whoever it is; the library
// takes 256 KiB.
const maxShown = 32 << 10

// isBounded refuses more. Whether what is shown lets anybody in is judged at each request.
func isBounded(shown [][]byte, _ [][]*x509.Certificate) error {
	n := 0
	for _, certificate := range shown {
		n += len(certificate)
	}
	if n > maxShown {
		return fmt.Errorf("the client shows %d bytes of certificates; it may show %d", n, maxShown)
	}
	return nil
}

// subject is that of the certificate which a client has shown, and whether an authority vouches for it now.
func (k *keys) subject(shown *tls.ConnectionState) (name string, ok bool) {
	if k.clients == nil || shown == nil || len(shown.PeerCertificates) == 0 {
		return "", false
	}
	leaf, between := shown.PeerCertificates[0], x509.NewCertPool()
	for _, c := range shown.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: k.clients, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return printable(leaf.Subject.String()), err == nil
}

// maxSubject is how many bytes of a certificate's subject the audit trail keeps.
const maxSubject = 256

// printable is text that does no harm to a terminal, of bounded length.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text[:min(len(text), maxSubject)])
	return strings.ToValidUTF8(text, "?")
}
