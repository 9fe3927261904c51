use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::*;
use crate::ReactorError;
use crate::sys::tsc::monotonic_ns;
use crate::sys::wake::SleepSet;

const ANY_V4: &str = "127.0.0.1:0";
const WAIT_NS: u64 = 10_000_000_000;

fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address.parse().unwrap(), &SocketOptions::default(), false).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Calls `attempt` until it gives something.
fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = monotonic_ns();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(monotonic_ns() - start < WAIT_NS, "waited too long for {what}");
        std::thread::yield_now();
    }
}

fn accepted(listener: &TcpListener) -> TcpSocket {
    wait_for("a connection", || listener.accept().unwrap()).0
}

/// Our end of a connection, and a blocking peer.
fn pair() -> (TcpSocket, TcpStream) {
    let (listener, address) = listener(ANY_V4);
    let peer = TcpStream::connect(address).unwrap();
    (accepted(&listener), peer)
}

fn group() -> (SocketGroup, SleepSet, Vec<Ready>) {
    let sleep_set = SleepSet::new().unwrap();
    (SocketGroup::new(&sleep_set).unwrap(), sleep_set, Vec::with_capacity(READY_MAX))
}

fn poll_for(group: &mut SocketGroup, ready: &mut Vec<Ready>, wanted: impl Fn(&Ready) -> bool) -> Ready {
    wait_for("readiness", || {
        group.poll(ready);
        ready.iter().copied().find(&wanted)
    })
}

#[test]
fn a_connection_is_made_without_blocking_over_both_families() {
    for address in [ANY_V4, "[::1]:0"] {
        let (listener, address) = listener(address);
        let socket = TcpSocket::connect(address, &SocketOptions::default()).unwrap();
        let peer = accepted(&listener);
        wait_for("the connect", || socket.finish_connect().unwrap().then_some(()));
        assert_eq!(socket.peer_addr().unwrap(), address);
        assert_eq!(socket.local_addr().unwrap(), peer.peer_addr().unwrap());
        assert_eq!(socket.send_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"cd")]).unwrap(), Some(4));
        let (mut first, mut rest) = ([0; 1], [0; 9]);
        let mut pieces = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)];
        let len = wait_for("data", || peer.recv_vectored(&mut pieces).unwrap());
        assert_eq!((len, &first, &rest[..3]), (4, b"a", &b"bcd"[..]));
    }
}

#[test]
fn a_refused_connect_says_so() {
    let (listener, address) = listener(ANY_V4);
    drop(listener);
    let options = SocketOptions::default();
    let Ok(socket) = TcpSocket::connect(address, &options) else { return };
    let refused = wait_for("the refusal", || match socket.finish_connect() {
        Ok(done) => done.then(|| panic!("connected to nobody")),
        Err(error) => Some(error),
    });
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    let (_first, address) = listener(ANY_V4);
    let second = TcpListener::bind(address, &SocketOptions::default(), false);
    let Err(error @ ReactorError::Socket { .. }) = second else { panic!("{second:?}") };
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(error.to_string().contains("choose another port"), "{error}");
}

#[test]
fn a_shared_port_takes_several_listeners() {
    let any = ANY_V4.parse().unwrap();
    let first = TcpListener::bind(any, &SocketOptions::default(), true).unwrap();
    let second = TcpListener::bind(first.local_addr().unwrap(), &SocketOptions::default(), true).unwrap();
    let _peers: Vec<TcpStream> =
        (0..32).map(|_| TcpStream::connect(first.local_addr().unwrap()).unwrap()).collect();
    let mut came = 0;
    let mut taken = Vec::new();
    wait_for("32 connections", || {
        taken.extend([&first, &second].into_iter().filter_map(|listener| listener.accept().unwrap()));
        came = came.max(taken.len());
        (came == 32).then_some(())
    });
}

#[test]
fn accepted_connections_inherit_the_listeners_options() {
    let options = SocketOptions {
        keepalive: Some(Keepalive {
            idle: std::time::Duration::from_secs(7),
            interval: std::time::Duration::from_secs(2),
            probes: 3,
        }),
        user_timeout: Some(std::time::Duration::from_millis(1234)),
        recv_buffer_bytes: Some(256 << 10),
        priority: Some(6),
        ..SocketOptions::default()
    };
    let listener = TcpListener::bind(ANY_V4.parse().unwrap(), &options, false).unwrap();
    let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = accepted(&listener);
    use rustix::net::sockopt;
    assert!(sockopt::tcp_nodelay(&socket).unwrap());
    assert!(sockopt::socket_keepalive(&socket).unwrap());
    assert_eq!(sockopt::tcp_keepidle(&socket).unwrap().as_secs(), 7);
    assert_eq!(sockopt::tcp_keepcnt(&socket).unwrap(), 3);
    assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 1234);
    // The kernel doubles what is asked for (socket(7), SO_RCVBUF), within its own maximum.
    assert!(sockopt::socket_recv_buffer_size(&socket).unwrap() > 200_000);
    // Nothing paces within the machine, whatever the system's default is.
    assert_eq!(sockopt::tcp_congestion(&socket).unwrap(), "reno");
}

#[test]
fn nothing_to_receive_is_not_the_peers_end() {
    let (socket, mut peer) = pair();
    let mut buf = [0; 16];
    assert_eq!(socket.recv(&mut buf).unwrap(), None);
    peer.write_all(b"x").unwrap();
    assert_eq!(wait_for("data", || socket.recv(&mut buf).unwrap()), 1);
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(wait_for("the end", || socket.recv(&mut buf).unwrap()), 0);
}

#[test]
fn an_aborted_connection_resets_its_peer() {
    let (socket, mut peer) = pair();
    socket.abort();
    let error = peer.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_full_send_buffer_would_block_and_is_announced_when_there_is_room() {
    let (mut group, _sleep_set, mut ready) = group();
    let (socket, mut peer) = pair();
    group.add(&socket, 5, Interest::READ).unwrap();
    let chunk = vec![7_u8; 1 << 16];
    let mut sent = 0;
    while let Some(len) = socket.send(&chunk).unwrap() {
        sent += len;
    }
    group.poll(&mut ready);
    assert!(ready.is_empty(), "{ready:?}");
    group.want_write(&socket, 5, true).unwrap();
    group.poll(&mut ready);
    assert!(ready.is_empty(), "still full: {ready:?}");
    let mut drained = vec![0; sent];
    peer.read_exact(&mut drained).unwrap();
    let room = poll_for(&mut group, &mut ready, |ready| ready.writable);
    assert_eq!((room.key, room.readable, room.broken), (5, false, false));
    group.want_write(&socket, 5, false).unwrap();
    group.poll(&mut ready);
    assert!(ready.is_empty(), "{ready:?}");
}

#[test]
fn a_socket_that_gave_data_is_tried_each_turn_until_it_gives_nothing_for_long() {
    let (mut group, _sleep_set, mut ready) = group();
    let (socket, mut peer) = pair();
    group.add(&socket, 0, Interest::READ).unwrap();
    group.poll(&mut ready);
    assert!(ready.is_empty());
    peer.write_all(b"x").unwrap();
    let first = poll_for(&mut group, &mut ready, |ready| ready.readable);
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), Some(1));
    group.note(first.key, true);
    assert_eq!(group.hot_len(), 1);
    let mut vain = 0;
    wait_for("it to cool", || {
        group.poll(&mut ready);
        if ready.is_empty() {
            return Some(());
        }
        assert_eq!(ready.len(), 1, "reported once a turn");
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), None);
        group.note(0, false);
        vain += 1;
        None
    });
    assert!(vain > 100, "{vain}");
    peer.write_all(b"y").unwrap();
    poll_for(&mut group, &mut ready, |ready| ready.readable);
}

#[test]
fn a_cold_socket_is_seen_within_a_few_turns_beside_busy_hot_ones() {
    let (mut group, _sleep_set, mut ready) = group();
    let (hot, mut hot_peer) = pair();
    let (cold, mut cold_peer) = pair();
    group.add(&hot, 0, Interest::READ).unwrap();
    group.add(&cold, 1, Interest::READ).unwrap();
    hot_peer.write_all(&[1; 4096]).unwrap();
    poll_for(&mut group, &mut ready, |ready| ready.key == 0);
    assert_eq!(hot.recv(&mut [0; 1]).unwrap(), Some(1));
    group.note(0, true);
    cold_peer.write_all(b"x").unwrap();
    wait_for("the cold one's data in the kernel", || {
        let mut left = [0_u8; 1];
        let peeked = rustix::net::recv(&cold, &mut left[..], rustix::net::RecvFlags::PEEK);
        let len = peeked.map_or(0, |(_, len)| len);
        (len == 1).then_some(())
    });
    let turns = (0..64).position(|_| {
        group.poll(&mut ready);
        assert_eq!(hot.recv(&mut [0; 1]).unwrap(), Some(1));
        group.note(0, true);
        ready.iter().any(|ready| ready.key == 1)
    });
    assert!(turns.is_some_and(|turns| turns <= 9), "{turns:?}");
}

#[test]
fn more_hot_sockets_than_a_turn_takes_all_get_their_turn() {
    let (mut group, _sleep_set, mut ready) = group();
    let total = 600_u32;
    let (listener, address) = listener(ANY_V4);
    let mut ends = Vec::new();
    for key in 0..total {
        let mut peer = TcpStream::connect(address).unwrap();
        let socket = accepted(&listener);
        group.add(&socket, key, Interest::READ).unwrap();
        peer.write_all(&[0; 4096]).unwrap();
        group.note(key, true);
        ends.push((socket, peer));
    }
    let mut turns = vec![0; ends.len()];
    for _ in 0..30 {
        group.poll(&mut ready);
        assert!(ready.len() <= READY_MAX);
        for ready in &ready {
            let key = usize::try_from(ready.key).unwrap();
            turns[key] += 1;
            assert_eq!(ends[key].0.recv(&mut [0; 1]).unwrap(), Some(1));
            group.note(ready.key, true);
        }
    }
    let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
    assert!(*least >= 5, "least {least}, most {most}");
}

#[test]
fn a_paused_socket_is_not_reported_until_it_is_wanted_again() {
    let (mut group, _sleep_set, mut ready) = group();
    let (socket, mut peer) = pair();
    group.add(&socket, 9, Interest::READ).unwrap();
    peer.write_all(b"x").unwrap();
    poll_for(&mut group, &mut ready, |ready| ready.readable);
    group.note(9, true);
    group.want_read(&socket, 9, false).unwrap();
    for _ in 0..100 {
        group.poll(&mut ready);
        assert!(ready.is_empty(), "{ready:?}");
    }
    group.want_read(&socket, 9, true).unwrap();
    group.poll(&mut ready);
    assert!(ready.iter().any(|ready| ready.key == 9 && ready.readable));
}

#[test]
fn a_removed_socket_is_forgotten_and_its_key_free() {
    let (mut group, _sleep_set, mut ready) = group();
    let (first, mut first_peer) = pair();
    let (second, _second_peer) = pair();
    group.add(&first, 3, Interest::READ).unwrap();
    assert_eq!(group.add(&second, 3, Interest::READ).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    first_peer.write_all(b"x").unwrap();
    group.note(3, true);
    group.remove(&first, 3);
    assert_eq!((group.len(), group.hot_len()), (0, 0));
    group.add(&second, 3, Interest::READ).unwrap();
    group.poll(&mut ready);
    assert!(ready.is_empty(), "{ready:?}");
}

#[test]
fn a_reset_is_reported_as_broken() {
    let (mut group, _sleep_set, mut ready) = group();
    let (socket, peer) = pair();
    group.add(&socket, 0, Interest::NONE).unwrap();
    TcpSocket::from_fd(peer.into(), &SocketOptions::default()).unwrap().abort();
    let broken = poll_for(&mut group, &mut ready, |ready| ready.broken);
    assert!(broken.readable);
    assert_eq!(socket.recv(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn unread_data_ends_a_sleep_even_where_the_group_has_reported_it_before() {
    let (mut group, sleep_set, mut ready) = group();
    let (socket, mut peer) = pair();
    group.add(&socket, 0, Interest::READ).unwrap();
    let long_ns = 30_000_000_000;
    peer.write_all(b"xy").unwrap();
    for _ in 0..3 {
        let start = monotonic_ns();
        sleep_set.wait(Some(long_ns));
        assert!(monotonic_ns() - start < long_ns / 2, "it slept over unread data");
        poll_for(&mut group, &mut ready, |ready| ready.readable);
    }
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), Some(2));
    let start = monotonic_ns();
    sleep_set.wait(Some(5_000_000));
    assert!(monotonic_ns() - start >= 4_000_000, "nothing to read: it sleeps");
}
