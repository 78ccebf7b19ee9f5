package metrics

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Of the password "secret", by crypt(3).
const secret = "$2b$05$9BvLWIboPKmcR3s9l/yqrufD9lS2uk1jWpAuGhPhCL.Cv2yopkTFK"

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate makes NAME.pem and NAME.key in dir, signed by itself, and returns it.
func certificate(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDer, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDer})
	write(t, filepath.Join(dir, name+".pem"), string(certPEM))
	write(t, filepath.Join(dir, name+".key"), string(keyPEM))
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// open opens a file with this text, which has to be right, and returns what it reports later.
func open(t *testing.T, path, text string) (*Access, *[]error) {
	t.Helper()
	reported := &[]error{}
	a, err := OpenAccess(write(t, path, text), func(err error) { *reported = append(*reported, err) })
	if err != nil {
		t.Fatal(err)
	}
	return a, reported
}

func TestOnlyThoseWithThePasswordReadTheMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.yml")
	a, reported := open(t, path, "basic_auth_users:\n  prometheus: "+secret+"\n")
	m := New(a)
	m.Publish(full())
	ask := func(path, user, password string) int {
		r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
		if user != "" {
			r.SetBasicAuth(user, password)
		}
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		if w.Code != http.StatusOK && strings.Contains(w.Body.String(), "tcptrace_sockets") {
			t.Errorf("status %d, and the metrics with it", w.Code)
		}
		return w.Code
	}
	const no = http.StatusUnauthorized
	for range 2 { // the second time it has been compared already
		for _, tt := range []struct {
			user, password string
			want           int
		}{
			{"prometheus", "secret", http.StatusOK}, {"prometheus", "wrong", no}, {"prometheus", "", no}, {"somebody", "secret", no},
			{"", "", no}, {"prometheus", secret, no},
		} {
			if got := ask("/metrics", tt.user, tt.password); got != tt.want {
				t.Errorf("%q, %q: got status %d, want %d", tt.user, tt.password, got, tt.want)
			}
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := ask(path, "", ""); got != http.StatusOK {
			t.Errorf("%s without a password: got status %d, want 200: kubelet has none", path, got)
		}
	}

	write(t, path, "basic_auth_users:\n  other: "+secret+"\n")
	if got := ask("/metrics", "prometheus", "secret"); got != no {
		t.Errorf("a user who is gone: got status %d, want %d", got, no)
	}
	if got := ask("/metrics", "other", "secret"); got != http.StatusOK {
		t.Errorf("a user who has come: got status %d, want 200", got)
	}
	write(t, path, "basic_auth_users: none\n")
	for range 3 {
		if got := ask("/metrics", "other", "secret"); got != http.StatusInternalServerError {
			t.Errorf("a file that is broken: got status %d, want 500: nobody is let in", got)
		}
	}
	if len(*reported) != 1 {
		t.Errorf("got %d reports, want one: %v", len(*reported), *reported)
	}
}

// served serves what is behind a, and returns how a client with these certificates fares.
func served(t *testing.T, m *Metrics, a *Access) func(path string, trusts tls.Certificate, has ...tls.Certificate) (int, error) {
	t.Helper()
	s := httptest.NewUnstartedServer(m)
	s.Config.ErrorLog = nil
	l := tls.NewListener(s.Listener, a.TLS())
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return func(path string, trusts tls.Certificate, has ...tls.Certificate) (int, error) {
		roots := x509.NewCertPool()
		roots.AddCert(trusts.Leaf)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: has}}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(strings.Replace(s.URL, "http:", "https:", 1) + path)
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
}

func TestTheCertificateCanBeReplaced(t *testing.T) {
	dir := t.TempDir()
	first := certificate(t, dir, "server")
	a, _ := open(t, filepath.Join(dir, "web.yml"), "tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
	m := New(a)
	m.Publish(full())
	get := served(t, m, a)
	if got, err := get("/metrics", first); got != http.StatusOK {
		t.Errorf("got status %d, %v; want 200", got, err)
	}
	second := certificate(t, dir, "server")
	if got, err := get("/metrics", first); err == nil {
		t.Errorf("got status %d by the old certificate, want an error", got)
	}
	if got, err := get("/metrics", second); got != http.StatusOK {
		t.Errorf("got status %d, %v by the new certificate; want 200", got, err)
	}
}

func TestAClientCertificateIsAskedForByTheMetricsOnly(t *testing.T) {
	dir := t.TempDir()
	server, client, stranger := certificate(t, dir, "server"), certificate(t, dir, "client"), certificate(t, dir, "stranger")
	a, _ := open(t, filepath.Join(dir, "web.yml"), `tls_server_config:
  cert_file: server.pem
  key_file: server.key
  client_ca_file: client.pem
  client_auth_type: RequireAndVerifyClientCert
  min_version: TLS13
`)
	m := New(a)
	m.Publish(full())
	get := served(t, m, a)
	if got, err := get("/metrics", server, client); got != http.StatusOK {
		t.Errorf("with a certificate: got status %d, %v; want 200", got, err)
	}
	if got, err := get("/metrics", server); got != http.StatusForbidden {
		t.Errorf("without a certificate: got status %d, %v; want 403", got, err)
	}
	if got, err := get("/healthz", server); got != http.StatusOK {
		t.Errorf("/healthz without a certificate: got status %d, %v; want 200: kubelet has none", got, err)
	}
	if got, err := get("/metrics", server, stranger); err == nil && got == http.StatusOK {
		t.Errorf("with somebody else's certificate: got status %d, want none or another", got)
	}
}

func TestAFileThatIsWrongIsAnErrorThatSaysHow(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir, "server")
	const pair = "tls_server_config: {cert_file: server.pem, key_file: server.key"
	for _, tt := range []struct{ text, want string }{
		{"tls_server_config: {cert_file: server.pem}\n", "no cert_file, or no key_file; give both"},
		{"tls_server_config: {}\n", "no cert_file, or no key_file; give both"},
		{"tls_server_config: {cert_file: server.pem, key_file: none.key}\n", "no such file"},
		{"tls_server_config: {cert_file: server.key, key_file: server.key}\n", "tls_server_config: "},
		{pair + ", min_version: TLS10}\n", "there are TLS12 and TLS13"},
		{pair + ", client_auth_type: RequestClientCert}\n", "there are NoClientCert and RequireAndVerifyClientCert"},
		{pair + ", client_ca_file: server.pem}\n", "give both or none"},
		{pair + ", client_auth_type: RequireAndVerifyClientCert}\n", "client_ca_file: "},
		{pair + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.key}\n", "no certificate in it"},
		{pair + ", cipher_suites: []}\n", "cipher_suites not found"},
		{"rate_limit: {burst: 1}\n", "rate_limit not found"},
		{"basic_auth_users: {prometheus: secret}\n", "prometheus: crypto/bcrypt: hashedSecret too short to be a bcrypted password; give a hash as htpasswd -nB prometheus prints it"},
		{"a: b: c\n", "yaml: "},
		{"", "it would let everybody in"},
		{"basic_auth_users:\n", "it would let everybody in"},
	} {
		_, err := OpenAccess(write(t, filepath.Join(dir, "web.yml"), tt.text), nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want an error with %q", tt.text, err, tt.want)
		}
	}
	if _, err := OpenAccess(filepath.Join(dir, "none"), nil); err == nil {
		t.Error("no file: got no error")
	}
	if a, _ := open(t, filepath.Join(dir, "web.yml"), "basic_auth_users: {prometheus: "+fmt.Sprintf("%q", secret)+"}\n"); a.TLS() != nil {
		t.Error("passwords only: got TLS, want none")
	}
}

func TestAFileThatIsBeingWrittenOpensNothing(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir, "server")
	certificate(t, dir, "client")
	const pair = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
	const asks = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: client.pem\n"
	const users = "basic_auth_users:\n  prometheus: " + secret + "\n"
	path := filepath.Join(dir, "web.yml")
	for _, tt := range []struct{ whole, part string }{
		{users, ""}, {users, "basic_auth_users:\n"}, {pair + users, pair}, {pair + asks, pair}, {pair + asks, ""}, {pair + asks + users, users},
	} {
		a, reported := open(t, path, tt.whole)
		m := New(a)
		m.Publish(full())
		write(t, path, tt.part)
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
		if w.Code != http.StatusInternalServerError || len(*reported) != 1 {
			t.Errorf("%q, of which %q is there: got status %d and %d reports, want 500 and 1", tt.whole, tt.part, w.Code, len(*reported))
		}
	}
}

func TestWhatBreaksAgainIsSaidAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.yml")
	const users = "basic_auth_users:\n  prometheus: " + secret + "\n"
	a, reported := open(t, path, users)
	m := New(a)
	for range 2 {
		for _, text := range []string{"basic_auth_users: none\n", users} {
			write(t, path, text)
			m.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
		}
	}
	if len(*reported) != 2 {
		t.Errorf("got %d reports, want 2", len(*reported))
	}
}
