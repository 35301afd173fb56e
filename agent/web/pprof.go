package web

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// ProfilesPath is where Go's profiles are served.
const ProfilesPath = "/debug/pprof/"

// ServeProfiles answers on l with Go's profiles until ctx ends. They show how the
// process works inside and cost it time: l is not for everybody.
func ServeProfiles(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+ProfilesPath, pprof.Index)
	mux.HandleFunc("GET "+ProfilesPath+"cmdline", pprof.Cmdline)
	mux.HandleFunc("GET "+ProfilesPath+"profile", pprof.Profile)
	mux.HandleFunc("GET "+ProfilesPath+"trace", pprof.Trace)
	// A profile is written for as long as it is asked for.
	return serve(ctx, l, &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute})
}
