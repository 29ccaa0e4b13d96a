// Package admintest makes certificates for tests of doors.
package admintest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority issues certificates into a folder of the test. Its own is in File.
type Authority struct {
	File string

	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

// NewAuthority makes one with this name, which is that of its file, too.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	a := &Authority{folder: t.TempDir(), key: newKey(t)}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.File = filepath.Join(a.folder, name+".crt")
	a.sign(t, a.cert, a.key, a.File)
	return a
}

// Server issues a certificate for 127.0.0.1, ::1, localhost and these names.
func (a *Authority) Server(t testing.TB, names ...string) (certFile, keyFile string) {
	t.Helper()
	return a.issue(t, "server", &x509.Certificate{
		DNSNames: append([]string{"localhost"}, names...), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotAfter: time.Now().Add(time.Hour),
	})
}

// Client issues a certificate that lets a client in until then.
func (a *Authority) Client(t testing.TB, name string, until time.Time) (certFile, keyFile string) {
	t.Helper()
	return a.issue(t, name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: until})
}

// Pool believes the authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *Authority) issue(t testing.TB, name string, c *x509.Certificate) (certFile, keyFile string) {
	t.Helper()
	key := newKey(t)
	c.SerialNumber, c.Subject, c.NotBefore = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}, time.Now().Add(-time.Hour)
	certFile, keyFile = filepath.Join(a.folder, name+".crt"), filepath.Join(a.folder, name+".key")
	a.sign(t, c, key, certFile)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, keyFile, "PRIVATE KEY", der)
	return certFile, keyFile
}

// sign puts a certificate into a file, signed, and into c as it is then.
func (a *Authority) sign(t testing.TB, c *x509.Certificate, key *ecdsa.PrivateKey, file string) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	*c = *signed
	write(t, file, "CERTIFICATE", der)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
