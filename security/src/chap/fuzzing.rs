//! What the fuzz targets do with bytes: a host and a controller that authenticate each other while somebody in between
//! changes, drops, repeats and invents messages; and secrets as texts. The corpora are replayed by the ordinary tests.

use penstock_spec::nvmf::Nqn;

use super::{
    ControllerSide, Event, HostConfig, HostSide, HostStep, Job, Keys, MESSAGE_LEN_MAX, Parties, Policy,
    SecureChannel, Step,
};
use crate::dh::DhGroup;
use crate::hash::Hash;
use crate::psk::ConfiguredPsk;
use crate::secret::Secret;

/// Messages that are kept to be repeated, at most.
const KEPT_MAX: usize = 8;

/// Two who authenticate each other, and what was seen between them.
struct Between {
    host: HostSide,
    controller: ControllerSide,
    keys: Keys,
    policy: Policy,
    kept: Vec<Vec<u8>>,
    /// The host does not know the secret.
    impostor: bool,
}

fn parties() -> Option<Parties> {
    let host = Nqn::parse(b"nqn.2026-11.io.penstock:host").ok()?;
    Some(Parties { host, subsystem: Nqn::parse(b"nqn.2026-11.io.penstock:disk").ok()? })
}

fn secret(byte: u8) -> Option<Secret> {
    // Any text of a secret will do; these differ in their last bytes and in their checksum.
    let text = match byte {
        0 => "DHHC-1:00:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:",
        _ => "DHHC-1:00:ZmZlZWRkY2NiYmFhOTk4ODc3NjY1NTQ0MzMyMjExMDCnmXvX:",
    };
    Secret::parse(text).ok().or_else(|| Secret::generate(None).ok())
}

impl Between {
    /// The first byte says who knows what, and what may be agreed on.
    fn new(how: u8) -> Option<Self> {
        let parties = parties()?;
        let impostor = how & 1 != 0;
        let controller = (how & 2 != 0).then(|| secret(0)).flatten();
        let keys = Keys { host: secret(0)?, controller };
        let own = if impostor {
            Keys { host: secret(1)?, controller: keys.controller.clone() }
        } else {
            keys.clone()
        };
        // With a group, every transaction costs milliseconds.
        let groups =
            if how & 0xf0 == 0xf0 { vec![DhGroup::Ffdhe2048, DhGroup::Null] } else { vec![DhGroup::Null] };
        let hash = [Hash::Sha256, Hash::Sha384, Hash::Sha512, Hash::Sha256];
        let hashes = vec![hash.get(usize::from(how >> 2 & 3)).copied().unwrap_or(Hash::Sha256)];
        let policy = Policy { hashes, groups };
        let config = HostConfig { parties, keys: own, policy: policy.clone(), channel: SecureChannel::NONE };
        Some(Self {
            host: HostSide::new(config, 7),
            controller: ControllerSide::new(parties, SecureChannel::NEW_TLS_PSK),
            keys,
            policy,
            kept: Vec::new(),
            impostor,
        })
    }

    /// A message for the controller.
    fn send(&mut self, message: &[u8]) {
        let step = self.controller.send(message, &self.policy, Some(&self.keys));
        match step {
            Step::Work(job) => {
                assert!(matches!(self.controller.send(message, &self.policy, None), Step::Busy), "it works");
                let done = self.controller.worked(job.run(), 0);
                assert!(matches!(done, Step::Taken), "a Send is taken: {done:?}");
            }
            step => assert!(matches!(step, Step::Taken), "a Send is taken: {step:?}"),
        }
    }

    /// What the controller says to a Receive of `len` bytes.
    fn receive(&mut self, len: usize) -> Vec<u8> {
        let step = match self.controller.receive(len) {
            Step::Work(job) => self.controller.worked(job.run(), len),
            step => step,
        };
        let Step::Message(message) = step else { panic!("a Receive has a message: {step:?}") };
        assert!(message.len() <= MESSAGE_LEN_MAX, "{} bytes", message.len());
        message
    }

    fn tell_host(&mut self, message: &[u8]) {
        let mut job: Option<Job> = self.host.received(message);
        if let Some(job) = job.take() {
            self.host.worked(job.run());
        }
    }

    fn keep(&mut self, message: &[u8]) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(message.to_vec());
        }
    }

    fn check(&mut self) {
        let event = self.controller.take_event();
        let authenticated = matches!(event, Some(Event::Authenticated { .. }));
        assert!(!(authenticated && self.impostor), "an impostor is believed");
        if event.is_some() {
            assert!(self.controller.is_over(), "after an event nothing more is to come");
        }
    }

    /// One thing that happens: an operation and two numbers.
    fn act(&mut self, [op, a, b]: [u8; 3]) {
        let changed = |mut message: Vec<u8>| {
            let at = usize::from(a) % message.len().max(1);
            if let Some(byte) = message.get_mut(at) {
                *byte ^= b;
            }
            if op & 8 != 0 {
                message.resize(usize::from(a) * 4 + usize::from(b & 3), b);
            }
            message
        };
        match (op & 7, self.host.step()) {
            // As it should be, or changed on the way.
            (0..=3, HostStep::Send(message)) => {
                self.keep(&message);
                self.send(&if op & 4 == 0 && op & 2 == 0 { message } else { changed(message) });
            }
            (0..=3, HostStep::Receive(len)) => {
                let len = if op & 16 == 0 { len } else { usize::from(a) * 2 };
                let message = self.receive(len);
                self.keep(&message);
                let mut message = if op & 2 == 0 { message } else { changed(message) };
                message.resize(message.len().max(len), 0);
                self.tell_host(&message);
            }
            (4, _) => {
                let message = self.kept.get(usize::from(a) % KEPT_MAX).cloned().unwrap_or_default();
                if b & 1 == 0 { self.send(&changed(message)) } else { self.tell_host(&changed(message)) }
            }
            (5, _) => {
                let message = vec![b; usize::from(a)];
                if op & 8 == 0 { self.send(&message) } else { self.tell_host(&message) }
            }
            (6, _) => drop(self.receive(usize::from(a))),
            _ => {}
        }
        self.check();
    }
}

/// Both sides, and somebody in between.
///
/// # Panics
/// Where an impostor is believed, or a machine is in a state that it cannot be in.
pub fn authentication(bytes: &[u8]) {
    let Some((how, program)) = bytes.split_first() else { return };
    let Some(mut between) = Between::new(*how) else { return };
    for op in program.as_chunks().0.iter().take(64) {
        between.act(*op);
    }
}

/// Secrets as people write them: what is read is written the same way again.
///
/// # Panics
/// Where it is not.
pub fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(secret) = Secret::parse(text) {
        let again = secret.to_text();
        assert!(Secret::parse(&again).as_ref() == Ok(&secret), "a secret is another when it is read again");
    }
    if let Ok(psk) = ConfiguredPsk::parse(text) {
        let again = psk.to_text();
        assert!(ConfiguredPsk::parse(&again).as_ref() == Ok(&psk), "a key is another when it is read again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(corpus: &str, target: fn(&[u8])) {
        let dir = format!("{}/../fuzz/corpus/{corpus}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir}: {error}")) {
            target(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }

    #[test]
    fn the_corpora_of_authentications_and_texts_pass() {
        replay("authentication", authentication);
        replay("secret_texts", texts);
    }

    #[test]
    fn random_programs_pass() {
        let rounds = std::env::var("FUZZ_ROUNDS").map_or(3_000, |rounds| rounds.parse().unwrap());
        let mut state = 5_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(state >> 56).unwrap()
        };
        for _ in 0..rounds {
            let bytes: Vec<u8> = (0..1 + 3 * usize::from(next() & 15)).map(|_| next()).collect();
            if std::panic::catch_unwind(|| authentication(&bytes)).is_err() {
                panic!("{bytes:02x?}");
            }
        }
    }

    #[test]
    fn an_undisturbed_program_ends_in_an_authentication() {
        for how in [0_u8, 2, 4, 10, 0xf2] {
            let mut between = Between::new(how).unwrap();
            let mut proven = false;
            for _ in 0..8 {
                match between.host.step() {
                    HostStep::Send(message) => between.send(&message),
                    HostStep::Receive(len) => {
                        let message = between.receive(len);
                        between.tell_host(&message);
                    }
                    HostStep::Over(result) => assert!(result.is_ok(), "{result:?}"),
                    HostStep::Work(_) => unreachable!("jobs come from received"),
                }
                proven |= matches!(between.controller.take_event(), Some(Event::Authenticated { .. }));
            }
            assert!(proven, "{how:#x}");
        }
    }
}
