//! A TCP relay on 127.0.0.1 that can be told to let nothing through: what a host sees of a cable that was pulled out.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

/// How soon a relay notices that it was cut, healed or dropped.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    is_cut: AtomicBool,
    is_over: AtomicBool,
}

/// A relay. With the value it ends, and its connections with it.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    state: Arc<State>,
}

impl Relay {
    /// One that leads to `to` on 127.0.0.1.
    ///
    /// # Errors
    /// Where there is no port left.
    pub fn to(to: u16) -> Result<Self> {
        let port = crate::net::free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || accept(&listener, to, &shared));
        Ok(Self { port, state })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Nothing gets through any more, and nobody is told.
    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
    }

    /// What waits gets through, and all that comes.
    pub fn heal(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
    }
}

fn accept(listener: &TcpListener, to: u16, state: &Arc<State>) {
    while !state.is_over.load(Ordering::SeqCst) {
        let accepted = if state.is_cut.load(Ordering::SeqCst) { None } else { listener.accept().ok() };
        let ends = accepted.and_then(|(near, _)| {
            let far = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).ok()?;
            near.set_nonblocking(false).ok()?;
            Some([(near.try_clone().ok()?, far.try_clone().ok()?), (far, near)])
        });
        for (from, to) in ends.into_iter().flatten() {
            let state = Arc::clone(state);
            std::thread::spawn(move || carry(from, to, &state));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Carries bytes until one side has ended; then the other is told.
fn carry(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut bytes = vec![0; 256 << 10];
    let deadline = from.set_read_timeout(Some(PAUSE));
    while deadline.is_ok() && !state.is_over.load(Ordering::SeqCst) {
        if state.is_cut.load(Ordering::SeqCst) {
            std::thread::sleep(PAUSE);
            continue;
        }
        match from.read(&mut bytes) {
            Ok(len @ 1..) if to.write_all(bytes.get(..len).unwrap_or_default()).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    for end in [from, to] {
        end.shutdown(std::net::Shutdown::Both).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_through_a_cut_relay_until_it_is_healed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::to(listener.local_addr().unwrap().port()).unwrap();
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
        let mut far = listener.accept().unwrap().0;
        near.write_all(b"a").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        relay.cut();
        std::thread::sleep(PAUSE * 5);
        near.write_all(b"b").unwrap();
        far.set_read_timeout(Some(PAUSE * 10)).unwrap();
        assert!(far.read(&mut byte).is_err());
        relay.heal();
        far.set_read_timeout(None).unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
    }
}
