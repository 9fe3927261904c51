use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use penstock_bdev::Registry;
use penstock_bdev::null::Null;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::auth::HostKeys;

const NQN: &str = "nqn.2026-11.io.penstock:disk";
const HOST: &str = "nqn.2026-11.io.penstock:host";

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

/// A target on two reactors with one bdev "null0".
struct Bench {
    target: Target,
    registry: Registry,
    reactors: Vec<Started>,
}

impl Bench {
    fn new() -> Self {
        let clock = Clock::system();
        let start = |id| {
            let (clock, mode) = (clock.clone(), PollMode::ADAPTIVE);
            Reactor::start(ReactorConfig { id: ReactorId(id), core: None, mode, clock, seed: 1 }).unwrap()
        };
        let reactors: Vec<_> = (0..2).map(start).collect();
        let registry = Registry::new();
        registry.register(Null::new("null0", Uuid::from_u128(7), 1000, 512).unwrap(), &[]).unwrap();
        let handles = reactors.iter().map(|reactor| reactor.handle.clone()).collect();
        Self { target: Target::new(handles, registry.clone()), registry, reactors }
    }

    /// With a transport, a subsystem, a namespace on null0 and a listener.
    fn serving() -> (Self, SocketAddr) {
        let bench = Self::new();
        let addr = block_on(async {
            let target = &bench.target;
            target.create_transport(TransportOptions::default()).await.unwrap();
            target.create_subsystem(&CreateSubsystem::named(NQN)).await.unwrap();
            assert_eq!(target.add_ns(NQN, &Namespace::on("null0")).await.unwrap(), 1);
            let any_port = ListenAddress::tcp("127.0.0.1:0".parse().unwrap());
            target.add_listener(NQN, &any_port).await.unwrap()
        });
        (bench, addr)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for reactor in self.reactors.drain(..) {
            reactor.handle.stop();
            reactor.join.join().unwrap();
        }
    }
}

#[test]
fn what_is_configured_is_told_in_spdks_shape() {
    let (bench, addr) = Bench::serving();
    assert_ne!(addr.port(), 0);
    block_on(bench.target.add_host(NQN, HOST, HostKeys::default())).unwrap();
    let port = addr.port().to_string();
    let listener = json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port });
    let told = bench.target.get_subsystems(None).unwrap();
    assert_eq!(told[0]["subtype"], "Discovery");
    let told = bench.target.get_subsystems(Some(NQN)).unwrap();
    let uuid = Uuid::from_u128(7);
    assert_eq!(
        told,
        json!([{
            "nqn": NQN, "subtype": "NVMe", "listen_addresses": [listener], "allow_any_host": false,
            "hosts": [{ "nqn": HOST }], "serial_number": "00000000000000000000",
            "model_number": "Penstock bdev Controller", "max_namespaces": 32, "passthrough": false,
            "min_cntlid": 1, "max_cntlid": 65519, "dmrsl": 2_097_152, "wzsl": 11,
            "namespaces": [{ "nsid": 1, "bdev_name": "null0", "name": "null0",
                "nguid": "00000000000000000000000000000007", "uuid": uuid.to_string() }],
        }])
    );
    let listeners = bench.target.get_listeners(NQN).unwrap();
    assert_eq!(listeners, json!([{ "address": listener }]));
    let stats = block_on(bench.target.get_stats()).unwrap();
    assert_eq!(stats["poll_groups"].as_array().unwrap().len(), 2);
    assert_eq!(stats["poll_groups"][0]["transports"], json!([{ "trtype": "TCP" }]));
    assert_eq!(bench.target.get_transports()[0]["trtype"], "TCP");
    assert_eq!(block_on(bench.target.get_controllers(NQN)).unwrap(), json!([]));
}

#[test]
fn the_calls_that_are_saved_make_the_same_configuration_again() {
    let (bench, _) = Bench::serving();
    block_on(bench.target.add_host(NQN, HOST, HostKeys::default())).unwrap();
    let (before, calls) = (bench.target.get_subsystems(None).unwrap(), bench.target.config_calls());
    drop(bench);
    let bench = Bench::new();
    for (method, params) in calls {
        let target = &bench.target;
        let nqn = params["nqn"].as_str().unwrap_or_default().to_owned();
        let nqn = nqn.as_str();
        block_on(async {
            match method {
                "nvmf_create_transport" => {
                    target.create_transport(serde_json::from_value(params).unwrap()).await.unwrap();
                }
                "nvmf_create_subsystem" => {
                    target.create_subsystem(&serde_json::from_value(params).unwrap()).await.unwrap();
                }
                "nvmf_subsystem_add_ns" => {
                    let namespace = serde_json::from_value(params["namespace"].clone()).unwrap();
                    target.add_ns(nqn, &namespace).await.unwrap();
                }
                "nvmf_subsystem_add_host" => {
                    target
                        .add_host(nqn, params["host"].as_str().unwrap(), HostKeys::default())
                        .await
                        .unwrap();
                }
                "nvmf_subsystem_add_listener" => {
                    let address = serde_json::from_value(params["listen_address"].clone()).unwrap();
                    target.add_listener(nqn, &address).await.unwrap();
                }
                other => panic!("{other}"),
            }
        });
    }
    assert_eq!(bench.target.get_subsystems(None).unwrap(), before);
}

#[test]
fn a_bdev_that_is_resized_or_removed_takes_its_namespace_along() {
    let (bench, _) = Bench::serving();
    let blocks = || bench.target.subsystem(NQN).unwrap().namespace(1).map(|ns| ns.blocks);
    let before = bench.target.subsystem(NQN).unwrap();
    bench.registry.resize("null0", Some(2000)).unwrap();
    assert_eq!(blocks(), Some(2000));
    let after = bench.target.subsystem(NQN).unwrap();
    assert_eq!(after.generation, before.generation + 1);
    assert_eq!(after.changed_namespaces(&before).len(), 1);
    drop((before, after));
    block_on(bench.registry.remove("null0")).unwrap();
    assert_eq!(blocks(), None);
    assert!(bench.registry.find("null0").is_err());
}

#[test]
fn a_removed_namespace_or_subsystem_lets_its_bdev_go() {
    let (bench, addr) = Bench::serving();
    let error = block_on(bench.target.add_ns(NQN, &Namespace::on("null0"))).unwrap_err();
    assert!(matches!(error, TargetError::Present { .. }), "{error}");
    block_on(bench.target.remove_ns(NQN, 1)).unwrap();
    assert!(block_on(bench.target.remove_ns(NQN, 1)).is_err());
    assert_eq!(bench.registry.claimed_by("null0").unwrap(), None);
    let numbered = Namespace { nsid: Some(5), ..Namespace::on("null0") };
    assert_eq!(block_on(bench.target.add_ns(NQN, &numbered)).unwrap(), 5);
    block_on(bench.target.delete_subsystem(NQN)).unwrap();
    assert_eq!(bench.registry.claimed_by("null0").unwrap(), None);
    assert!(bench.target.get_subsystems(Some(NQN)).is_err());
    // Nobody listens there any more.
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn a_portal_is_shared_by_subsystems_and_closed_by_the_last() {
    let (bench, addr) = Bench::serving();
    let other = "nqn.2026-11.io.penstock:other";
    let address = ListenAddress::tcp(addr);
    block_on(async {
        bench.target.create_subsystem(&CreateSubsystem::named(other)).await.unwrap();
        bench.target.add_listener(other, &address).await.unwrap();
        let again = bench.target.add_listener(other, &address).await.unwrap_err();
        assert!(matches!(again, TargetError::Present { .. }), "{again}");
        bench.target.remove_listener(NQN, &address).await.unwrap();
        assert!(std::net::TcpStream::connect(addr).is_ok());
        bench.target.remove_listener(other, &address).await.unwrap();
        assert!(std::net::TcpStream::connect(addr).is_err());
        bench.target.add_listener("discovery", &address).await.unwrap();
        assert!(std::net::TcpStream::connect(addr).is_ok());
        bench.target.drain().await.unwrap();
    });
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let (bench, _) = Bench::serving();
    let target = &bench.target;
    let text = |result: Result<(), TargetError>| result.unwrap_err().to_string();
    block_on(async {
        let create = |change: fn(&mut CreateSubsystem)| {
            let mut params = CreateSubsystem::named("nqn.2026-11.io.penstock:new");
            change(&mut params);
            async move { text(target.create_subsystem(&params).await) }
        };
        assert!(create(|p| p.nqn = "disk".into()).await.contains("nqn \"disk\" is not a valid NQN"));
        assert!(create(|p| p.nqn = NQN.into()).await.contains("exists already"));
        assert!(create(|p| p.serial_number = "x".repeat(21)).await.contains("serial_number"));
        assert!(create(|p| p.model_number = "é".into()).await.contains("model_number"));
        assert!(create(|p| p.max_namespaces = 1 << 20).await.contains("max_namespaces"));
        assert!(create(|p| p.min_cntlid = 0).await.contains("min_cntlid"));
        assert!(create(|p| p.max_ana_groups = Some(0)).await.contains("max_ana_groups"));
        assert!(text(target.create_transport(TransportOptions::default()).await).contains("exists"));
        assert!(text(target.delete_subsystem("discovery").await).contains("discovery"));
        assert!(text(target.remove_host(NQN, HOST).await).contains(HOST));
        let missing = target.add_ns(NQN, &Namespace::on("nothing")).await.unwrap_err();
        assert!(missing.to_string().contains("nothing"), "{missing}");
        let bad = Namespace { nguid: Some("12".into()), ..Namespace::on("null0") };
        assert!(target.add_ns(NQN, &bad).await.unwrap_err().to_string().contains("nguid"));
        let far = Namespace { nsid: Some(33), ..Namespace::on("null0") };
        assert!(target.add_ns(NQN, &far).await.unwrap_err().to_string().contains("1 to 32"));
        let wrong =
            ListenAddress { trtype: "RDMA".into(), ..ListenAddress::tcp("127.0.0.1:1".parse().unwrap()) };
        assert!(target.add_listener(NQN, &wrong).await.unwrap_err().to_string().contains("RDMA"));
    });
    let unknown = json!({ "nqn": NQN, "qos": 1 });
    assert!(serde_json::from_value::<CreateSubsystem>(unknown).unwrap_err().to_string().contains("qos"));
}
