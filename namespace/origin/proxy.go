package origin

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"golang.org/x/net/http/httpproxy"

	"coppice.dev/coppice/namespace"
)

// Proxies say which proxy leads to http and https URLs, and No to which hosts none does: names,
// addresses and prefixes, with commas, as in NO_PROXY. "" is none. Proxies are http, https or
// socks5 URLs. This machine itself is never asked for by a proxy.
type Proxies struct {
	HTTP  string `json:"http,omitempty"`
	HTTPS string `json:"https,omitempty"`
	No    string `json:"no,omitempty"`
}

// EnvironmentProxies returns what HTTP_PROXY, HTTPS_PROXY and NO_PROXY (or in small letters) say.
func EnvironmentProxies() Proxies {
	env := httpproxy.FromEnvironment()
	return Proxies{HTTP: env.HTTPProxy, HTTPS: env.HTTPSProxy, No: env.NoProxy}
}

// ParseProxy reads a setting: "" is the environment's, "none" is no proxy, and a URL is the proxy for
// everything but what NO_PROXY lists. Kinds: Invalid.
func ParseProxy(s string) (Proxies, error) {
	switch s {
	case "":
		return EnvironmentProxies(), nil
	case "none":
		return Proxies{}, nil
	}
	u, err := url.Parse(s)
	if err == nil && (u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5") {
		err = fmt.Errorf("want http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT")
	}
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the URL may hold a password
		}
		return Proxies{}, namespace.E(namespace.Invalid, "use", "proxy", err)
	}
	return Proxies{HTTP: s, HTTPS: s, No: EnvironmentProxies().No}, nil
}

// choose is the Proxy function of a transport.
func (p Proxies) choose() func(*http.Request) (*url.URL, error) {
	c := httpproxy.Config{HTTPProxy: p.HTTP, HTTPSProxy: p.HTTPS, NoProxy: p.No}
	f := c.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return f(r.URL) }
}
