//! An idle reactor costs next to nothing and is there at once: one test, alone in its process, because it measures the
//! processor time of all of it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, as tests do"
)]

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use penstock_reactor::net::{Interest, READY_MAX, Ready, SocketGroup, SocketOptions, TcpListener, TcpSocket};
use penstock_reactor::sys::affinity;
use penstock_reactor::{Clock, Cx, PollMode, Poller, Reactor, ReactorConfig, ReactorId, Started, Tick};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

const HOSTS_PER_REACTOR: usize = 4;
const SAMPLES: usize = 30;
/// Fewer samples that other programs did not disturb say nothing.
const SAMPLES_MIN: usize = 5;
/// As in `PollMode::ADAPTIVE`.
const SPIN_NS: u64 = 1_000_000;

/// Accepts hosts and answers each byte.
struct Answering {
    listener: TcpListener,
    group: SocketGroup,
    sockets: Vec<TcpSocket>,
    ready: Vec<Ready>,
}

impl Answering {
    const LISTENER: u32 = 1000;

    fn new(cx: &Cx) -> (Self, SocketAddr) {
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = TcpListener::bind(any, &SocketOptions::default(), false).unwrap();
        let address = listener.local_addr().unwrap();
        let mut group = SocketGroup::new(cx.sleep_set()).unwrap();
        group.add(&listener, Self::LISTENER, Interest::READ).unwrap();
        (Self { listener, group, sockets: Vec::new(), ready: Vec::with_capacity(READY_MAX) }, address)
    }
}

impl Poller for Answering {
    fn poll(&mut self, _cx: &Cx, _now: Tick) -> usize {
        self.group.poll(&mut self.ready);
        let mut work = 0;
        for ready in &self.ready {
            if ready.key == Self::LISTENER {
                while let Some((socket, _)) = self.listener.accept().unwrap() {
                    let key = u32::try_from(self.sockets.len()).unwrap();
                    self.group.add(&socket, key, Interest::READ).unwrap();
                    self.sockets.push(socket);
                    work += 1;
                }
                continue;
            }
            let socket = &self.sockets[usize::try_from(ready.key).unwrap()];
            let received = socket.recv(&mut [0; 64]).unwrap();
            self.group.note(ready.key, received.is_some());
            if received.is_some_and(|len| len > 0) {
                socket.send(&[1]).unwrap();
                work += 1;
            }
        }
        work
    }
}

/// The reactors' core and the host's, two where there are two: a reactor that polls on after its answer must not keep
/// the host from seeing it.
fn cores() -> (u32, u32) {
    let cores = affinity::allowed();
    (cores[0], cores[cores.len() - 1])
}

fn start(id: u32, core: u32) -> (Started, SocketAddr) {
    let config = ReactorConfig {
        id: ReactorId(id),
        core: Some(core),
        mode: PollMode::Adaptive { spin_ns: SPIN_NS },
        clock: Clock::system(),
        seed: 1,
    };
    let started = Reactor::start(config).unwrap();
    let (tell, told) = mpsc::channel();
    let begin = move |cx: &Cx| {
        let (answering, address) = Answering::new(cx);
        cx.add_poller("answering", Box::new(answering));
        tell.send(address).unwrap();
    };
    started.handle.send(begin).unwrap();
    (started, told.recv_timeout(Duration::from_secs(10)).unwrap())
}

fn now_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// Sleeps without using any processor time.
fn rest(ms: i64) {
    let time = Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
    poll(&mut [], Some(&time)).unwrap();
}

/// How long this process's threads have waited, ready to run, while others had the cores (`/proc/PID/schedstat`).
fn waited_ns() -> u64 {
    let waited = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    std::fs::read_dir("/proc/self/task").unwrap().filter_map(waited).sum()
}

/// How long `host` waits for the answer to one byte, polling for it; `None` where other programs had a part in it.
fn answered_in_ns(host: &TcpSocket) -> Option<u64> {
    let waited = waited_ns();
    let start = now_ns(ClockId::Monotonic);
    host.send(&[1]).unwrap();
    while host.recv(&mut [0; 8]).unwrap().is_none() {
        assert!(now_ns(ClockId::Monotonic) - start < 10_000_000_000, "no answer");
    }
    let took = now_ns(ClockId::Monotonic) - start;
    (waited_ns() - waited < 20_000).then_some(took)
}

/// The lower quartile and the median; `None` of too few.
fn quartiles(mut samples: Vec<u64>) -> Option<(u64, u64)> {
    samples.sort_unstable();
    (samples.len() >= SAMPLES_MIN).then(|| (samples[samples.len() / 4], samples[samples.len() / 2]))
}

/// The same by a plain thread that polls as long and then blocks: what this machine can do just now.
fn plain_thread(core: u32) -> TcpSocket {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let fd: OwnedFd = listener.accept().unwrap().0.into();
    std::thread::spawn(move || {
        affinity::pin(core).unwrap();
        let socket = TcpSocket::from_fd(fd, &SocketOptions::default()).unwrap();
        let mut answered = 0;
        loop {
            if now_ns(ClockId::Monotonic) - answered > SPIN_NS {
                poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
            }
            match socket.recv(&mut [0; 8]) {
                Ok(Some(0)) | Err(_) => return,
                Ok(Some(_)) => {
                    socket.send(&[1]).unwrap();
                    answered = now_ns(ClockId::Monotonic);
                }
                Ok(None) => {}
            }
        }
    });
    TcpSocket::from_fd(host.into(), &SocketOptions::default()).unwrap()
}

#[test]
fn idle_reactors_use_less_than_two_per_cent_of_a_core_and_answer_within_100_us() {
    let (core, hosts_core) = cores();
    affinity::pin(hosts_core).unwrap();
    let (reactors, addresses): (Vec<Started>, Vec<SocketAddr>) = (0..2).map(|id| start(id, core)).unzip();
    let mut hosts = Vec::new();
    for address in addresses {
        for _ in 0..HOSTS_PER_REACTOR {
            let host = TcpStream::connect(address).unwrap();
            hosts.push(TcpSocket::from_fd(host.into(), &SocketOptions::default()).unwrap());
        }
    }
    for host in &hosts {
        answered_in_ns(host);
    }
    rest(200);
    let (wall, cpu) = (now_ns(ClockId::Monotonic), now_ns(ClockId::ProcessCPUTime));
    rest(2000);
    let wall = now_ns(ClockId::Monotonic) - wall;
    let cpu = now_ns(ClockId::ProcessCPUTime) - cpu;
    assert!(cpu * 50 < wall, "{} us of processor time in {} us", cpu / 1000, wall / 1000);

    let plain = plain_thread(core);
    let (mut ours, mut plains) = (Vec::new(), Vec::new());
    for sample in 0..SAMPLES {
        rest(50);
        ours.extend(answered_in_ns(&hosts[sample % hosts.len()]));
        rest(50);
        plains.extend(answered_in_ns(&plain));
    }
    let cpu_us = cpu / 1000;
    match (quartiles(ours), quartiles(plains)) {
        (Some((ours, ours_median)), Some((plain, plain_median))) => {
            println!(
                "idle: {cpu_us} us of processor time in 2 s; first answer after {ours} ns (median {ours_median}), of a \
                 plain thread {plain} ns ({plain_median})"
            );
            // What others take from a sample only makes it longer, so a quarter of them tells. Where waking any thread takes
            // longer than that, ours may take half as long again.
            assert!(
                ours < 100_000.max(plain + plain / 2),
                "first answer after {ours} ns, of a plain thread {plain} ns"
            );
        }
        _ => println!("idle: {cpu_us} us of processor time in 2 s; too much else runs here to time answers"),
    }
    for reactor in reactors {
        assert!(reactor.handle.stats().sleeps.read() > 0);
        reactor.handle.stop();
        reactor.join.join().unwrap();
    }
}
