package metrics

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v2"
	"golang.org/x/crypto/bcrypt"
)

// Access says who may read the metrics, by a file in the format that Prometheus' exporters
// take as --web.config.file. It is read again for each connection and each request: so what
// is in it, certificates and passwords, can be replaced while the run goes on. All methods
// may be called from any goroutine; a nil Access lets everybody in.
type Access struct {
	path   string
	opened *accessFile // what it asked for then

	comparing sync.Mutex // of passwords, which is meant to take long: one at a time
	mu        sync.Mutex
	proven    map[string][sha256.Size]byte // by user, what was compared and found right
	broken    string                       // what was last wrong with the file
	report    func(error)
}

// accessFile is what of the format is understood. The rest is refused, not ignored.
type accessFile struct {
	TLS   *tlsFile          `yaml:"tls_server_config"`
	Users map[string]string `yaml:"basic_auth_users"` // bcrypt hashes
}

type tlsFile struct {
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ClientAuth string `yaml:"client_auth_type"`
	ClientCAs  string `yaml:"client_ca_file"`
	MinVersion string `yaml:"min_version"`
}

// OpenAccess checks the file. Of what is wrong with it later, report is told once; then
// nobody is let in.
func OpenAccess(path string, report func(error)) (*Access, error) {
	a := &Access{path: path, proven: map[string][sha256.Size]byte{}, report: report}
	f, err := a.read()
	if err != nil {
		return nil, err
	}
	switch {
	case f.TLS != nil:
		_, err = f.TLS.config()
	case len(f.Users) == 0:
		err = errors.New("neither tls_server_config nor basic_auth_users is in it: it would let everybody in; give one of them, or no such file")
	}
	a.opened = f
	return a, err
}

func (a *Access) read() (*accessFile, error) {
	text, err := os.ReadFile(a.path)
	if err != nil {
		return nil, err
	}
	f := &accessFile{}
	if err := yaml.UnmarshalStrict(text, f); err != nil {
		return nil, fmt.Errorf("%w; there may be tls_server_config (cert_file, key_file, client_ca_file, client_auth_type, min_version) and basic_auth_users", oneLine(err))
	}
	for user, hash := range f.Users {
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, fmt.Errorf("basic_auth_users: %s: %w; give a hash as htpasswd -nB %s prints it", user, err, user)
		}
	}
	if f.TLS != nil {
		for _, file := range []*string{&f.TLS.CertFile, &f.TLS.KeyFile, &f.TLS.ClientCAs} {
			if *file != "" && !filepath.IsAbs(*file) {
				*file = filepath.Join(filepath.Dir(a.path), *file)
			}
		}
	}
	return f, a.opened.kept(f)
}

// kept reports what now does not ask for any more. A file that is being written is empty at first, and must not
// let everybody in.
func (f *accessFile) kept(now *accessFile) error {
	gone := ""
	switch {
	case f == nil:
	case f.TLS != nil && now.TLS == nil:
		gone = "tls_server_config"
	case f.TLS.clientCert() && !now.TLS.clientCert():
		gone = "client_auth_type: RequireAndVerifyClientCert"
	case len(f.Users) > 0 && len(now.Users) == 0:
		gone = "basic_auth_users"
	}
	if gone == "" {
		return nil
	}
	return fmt.Errorf("%s is gone; start tcptrace anew to serve without", gone)
}

// oneLine is the first of the errors in a file, without the types of Go.
func oneLine(err error) error {
	var several *yaml.TypeError
	if !errors.As(err, &several) {
		return err
	}
	first, _, _ := strings.Cut(several.Errors[0], " in type ")
	first, _, _ = strings.Cut(first, " into ")
	return errors.New(first)
}

// clientCert reports whether whoever reads the metrics has to have a certificate.
func (f *tlsFile) clientCert() bool { return f != nil && f.ClientAuth == "RequireAndVerifyClientCert" }

func (f *tlsFile) config() (*tls.Config, error) {
	if f.CertFile == "" || f.KeyFile == "" {
		return nil, errors.New("tls_server_config: no cert_file, or no key_file; give both")
	}
	cert, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls_server_config: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	switch f.MinVersion {
	case "", "TLS12":
		c.MinVersion = tls.VersionTLS12
	case "TLS13":
		c.MinVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("tls_server_config: min_version %q: there are TLS12 and TLS13", f.MinVersion)
	}
	switch {
	case f.clientCert():
		text, err := os.ReadFile(f.ClientCAs)
		if err != nil {
			return nil, fmt.Errorf("tls_server_config: client_ca_file: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("tls_server_config: client_ca_file %q: no certificate in it", f.ClientCAs)
		}
		// Whoever only asks for /healthz needs none, see allows.
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case f.ClientAuth != "" && f.ClientAuth != "NoClientCert":
		return nil, fmt.Errorf("tls_server_config: client_auth_type %q: there are NoClientCert and RequireAndVerifyClientCert", f.ClientAuth)
	case f.ClientCAs != "":
		return nil, errors.New("tls_server_config: client_ca_file without client_auth_type: RequireAndVerifyClientCert; give both or none")
	}
	return c, nil
}

// TLS returns what to serve with, nil where the file asked for no TLS when it was opened.
func (a *Access) TLS() *tls.Config {
	if a == nil || a.opened.TLS == nil {
		return nil
	}
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		f, err := a.read()
		var c *tls.Config
		if err == nil {
			c, err = f.TLS.config()
		}
		a.note(err)
		return c, err
	}}
}

// note reports what is wrong with the file, if that is news.
func (a *Access) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.mu.Lock()
	news := text != a.broken
	a.broken = text
	a.mu.Unlock()
	if news && err != nil {
		a.report(err)
	}
}

// guard lets those through who may read the metrics.
func (a *Access) guard(next http.Handler) http.Handler {
	if a == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := a.read()
		if err != nil || a.opened.TLS == nil { // with TLS, a handshake tells that all is well again
			a.note(err)
		}
		switch {
		case err != nil:
			http.Error(w, "it cannot be told who may read this: the log of tcptrace says why", http.StatusInternalServerError)
		case f.TLS.clientCert() && (r.TLS == nil || len(r.TLS.VerifiedChains) == 0):
			http.Error(w, "a client certificate is needed", http.StatusForbidden)
		case !a.knows(f.Users, r):
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// knows reports whether the request has the name of a user and the right password.
func (a *Access) knows(users map[string]string, r *http.Request) bool {
	if len(users) == 0 {
		return true
	}
	user, password, given := r.BasicAuth()
	if !given {
		return false
	}
	hash, known := users[user]
	if !known {
		for _, hash = range users { // any one, so that the time it takes does not tell
			break
		}
	}
	claim := sha256.Sum256([]byte(hash + password))
	a.mu.Lock()
	proven, ok := a.proven[user]
	a.mu.Unlock()
	if known && ok && proven == claim {
		return true // Prometheus comes again and again
	}
	if !a.compare(hash, password, known) {
		return false
	}
	a.mu.Lock()
	a.proven[user] = claim
	a.mu.Unlock()
	return true
}

// So many times as long as a comparison took is rested after it, if the password was wrong:
// whoever guesses gets a tenth of a core, and not what tracing needs.
const restAfterWrong = 9

// compare reports whether the hash is the password's; right is false if it is known to be wrong.
func (a *Access) compare(hash, password string, right bool) bool {
	a.comparing.Lock()
	defer a.comparing.Unlock()
	begun := time.Now()
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	if err != nil || !right {
		time.Sleep(restAfterWrong * time.Since(begun))
		return false
	}
	return true
}
