package events

import (
	"slices"
	"strings"
	"testing"
)

func TestAnOperationIDIs128BitsOfTheKeysHash(t *testing.T) {
	t.Parallel()
	// printf '%s' KEY | sha256sum | cut -c1-32 | xxd -r -p | base32 | tr A-Z a-z | tr -d =
	for key, want := range map[string]string{
		"order-1":                "box6eikw2juyyfb3qycairwtmy",
		"alert:ObserverDown:1/2": "44ue5u5al5mhawijfe5yjpr2fu",
		"17":                     "iurvidyvatgroeamja26qw3654",
		"":                       "4oymiquy7qobjgx36tejs35zeq",
	} {
		if got := OperationID(key); got != want {
			t.Errorf("key %q: got %s, want %s", key, got, want)
		}
	}
}

func TestAnOperationIDIsOneSubjectTokenWhateverTheKey(t *testing.T) {
	t.Parallel()
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	seen := map[string]string{}
	for _, key := range []string{"a", "A", " a", "a.b", "*", ">", "a\nb", "ü", strings.Repeat("k", 256), strings.Repeat("k", 1<<20)} {
		got := OperationID(key)
		if len(got) != 26 || strings.Trim(got, alphabet) != "" {
			t.Errorf("key %.20q: got %q, want 26 characters of %s", key, got, alphabet)
		}
		if other, taken := seen[got]; taken {
			t.Errorf("keys %.20q and %.20q: got the same id %s, want two", key, other, got)
		}
		seen[got] = key
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, got, want string }{
		{"request", RequestSubject(Stop), "ob.server.stop.request"},
		{"request with target", TargetRequestSubject(Restart, 1, 2), "ob.server.restart.request.1.2"},
		{"request with great target", TargetRequestSubject(Start, 1<<63-1, 1), "ob.server.start.request.9223372036854775807.1"},
		{"event", EventSubject(Stop, "op", 1, 2, Accepted), "ob.server.stop.event.op.1.2.accepted"},
		{"event without target", EventSubject(Stop, "op", 0, 0, Rejected), "ob.server.stop.event.op.0.0.rejected"},
		{"progress", EventSubject(Stop, "op", 1, 2, Progress), "ob.server.stop.event.op.1.2.progress"},
		{"operation", OperationSubjects("op"), "ob.server.*.event.op.>"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, tt.got, tt.want)
		}
	}
}

func TestARequestSubjectSaysKindAndTarget(t *testing.T) {
	t.Parallel()
	tests := []struct {
		subject string
		want    target
		err     string // none where empty
	}{
		{"ob.server.stop.request", target{Stop, 0, 0}, ""},
		{"ob.server.start.request", target{Start, 0, 0}, ""},
		{"ob.server.restart.request", target{Restart, 0, 0}, ""},
		{"ob.server.stop.request.1.2", target{Stop, 1, 2}, ""},
		{"ob.server.stop.request.9223372036854775807.1", target{Stop, 1<<63 - 1, 1}, ""},

		{"", target{}, "not of the form"},
		{"ob", target{}, "not of the form"},
		{"ob.server.stop", target{}, "not of the form"},
		{"ob.server.stop.event", target{}, "not of the form"},
		{"ob.server.request", target{}, "not of the form"},
		{"ob.zone.stop.request", target{}, "not of the form"},
		{"xx.server.stop.request", target{}, "not of the form"},
		{"OB.SERVER.STOP.REQUEST", target{}, "not of the form"},
		{"ob.server.STOP.request", target{"STOP", 0, 0}, "stop, start or restart"},
		{"ob.server.*.request", target{"*", 0, 0}, "stop, start or restart"},
		{"ob.server..request", target{"", 0, 0}, "stop, start or restart"},
		{"ob.server.stop.request.1", target{Stop, 0, 0}, "<cluster>.<server>"},
		{"ob.server.stop.request.1.2.3", target{Stop, 0, 0}, "<cluster>.<server>"},
		{"ob.server.stop.request.0.2", target{Stop, 0, 2}, "at least 1"},
		{"ob.server.stop.request.1.0", target{Stop, 1, 0}, "at least 1"},
		{"ob.server.stop.request.-1.2", target{Stop, 0, 2}, "at least 1"},
		{"ob.server.stop.request.+1.2", target{Stop, 0, 2}, "at least 1"},
		{"ob.server.stop.request.01.2", target{Stop, 0, 2}, "at least 1"},
		{"ob.server.stop.request.1_0.2", target{Stop, 0, 2}, "at least 1"},
		{"ob.server.stop.request.1.", target{Stop, 1, 0}, "at least 1"},
		{"ob.server.stop.request.x.y", target{Stop, 0, 0}, "at least 1"},
		{"ob.server.stop.request.1.١", target{Stop, 1, 0}, "at least 1"},
		{"ob.server.stop.request.1.9223372036854775808", target{Stop, 1, 0}, "at least 1"},
	}
	for _, tt := range tests {
		t.Run(tt.subject, func(t *testing.T) {
			t.Parallel()
			got, err := parseRequestSubject(tt.subject)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			switch {
			case tt.err != "":
				wantError(t, err, tt.err, tt.subject)
			case err != nil:
				t.Errorf("got error %v, want none", err)
			}
		})
	}
}

func TestAnEventsTokenIsReadBackFromItsSubject(t *testing.T) {
	t.Parallel()
	for _, want := range append(States(), Progress, Stalled, Duplicate) {
		if got := EventToken(EventSubject(Stop, "op", 1, 2, want)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := EventToken("nodots"); got != "nodots" {
		t.Errorf("got %s, want nodots", got)
	}
}

func TestFiveStatesAreFinal(t *testing.T) {
	t.Parallel()
	final := []State{Succeeded, Failed, Cancelled, Rejected, Expired}
	for _, s := range append(States(), Progress, Stalled, Duplicate) {
		if got, want := s.Final(), slices.Contains(final, s); got != want {
			t.Errorf("%s: got final %v, want %v", s, got, want)
		}
	}
}

func TestOnlyTheThreeKindsAreKnown(t *testing.T) {
	t.Parallel()
	for _, k := range Kinds() {
		if !k.Known() {
			t.Errorf("got %s as unknown, want known", k)
		}
	}
	for _, k := range []Kind{"", "Stop", "stop ", "kill"} {
		if k.Known() {
			t.Errorf("got %q as known, want unknown", k)
		}
	}
}
