//! A steady turn allocates nothing: not with pollers, not with sockets, busy or idle.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, as tests do"
)]

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use penstock_reactor::mem::Buf;
use penstock_reactor::net::{Interest, READY_MAX, Ready, SocketGroup, SocketOptions, TcpListener, TcpSocket};
use penstock_reactor::{Clock, Cx, PollMode, Poller, Reactor, ReactorConfig, ReactorId, Tick};

/// Answers each byte that comes with a block from the pools.
struct Echo {
    group: SocketGroup,
    sockets: Vec<TcpSocket>,
    ready: Vec<Ready>,
}

impl Poller for Echo {
    fn poll(&mut self, _cx: &Cx, _now: Tick) -> usize {
        self.group.poll(&mut self.ready);
        let mut work = 0;
        for ready in &self.ready {
            let socket = &self.sockets[usize::try_from(ready.key).unwrap()];
            let mut buf = Buf::alloc(8192).unwrap();
            let received = socket.recv(&mut buf).unwrap();
            self.group.note(ready.key, received.is_some());
            if let Some(len) = received {
                let (head, tail) = buf[..len].split_at(len / 2);
                assert_eq!(
                    socket.send_vectored(&[IoSlice::new(head), IoSlice::new(tail)]).unwrap(),
                    Some(len)
                );
                work += 1;
            }
        }
        work
    }
}

struct Ticking(Rc<Cell<u64>>);

impl Poller for Ticking {
    fn poll(&mut self, _cx: &Cx, _now: Tick) -> usize {
        self.0.set(self.0.get() + 1);
        1
    }
}

#[test]
fn turns_with_pollers_and_sockets_allocate_nothing() {
    let clock = Clock::system();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let mut reactor = Reactor::new(&config).unwrap();
    let cx = reactor.cx().clone();
    let listener =
        TcpListener::bind("127.0.0.1:0".parse().unwrap(), &SocketOptions::default(), false).unwrap();
    let mut group = SocketGroup::new(cx.sleep_set()).unwrap();
    let (mut sockets, mut hosts) = (Vec::new(), Vec::new());
    for key in 0..8 {
        let host = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        hosts.push(TcpSocket::from_fd(host.into(), &SocketOptions::default()).unwrap());
        let socket = loop {
            if let Some((socket, _)) = listener.accept().unwrap() {
                break socket;
            }
        };
        group.add(&socket, key, Interest::READ).unwrap();
        sockets.push(socket);
    }
    let ticks = Rc::new(Cell::new(0));
    cx.add_poller("echo", Box::new(Echo { group, sockets, ready: Vec::with_capacity(READY_MAX) }));
    cx.add_timed_poller("ticking", Duration::from_micros(10), Box::new(Ticking(ticks.clone())));
    let echoes = Rc::new(RefCell::new(0));
    let mut run = |turns: u64| {
        let mut reply = [0; 4096];
        for turn in 0..turns {
            // Busy for half of the time, on a few of the connections.
            if turn % 2000 < 1000 && turn % 8 == 0 {
                let host = &hosts[usize::try_from(turn / 1000 % 3).unwrap()];
                host.send(&[1; 72]).unwrap();
            }
            reactor.turn();
            for host in &hosts[..3] {
                *echoes.borrow_mut() += usize::from(host.recv(&mut reply).unwrap().is_some());
            }
        }
    };
    run(4000);
    let before = (penstock_allocations::count(), *echoes.borrow(), ticks.get());
    // More turns than there are between two publications of the pollers' counters.
    run(70_000);
    let after = (penstock_allocations::count(), *echoes.borrow(), ticks.get());
    assert!(
        after.1 > before.1 + 1000 && after.2 > before.2 + 1000,
        "it worked meanwhile: {before:?} {after:?}"
    );
    assert_eq!(after.0 - before.0, 0, "allocations");
}
