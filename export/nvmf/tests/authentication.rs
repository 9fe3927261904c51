//! Goal: a host with secrets gets nothing before it has authenticated itself, and everything after.
//! Method: a target of two reactors; our own initiator with right and wrong secrets, and raw commands around it.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and waits on a thread of its own"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use penstock_bdev::Registry;
use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingError};
use penstock_nvme_tcp::controller::{ControllerConfig, ControllerError};
use penstock_nvme_tcp::{
    AuthConfig, Completion, Qpair, QpairConfig, QpairError, Tls, TlsKey, Transfer, command,
};
use penstock_nvmf::auth::HostKeys;
use penstock_nvmf::target::{CreateSubsystem, ListenAddress, ListenOptions, Namespace};
use penstock_nvmf::{Target, TransportOptions};
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use penstock_security::chap::{
    AuthFailureReason, HostConfig, HostError, HostSide, HostStep, Keys, Parties, Policy, SecureChannel,
};
use penstock_security::dh::DhGroup;
use penstock_security::hash::{Bytes, Hash};
use penstock_security::psk::{ConfiguredPsk, TlsPsk};
use penstock_security::secret::Secret;
use penstock_security::tls::{Context as TlsContext, Progress, PskStore, Session};
use penstock_spec::nvme::{Cqe, SglDescriptor, Sqe, Status};
use penstock_spec::nvme_tcp::{CapsuleCmdHdr, CapsuleRespHdr, CommonHdr, DigestFlags, IcReq, PduType};
use penstock_spec::nvmf::auth::AuthCmd;
use penstock_spec::nvmf::connect::ConnectResult;
use penstock_spec::nvmf::property::{Cc, PropertySize, offset};
use penstock_spec::nvmf::{ConnectCmd, ConnectData, Nqn};
use zerocopy::{FromBytes, IntoBytes};

const NQN: &str = "nqn.2026-11.io.penstock:disk";
const HOST: &str = "nqn.2026-11.io.penstock:host";
const TIMEOUT: Duration = Duration::from_secs(20);

struct Node {
    target: Target,
    reactors: Vec<Started>,
    addr: SocketAddr,
}

impl Node {
    /// A subsystem that only [`HOST`] may use, with these keys.
    fn new(keys: Option<&Keys>) -> Self {
        let start = |id| {
            let mode = PollMode::Adaptive { spin_ns: 50_000 };
            let clock = Clock::system();
            Reactor::start(ReactorConfig { id: ReactorId(id), core: None, mode, clock, seed: 1 }).unwrap()
        };
        let reactors: Vec<_> = (0..2).map(start).collect();
        let registry = Registry::new();
        let options = serde_json::json!({ "num_blocks": 4096, "block_size": 512 });
        let options: MallocOptions = serde_json::from_value(options).unwrap();
        registry.register(Malloc::new("disk0", &options).unwrap(), &[]).unwrap();
        let target = Target::new(reactors.iter().map(|reactor| reactor.handle.clone()).collect(), registry);
        let addr = block_on(async {
            target.create_transport(TransportOptions::default()).await.unwrap();
            target.create_subsystem(&CreateSubsystem::named(NQN)).await.unwrap();
            target.add_ns(NQN, &Namespace::on("disk0")).await.unwrap();
            let keys = HostKeys { chap: keys.cloned(), ..HostKeys::default() };
            target.add_host(NQN, HOST, keys).await.unwrap();
            let any_port = ListenAddress::tcp("127.0.0.1:0".parse().unwrap());
            target.add_listener(NQN, &any_port).await.unwrap()
        });
        Self { target, reactors, addr }
    }

    fn admin(&self, auth: Option<&Keys>, policy: Policy) -> QpairConfig {
        let _ = self;
        let mut admin = QpairConfig::admin(
            [1; 16],
            Nqn::parse(HOST.as_bytes()).unwrap(),
            Nqn::parse(NQN.as_bytes()).unwrap(),
        );
        admin.auth = auth.map(|keys| Arc::new(AuthConfig { keys: keys.clone(), policy }));
        admin
    }

    fn connect(&self, auth: Option<&Keys>, policy: Policy) -> Result<BlockingController, BlockingError> {
        let step_timeout_ns = u64::try_from(TIMEOUT.as_nanos()).unwrap();
        let config = ControllerConfig { admin: self.admin(auth, policy), io_queues: 4, step_timeout_ns };
        BlockingController::connect(self.addr, config, TIMEOUT)
    }

    fn stat(&self, name: &str) -> u64 {
        let stats = block_on(self.target.get_stats()).unwrap();
        let groups = stats["poll_groups"].as_array().unwrap();
        groups.iter().map(|group| group[name].as_u64().unwrap()).sum()
    }
}

/// A host that talks TLS: our initiator's machine, a session and a socket.
struct SecureHost {
    stream: TcpStream,
    session: Session,
    qpair: Qpair<Box<[u8]>>,
}

struct NoStore;

impl PskStore for NoStore {
    fn find(&self, _identity: &[u8]) -> Option<Arc<TlsPsk>> {
        None
    }
}

impl SecureHost {
    fn connect(addr: SocketAddr, psk: &TlsPsk, config: QpairConfig) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let session = Session::client(&TlsContext::new().unwrap(), Arc::new(psk.clone())).unwrap();
        let mut this = Self { stream, session, qpair: Qpair::new(config) };
        while this.session.handshake(&NoStore).map_err(|error| error.to_string())? != Progress::Done {
            this.exchange()?;
        }
        while !this.qpair.is_live() {
            this.turn()?;
        }
        Ok(this)
    }

    fn flush(&mut self) {
        while !self.session.net_bytes().is_empty() {
            let len = self.stream.write(self.session.net_bytes()).unwrap();
            self.session.net_sent(len);
        }
    }

    /// Sends what there is, and receives once.
    fn exchange(&mut self) -> Result<(), String> {
        self.flush();
        match self.stream.read(self.session.net_space()) {
            Ok(len) if len > 0 => self.session.net_came(len),
            other => return Err(format!("the connection is over: {other:?}")),
        }
        Ok(())
    }

    fn send(&mut self) {
        while self.qpair.tx_len_bytes() > 0 {
            let bytes: Vec<u8> = self.qpair.tx_slices().flatten().copied().collect();
            let mut sent = 0;
            while sent < bytes.len() {
                sent += self.session.write(&bytes[sent..]).unwrap().unwrap_or(0);
                self.flush();
            }
            self.qpair.tx_consume(sent);
        }
    }

    fn turn(&mut self) -> Result<(), String> {
        self.send();
        self.exchange()?;
        let mut buf = [0; 9000];
        while let Some(len) = self.session.read(&mut buf).map_err(|error| error.to_string())? {
            if len == 0 {
                return Err("the target has closed".to_owned());
            }
            self.qpair.recv(&buf[..len]).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn execute(&mut self, sqe: Sqe, transfer: Transfer, data: Option<Box<[u8]>>) -> Completion<Box<[u8]>> {
        self.qpair.submit(sqe, transfer, 0, data).unwrap();
        loop {
            if let Some(done) = self.qpair.poll() {
                return done;
            }
            self.turn().unwrap();
        }
    }

    fn enable(&mut self) {
        let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
        let sqe = command::property_set(offset::CC, cc.0);
        assert!(self.execute(sqe, Transfer::None, None).status().is_success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for reactor in self.reactors.drain(..) {
            reactor.handle.stop();
            reactor.join.join().unwrap();
        }
    }
}

fn keys() -> Keys {
    let secret = || Secret::generate(Some(Hash::Sha256)).unwrap();
    Keys { host: secret(), controller: Some(secret()) }
}

fn only(hash: Hash, group: DhGroup) -> Policy {
    Policy { hashes: vec![hash], groups: vec![group] }
}

fn error_of(result: Result<BlockingController, BlockingError>) -> QpairError {
    match result {
        Err(BlockingError::Qpair(error) | BlockingError::Controller(ControllerError::Qpair(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn admin_and_io_queues_work_once_the_host_has_proven_itself() {
    let keys = keys();
    let node = Node::new(Some(&keys));
    for (hash, group) in [(Hash::Sha512, DhGroup::Null), (Hash::Sha256, DhGroup::Ffdhe2048)] {
        let host = node.connect(Some(&keys), only(hash, group)).unwrap();
        for qid in 1..=4 {
            let mut queue = host.open_io::<Box<[u8]>>(qid, 32).unwrap();
            let data = vec![0; 4096].into_boxed_slice();
            let done = queue.execute(command::read(1, 0, 8), Transfer::Read(4096), Some(data)).unwrap();
            assert!(done.status().is_success());
        }
        host.shut_down().unwrap();
    }
    assert_eq!(node.stat("auth_failures"), 0);
}

#[test]
fn the_largest_group_does_not_hold_up_a_reactor() {
    let keys = keys();
    let node = Node::new(Some(&keys));
    let begin = Instant::now();
    let host = node.connect(Some(&keys), only(Hash::Sha384, DhGroup::Ffdhe8192)).unwrap();
    let took = begin.elapsed();
    host.shut_down().unwrap();
    let longest =
        node.reactors.iter().map(|reactor| reactor.handle.stats().stall_ns_max.read()).max().unwrap();
    // On a busy machine a poller may have been off its core; it has not done a fourth of the work.
    assert!(u128::from(longest) < took.as_nanos() / 4, "{longest} ns in one poller, of {took:?}");
}

#[test]
fn whoever_cannot_prove_himself_is_refused() {
    let right = keys();
    let node = Node::new(Some(&right));
    let wrong = Keys { controller: None, ..keys() };
    for group in [DhGroup::Null, DhGroup::Ffdhe2048] {
        let error = error_of(node.connect(Some(&wrong), only(Hash::Sha256, group)));
        assert_eq!(error, QpairError::Authentication(HostError::Refused(AuthFailureReason::FAILED)));
    }
    assert_eq!(error_of(node.connect(None, Policy::default())), QpairError::AuthenticationRequired);
    // A host that believes another controller finds out.
    let suspicious = Keys { controller: keys().controller, ..right.clone() };
    let error = error_of(node.connect(Some(&suspicious), only(Hash::Sha256, DhGroup::Null)));
    assert_eq!(error, QpairError::Authentication(HostError::Impostor));
    let begin = Instant::now();
    while node.stat("auth_failures") < 3 || node.stat("connections") > 0 {
        assert!(begin.elapsed() < TIMEOUT, "refused hosts stay connected");
    }
}

#[test]
fn replaced_secrets_count_from_the_next_connection_on() {
    let (old, new) = (keys(), keys());
    let node = Node::new(Some(&old));
    let policy = || only(Hash::Sha256, DhGroup::Null);
    let host = node.connect(Some(&old), policy()).unwrap();
    let replaced = HostKeys { chap: Some(new.clone()), ..HostKeys::default() };
    block_on(node.target.set_keys(NQN, HOST, replaced)).unwrap();
    // What is connected stays so; its next queue must know the new secret.
    assert!(host.open_io::<Box<[u8]>>(1, 32).is_err());
    assert!(node.connect(Some(&old), policy()).is_err());
    node.connect(Some(&new), policy()).unwrap().shut_down().unwrap();
    host.shut_down().unwrap();
    block_on(node.target.set_keys(NQN, HOST, HostKeys::default())).unwrap();
    node.connect(None, policy()).unwrap().shut_down().unwrap();
}

#[test]
fn hash_functions_and_groups_that_are_not_allowed_are_refused() {
    let keys = keys();
    let node = Node::new(Some(&keys));
    block_on(node.target.set_auth_policy(only(Hash::Sha384, DhGroup::Ffdhe2048))).unwrap();
    let refused = |hash, group| error_of(node.connect(Some(&keys), only(hash, group)));
    let reason = |reason| QpairError::Authentication(HostError::Refused(reason));
    assert_eq!(refused(Hash::Sha256, DhGroup::Ffdhe2048), reason(AuthFailureReason::HASH_UNUSABLE));
    assert_eq!(refused(Hash::Sha384, DhGroup::Null), reason(AuthFailureReason::DHGROUP_UNUSABLE));
    node.connect(Some(&keys), Policy::default()).unwrap().shut_down().unwrap();
}

/// A connection that sends what it is told to.
struct Raw(TcpStream);

impl Raw {
    fn connect(addr: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(IcReq::new(0, DigestFlags(0), 1).as_bytes()).unwrap();
        stream.read_exact(&mut [0; 128]).unwrap();
        let mut raw = Self(stream);
        let nqn = |name: &str| Nqn::parse(name.as_bytes()).unwrap();
        let data = ConnectData::new([1; 16], 0xffff, &nqn(NQN), &nqn(HOST));
        let connect = ConnectCmd {
            opc: 0x7f,
            flags: Sqe::FLAGS_FABRICS,
            cid: 1.into(),
            fctype: 1,
            sqsize0: 31.into(),
            ..ConnectCmd::default()
        };
        let done = raw.execute(*connect.as_sqe(), data.as_bytes());
        assert!(done.status().is_success() && ConnectResult(done.dw0.get()).atr());
        raw
    }

    /// Sends a command with data in its capsule; the completion.
    fn execute(&mut self, mut sqe: Sqe, data: &[u8]) -> Cqe {
        let len = u32::try_from(data.len()).unwrap();
        sqe.sgl1 = SglDescriptor::in_capsule(0, len);
        let pdo = if len > 0 { 72 } else { 0 };
        let ch = CommonHdr::new(PduType::CAPSULE_CMD, 0, 72, pdo, 72 + len);
        let hdr = CapsuleCmdHdr { ch, sqe };
        self.0.write_all(&[hdr.as_bytes(), data].concat()).unwrap();
        self.completion()
    }

    fn completion(&mut self) -> Cqe {
        let mut response = [0; 24];
        self.0.read_exact(&mut response).unwrap();
        CapsuleRespHdr::ref_from_bytes(&response).unwrap().cqe
    }

    /// An Authentication Receive of 2 KiB.
    fn receive(&mut self) -> Vec<u8> {
        let cmd = AuthCmd {
            opc: 0x7f,
            flags: Sqe::FLAGS_FABRICS,
            cid: 8.into(),
            fctype: 6,
            spsp0: 1,
            spsp1: 1,
            secp: 0xe9,
            len_bytes: 2048.into(),
            sgl1: SglDescriptor::transport(2048),
            ..AuthCmd::default()
        };
        let ch = CommonHdr::new(PduType::CAPSULE_CMD, 0, 72, 0, 72);
        self.0.write_all(CapsuleCmdHdr { ch, sqe: *cmd.as_sqe() }.as_bytes()).unwrap();
        let mut data = vec![0; 24 + 2048];
        self.0.read_exact(&mut data).unwrap();
        assert!(self.completion().status().is_success());
        data.split_off(24)
    }

    /// A whole transaction.
    fn authenticate(&mut self, keys: &Keys, t_id: u16) -> Result<(), HostError> {
        self.transaction(keys, t_id, SecureChannel::NONE).map(drop)
    }

    fn transaction(
        &mut self,
        keys: &Keys,
        t_id: u16,
        channel: SecureChannel,
    ) -> Result<Option<Bytes>, HostError> {
        let group = if channel == SecureChannel::NONE { DhGroup::Null } else { DhGroup::Ffdhe2048 };
        let nqn = |name: &str| Nqn::parse(name.as_bytes()).unwrap();
        let config = HostConfig {
            parties: Parties { host: nqn(HOST), subsystem: nqn(NQN) },
            keys: keys.clone(),
            policy: only(Hash::Sha256, group),
            channel,
        };
        let mut host = HostSide::new(config, t_id);
        loop {
            match host.step() {
                HostStep::Send(message) => {
                    let len = u32::try_from(message.len()).unwrap();
                    assert!(self.auth(true, 0xe9, len, &message).status().is_success());
                }
                HostStep::Receive(_) => {
                    if let Some(job) = host.received(&self.receive()) {
                        host.worked(job.run());
                    }
                }
                HostStep::Work(_) => unreachable!(),
                HostStep::Over(result) => return result,
            }
        }
    }

    fn auth(&mut self, send: bool, secp: u8, len: u32, data: &[u8]) -> Cqe {
        let cmd = AuthCmd {
            opc: 0x7f,
            flags: Sqe::FLAGS_FABRICS,
            cid: 7.into(),
            fctype: if send { 5 } else { 6 },
            spsp0: 1,
            spsp1: 1,
            secp,
            len_bytes: len.into(),
            ..AuthCmd::default()
        };
        self.execute(*cmd.as_sqe(), data)
    }
}

#[test]
fn a_queue_that_is_not_proven_executes_nothing_but_authentication() {
    let keys = keys();
    let node = Node::new(Some(&keys));
    let mut raw = Raw::connect(node.addr);
    for sqe in [
        command::property_get(offset::CAP, PropertySize::Eight),
        command::property_set(offset::CC, 1),
        command::keep_alive(),
        command::async_event_request(),
    ] {
        let status = raw.execute(sqe, &[]).status();
        assert!(status.is(Status::AUTHENTICATION_REQUIRED), "{status}");
    }
    assert_eq!(node.stat("current_admin_qpairs"), 1);
}

#[test]
fn commands_of_authentication_are_checked_and_a_failed_one_ends_the_connection() {
    let keys = keys();
    let node = Node::new(Some(&keys));
    let mut raw = Raw::connect(node.addr);
    for (secp, len) in [(0, 16), (0xea, 16), (0xe9, 15), (0xe9, 17)] {
        let status = raw.auth(true, secp, len, &[0; 16]).status();
        assert!(status.is(Status::INVALID_FIELD), "SECP {secp:#x}, TL {len}: {status}");
    }
    // Garbage is taken; what was wrong with it comes with the next receive, and then the end.
    assert!(raw.auth(true, 0xe9, 16, &[0xff; 16]).status().is_success());
    let message = raw.receive();
    assert_eq!(&message[..8], &[0, 0xf1, 0, 0, 0, 0, 1, AuthFailureReason::INCORRECT_MESSAGE.0]);
    assert_eq!(raw.0.read(&mut [0]).unwrap(), 0, "the connection stays");
}

#[test]
fn a_host_may_prove_itself_again_at_any_time_and_must_know_the_secret_of_that_time() {
    let (old, new) = (keys(), keys());
    let node = Node::new(Some(&old));
    let mut raw = Raw::connect(node.addr);
    let cap = command::property_get(offset::CAP, PropertySize::Eight);
    raw.authenticate(&old, 1).unwrap();
    assert!(raw.execute(cap, &[]).status().is_success());
    raw.authenticate(&old, 2).unwrap();
    let replaced = HostKeys { chap: Some(new.clone()), ..HostKeys::default() };
    block_on(node.target.set_keys(NQN, HOST, replaced)).unwrap();
    raw.authenticate(&new, 3).unwrap();
    assert!(raw.execute(cap, &[]).status().is_success());
    let refused = HostError::Refused(AuthFailureReason::FAILED);
    assert_eq!(raw.authenticate(&old, 4), Err(refused));
    assert_eq!(raw.0.read(&mut [0]).unwrap(), 0, "the connection stays");
}

#[test]
fn data_flow_over_tls_with_either_cipher_suite_and_each_version_of_identities() {
    for (hash, version) in [(Hash::Sha256, 0), (Hash::Sha384, 1)] {
        let node = Node::new(None);
        let psk = ConfiguredPsk::generate(hash).unwrap();
        block_on(node.target.remove_host(NQN, HOST)).unwrap();
        let keys = HostKeys { psk: Some(psk.clone()), ..HostKeys::default() };
        block_on(node.target.add_host(NQN, HOST, keys)).unwrap();
        let nqn = |name: &str| Nqn::parse(name.as_bytes()).unwrap();
        let psk = psk.tls_psk(&nqn(HOST), &nqn(NQN), version).unwrap();
        let mut admin = SecureHost::connect(node.addr, &psk, node.admin(None, Policy::default())).unwrap();
        admin.enable();
        let cntlid = admin.qpair.cntlid();
        let config = QpairConfig { qid: 1, cntlid, depth: 16, ..node.admin(None, Policy::default()) };
        let mut queue = SecureHost::connect(node.addr, &psk, config).unwrap();
        for blocks in [1, 8, 256, 1000] {
            let (len, bytes) = (blocks as usize * 512, blocks * 512);
            let data: Box<[u8]> =
                (0..bytes).map(|n: u32| n.to_le_bytes()[usize::from(n % 512 > 255)]).collect();
            let expected = data.clone();
            let write = command::write(1, 0, blocks, false);
            assert!(queue.execute(write, Transfer::Write(bytes), Some(data)).status().is_success());
            let room = vec![0xff; len].into_boxed_slice();
            let read = queue.execute(command::read(1, 0, blocks), Transfer::Read(bytes), Some(room));
            assert!(read.status().is_success());
            assert!(read.payload.unwrap() == expected, "{blocks} blocks");
        }
        // Without TLS, with another key, and with the right key under another name.
        assert!(matches!(error_of(node.connect(None, Policy::default())), QpairError::ConnectRefused { .. }));
        let forged = TlsPsk { key: penstock_security::hash::Bytes::new(&[1; 32]), ..psk.clone() };
        assert!(SecureHost::connect(node.addr, &forged, node.admin(None, Policy::default())).is_err());
        let mut other = node.admin(None, Policy::default());
        other.hostnqn = nqn("nqn.2026-11.io.penstock:other");
        assert!(SecureHost::connect(node.addr, &psk, other).is_err());
    }
}

#[test]
fn a_secure_listener_talks_nothing_else() {
    let node = Node::new(None);
    let psk = ConfiguredPsk::generate(Hash::Sha256).unwrap();
    let friend = "nqn.2026-11.io.penstock:friend";
    let any_port = ListenAddress::tcp("127.0.0.1:0".parse().unwrap());
    let options = ListenOptions { secure_channel: true, ..ListenOptions::default() };
    let addr = block_on(node.target.add_listener_with(NQN, &any_port, &options)).unwrap();
    let keys = HostKeys { psk: Some(psk.clone()), ..HostKeys::default() };
    block_on(node.target.add_host(NQN, friend, keys)).unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(IcReq::new(0, DigestFlags(0), 1).as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    assert!(answer.len() < 128, "an ICReq in the clear is answered");
    let nqn = |name: &str| Nqn::parse(name.as_bytes()).unwrap();
    let psk = psk.tls_psk(&nqn(friend), &nqn(NQN), 1).unwrap();
    let mut config = node.admin(None, Policy::default());
    config.hostnqn = nqn(friend);
    SecureHost::connect(addr, &psk, config).unwrap().enable();
}

#[test]
fn an_authentication_makes_the_key_for_tls_and_the_next_one_replaces_it() {
    let keys = keys();
    let node = Node::new(Some(&keys));
    let nqn = |name: &str| Nqn::parse(name.as_bytes()).unwrap();
    // TLS is possible from the first key on.
    let psk = Some(ConfiguredPsk::generate(Hash::Sha256).unwrap());
    block_on(node.target.add_host(NQN, "nqn.2026-11.io.penstock:x", HostKeys { psk, ..HostKeys::default() }))
        .unwrap();
    let mut raw = Raw::connect(node.addr);
    let generated = raw.transaction(&keys, 1, SecureChannel::NEW_TLS_PSK).unwrap().unwrap();
    let psk = TlsPsk::generated(&generated, Hash::Sha256, &nqn(HOST), &nqn(NQN)).unwrap();
    // The key is the proof: nothing is to be proven again.
    let mut admin = SecureHost::connect(node.addr, &psk, node.admin(None, Policy::default())).unwrap();
    admin.enable();
    let refused = raw.transaction(&keys, 2, SecureChannel::REPLACE_TLS_PSK).unwrap_err();
    assert_eq!(refused, HostError::Refused(AuthFailureReason::CONCATENATION_MISMATCH));
}

/// Writes and reads one block over an I/O queue of `controller`.
fn moves_data(controller: &BlockingController) {
    let mut queue = controller.open_io::<Vec<u8>>(1, 8).unwrap();
    let data = vec![0x5a; 128 * 512];
    let bytes = Transfer::Write(128 * 512);
    let wrote = queue.execute(command::write(1, 0, 128, false), bytes, Some(data.clone())).unwrap();
    assert!(wrote.status().is_success());
    let bytes = Transfer::Read(128 * 512);
    let read = queue.execute(command::read(1, 0, 128), bytes, Some(vec![0; 128 * 512])).unwrap();
    assert!(read.status().is_success() && read.payload == Some(data));
    let (_, _, tunnel) = queue.into_parts();
    assert!(tunnel.is_some(), "the queue has no TLS");
}

#[test]
fn our_initiator_comes_by_tls_with_its_key_and_with_authentication_on_top() {
    let (chap, other) = (keys(), keys());
    let node = Node::new(None);
    let psk = ConfiguredPsk::generate(Hash::Sha384).unwrap();
    block_on(node.target.remove_host(NQN, HOST)).unwrap();
    let both = HostKeys { psk: Some(psk.clone()), chap: Some(chap.clone()), ..HostKeys::default() };
    block_on(node.target.add_host(NQN, HOST, both)).unwrap();
    let context = Arc::new(TlsContext::new().unwrap());
    let connect = |psk: ConfiguredPsk, chap: Option<&Keys>| {
        let mut admin = node.admin(chap, Policy::default());
        let key = TlsKey { context: Arc::clone(&context), psk };
        admin.tls = Some(key.between(&admin.hostnqn, &admin.subnqn));
        let config = ControllerConfig { admin, io_queues: 4, step_timeout_ns: 10_000_000_000 };
        BlockingController::connect(node.addr, config, TIMEOUT)
    };
    let controller = connect(psk.clone(), Some(&chap)).unwrap();
    moves_data(&controller);
    controller.shut_down().unwrap();
    // Authentication does not stand in for the key, nor the key for it.
    assert!(matches!(error_of(connect(psk.clone(), None)), QpairError::AuthenticationRequired));
    assert!(matches!(error_of(connect(psk, Some(&other))), QpairError::Authentication(_)));
    let forged = connect(ConfiguredPsk::generate(Hash::Sha384).unwrap(), Some(&chap));
    assert!(matches!(forged, Err(BlockingError::Tls { .. })), "{forged:?}");
    assert!(matches!(
        error_of(node.connect(Some(&chap), Policy::default())),
        QpairError::ConnectRefused { .. }
    ));
}

#[test]
fn our_initiator_goes_on_over_tls_with_the_key_that_its_authentication_made() {
    let chap = keys();
    let node = Node::new(Some(&chap));
    let psk = Some(ConfiguredPsk::generate(Hash::Sha256).unwrap());
    block_on(node.target.add_host(NQN, "nqn.2026-11.io.penstock:x", HostKeys { psk, ..HostKeys::default() }))
        .unwrap();
    let mut admin = node.admin(Some(&chap), Policy::default());
    admin.tls = Some(Tls { context: Arc::new(TlsContext::new().unwrap()), psks: Vec::new() });
    let config = ControllerConfig { admin, io_queues: 4, step_timeout_ns: 10_000_000_000 };
    let controller = BlockingController::connect(node.addr, config.clone(), TIMEOUT).unwrap();
    moves_data(&controller);
    controller.shut_down().unwrap();
    // Without a secret there is nothing to make a key of.
    let mut admin = config.admin.clone();
    admin.auth = None;
    let refused = BlockingController::connect(node.addr, ControllerConfig { admin, ..config }, TIMEOUT);
    assert!(matches!(error_of(refused), QpairError::AuthenticationRequired));
}
