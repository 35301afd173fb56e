package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
)

// netFault is what a proxy does to the bytes of one direction, or both. The zero
// value passes them on.
type netFault struct {
	kind     netKind
	up, down bool          // which way: to the server, to the agent
	delay    time.Duration // of latency, for each piece of up to 32 KiB, and of slowClose
	rate     int           // bytes a second, of bandwidth
}

type netKind string

const (
	latency   netKind = "latency"
	bandwidth netKind = "bandwidth"
	slowClose netKind = "slow_close" // the end of a connection comes late
	hold      netKind = "hold"       // bytes arrive when the fault has ended, as TCP sends them again
	drop      netKind = "drop"       // bytes are lost, and the connection breaks when the fault has ended
	refuse    netKind = "refuse"     // no new connections, and the existing ones are reset
	reset     netKind = "reset"      // the existing connections are reset at once
)

// proxy stands between one agent and NATS or OCP. Toxiproxy (2.5.0) is no alternative: it brings seven modules, cannot
// reset an existing connection, and hangs if a connection breaks while a fault is removed.
type proxy struct {
	address, upstream string
	mu                sync.Mutex
	listener          net.Listener
	fault             netFault
	changed           chan struct{} // closed when fault changes
	conns             map[*net.TCPConn]struct{}
	running           sync.WaitGroup
}

func newProxy(t *testing.T, upstream string) *proxy {
	p := &proxy{address: agenttest.FreeAddress(t), upstream: upstream, changed: make(chan struct{}), conns: map[*net.TCPConn]struct{}{}}
	p.set(netFault{})
	t.Cleanup(func() {
		p.set(netFault{kind: refuse})
		p.running.Wait()
	})
	return p
}

// set replaces the fault.
func (p *proxy) set(f netFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.kind == drop || f.kind == refuse || f.kind == reset {
		for conn := range p.conns {
			_ = conn.SetLinger(0) // closed by now, at worst
			_ = conn.Close()
		}
	}
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
	switch {
	case f.kind == refuse && p.listener != nil:
		_ = p.listener.Close() // ends accept
		p.listener = nil
	case f.kind != refuse && p.listener == nil:
		l := listen(p.address)
		p.listener = l
		p.running.Go(func() { p.accept(l) })
	}
}

// listen tries for a while, because a port may take a moment to be free again.
func listen(address string) net.Listener {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var l net.Listener
	err := agenttest.Poll(ctx, 50*time.Millisecond, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		panic(err) // nobody else uses ports of this range
	}
	return l
}

func (p *proxy) now() (netFault, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, p.changed
}

func (p *proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.carry(client.(*net.TCPConn)) })
	}
}

func (p *proxy) carry(client *net.TCPConn) {
	defer client.Close()
	upstream, err := net.DialTimeout("tcp", p.upstream, time.Second)
	if err != nil {
		return
	}
	server := upstream.(*net.TCPConn)
	defer server.Close()
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client, true) })
	both.Go(func() { p.pump(client, server, false) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

// pump carries one direction of a connection, including its end.
func (p *proxy) pump(to, from *net.TCPConn, up bool) {
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		f, changed := p.now()
		for n > 0 && f.kind == hold && (up && f.up || !up && f.down) {
			<-changed
			f, changed = p.now()
		}
		concerned := up && f.up || !up && f.down
		switch {
		case concerned && f.kind == latency:
			time.Sleep(f.delay)
		case concerned && f.kind == bandwidth:
			time.Sleep(time.Duration(n) * time.Second / time.Duration(f.rate))
		case concerned && f.kind == slowClose && err != nil:
			time.Sleep(f.delay)
		case concerned && f.kind == drop:
			n = 0
		}
		if n > 0 {
			if _, failed := to.Write(piece[:n]); failed != nil {
				err = failed
			}
		}
		if errors.Is(err, io.EOF) {
			_ = to.CloseWrite() // broken by now, at worst
			return
		}
		if err != nil {
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}
