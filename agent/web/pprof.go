package web

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// ProfilesPath is the path of Go's profiles.
const ProfilesPath = "/debug/pprof/"

// ServeProfiles serves Go's profiles on l until ctx ends. Profiles show the inside of the process and cost it time, so
// l must be reachable only for people who may see that.
func ServeProfiles(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+ProfilesPath, pprof.Index)
	mux.HandleFunc("GET "+ProfilesPath+"cmdline", pprof.Cmdline)
	mux.HandleFunc("GET "+ProfilesPath+"profile", pprof.Profile)
	mux.HandleFunc("GET "+ProfilesPath+"trace", pprof.Trace)
	// There is no WriteTimeout: a profile is written for as long as the client asks for.
	return serve(ctx, l, &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute})
}
