//! Goal: hosts that stay connected to the discovery service learn of what changes for them, and of nothing else.
//! Method: the target as the daemon has it, on two reactors over loopback, and our own initiator.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on a thread of its own"
)]

mod bench;

use std::time::Duration;

use bench::{Bench, NQN, TIMEOUT, host_to};
use futures_executor::block_on;
use penstock_nvme_tcp::blocking::BlockingController;
use penstock_nvme_tcp::command;
use penstock_nvme_tcp::controller::Event;
use penstock_nvmf::target::{ListenAddress, ReferralHosts, ReferralParams};
use penstock_spec::nvme::identify::controller::ControllerType;
use penstock_spec::nvme::identify::{Cns, IdentifyController};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::discovery::SubType;
use serde_json::json;
use zerocopy::FromBytes;

fn discovery(bench: &Bench, number: u8, name: &str, kato_ms: u32) -> BlockingController {
    let mut config = host_to(number, name);
    config.admin.kato_ms = kato_ms;
    BlockingController::connect(bench.addr, config, TIMEOUT).unwrap()
}

fn well_known() -> String {
    Nqn::discovery().to_string()
}

fn elsewhere(name: &str, hosts: &[&str]) -> ReferralParams {
    ReferralParams {
        address: ListenAddress::tcp("198.51.100.7:8009".parse().unwrap()),
        subnqn: Some(name.to_owned()),
        secure_channel: false,
        allow_any_host: hosts.is_empty(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
    }
}

/// Whether the host is told of a change within a moment.
fn is_told(controller: &mut BlockingController) -> bool {
    match controller.next_event(Duration::from_millis(400)) {
        Ok(Event::Async(result)) => {
            assert_eq!(result.0, 0x70_f0_02);
            true
        }
        Ok(other) => panic!("{other:?}"),
        Err(_) => false,
    }
}

fn referrals(controller: &mut BlockingController) -> Vec<String> {
    let entries = controller.discover().unwrap();
    let all = entries.iter().filter(|entry| entry.subtype == SubType::DISCOVERY);
    all.map(|entry| entry.subsystem().unwrap().to_string()).collect()
}

#[test]
fn a_persistent_discovery_controller_tells_each_host_what_changes_for_it() {
    let bench = Bench::new(json!({}));
    let mut hosts = [1, 2].map(|number| discovery(&bench, number, &well_known(), 5000));
    for host in &mut hosts {
        assert_eq!(referrals(host).len(), 0);
    }
    let all = "nqn.2026-11.io.penstock:all";
    block_on(bench.target.add_referral(&elsewhere(all, &[]))).unwrap();
    for host in &mut hosts {
        assert!(is_told(host));
        assert_eq!(referrals(host), [all]);
    }
    // One more of the same is nothing new.
    block_on(bench.target.add_referral(&elsewhere(all, &[]))).unwrap();
    let some = "nqn.2026-11.io.penstock:some";
    let friend = "nqn.2026-11.io.penstock:host2";
    block_on(bench.target.add_referral(&elsewhere(some, &[friend]))).unwrap();
    assert!(is_told(&mut hosts[1]) && !is_told(&mut hosts[0]));
    assert_eq!((referrals(&mut hosts[0]).len(), referrals(&mut hosts[1]).len()), (1, 2));
    let address = ListenAddress::tcp("198.51.100.7:8009".parse().unwrap());
    let change = ReferralHosts::AllowAny(true);
    block_on(bench.target.set_referral_hosts(&address, Some(some), &change)).unwrap();
    assert!(is_told(&mut hosts[0]) && !is_told(&mut hosts[1]));
    assert_eq!(referrals(&mut hosts[0]).len(), 2);
    // What is saved makes it again.
    let told = bench.target.get_referrals();
    assert_eq!(
        told[1],
        json!({ "address": address, "secure_channel": false, "subnqn": some,
        "allow_any_host": true, "hosts": [friend] })
    );
    let calls = bench.target.config_calls();
    let saved: Vec<_> = calls.iter().filter(|call| call.0 == "nvmf_discovery_add_referral").collect();
    assert_eq!((saved.len(), &saved[1].1), (2, &told[1]));
    block_on(bench.target.remove_referral(&address, Some(all))).unwrap();
    assert!(is_told(&mut hosts[0]) && is_told(&mut hosts[1]));
    let error = block_on(bench.target.remove_referral(&address, Some(all))).unwrap_err();
    assert!(error.to_string().contains(all), "{error}");
    assert_eq!(referrals(&mut hosts[0]), [some]);
    // A new listener of a subsystem is told as well.
    bench.listen();
    assert!(is_told(&mut hosts[0]));
    drop(hosts);
    bench.wait_idle();
}

#[test]
fn a_discovery_controller_has_a_keep_alive_timer_where_its_host_asks_for_one() {
    let bench = Bench::new(json!({}));
    let silent = discovery(&bench, 1, &well_known(), 500);
    let explicit = discovery(&bench, 2, &well_known(), 0);
    assert_eq!(bench.sum("connections"), 2);
    bench.wait_for("the silent one is given up", |bench| bench.sum("connections") == 1);
    drop((silent, explicit));
    bench.wait_idle();
}

#[test]
fn the_service_goes_by_a_name_of_its_own_and_by_the_well_known_one() {
    let bench = Bench::new(json!({}));
    let own = "nqn.2026-11.io.penstock:discovery";
    let set = |nqn| block_on(bench.target.set_discovery_config(None, Some(nqn)));
    assert!(set(NQN).unwrap_err().to_string().contains("exists already"));
    set(own).unwrap();
    for name in [own.to_owned(), well_known()] {
        let mut host = discovery(&bench, 1, &name, 5000);
        let data = host.read("Identify", command::identify(Cns::CONTROLLER, 0, Csi::NVM), 4096).unwrap();
        let told = IdentifyController::read_from_bytes(&data).unwrap();
        assert_eq!(told.cntrltype, ControllerType::DISCOVERY);
        assert_eq!(told.subnqn, own.parse::<Nqn>().unwrap().to_field());
        let entries = host.discover().unwrap();
        assert_eq!(entries[0].subtype, SubType::CURRENT_DISCOVERY);
        assert_eq!(entries[0].subsystem().unwrap().as_str(), own);
    }
    set("").unwrap();
    let error = BlockingController::connect(bench.addr, host_to(1, own), TIMEOUT).unwrap_err();
    assert!(error.to_string().contains("Connect Invalid Parameters"), "{error}");
}

#[test]
fn a_filter_shows_hosts_the_listeners_like_theirs() {
    let bench = Bench::new(json!({}));
    let second = bench.listen();
    let ports = || -> Vec<String> {
        let mut host = discovery(&bench, 1, &well_known(), 5000);
        let entries = host.discover().unwrap();
        let nvm = entries.iter().filter(|entry| entry.subtype == SubType::NVM);
        nvm.map(|entry| entry.trsvcid().unwrap().to_owned()).collect()
    };
    let both = [bench.addr.port().to_string(), second.port().to_string()];
    assert_eq!(ports(), both);
    let set = |filters| block_on(bench.target.set_discovery_config(Some(filters), None));
    set("transport,svcid").unwrap();
    assert_eq!(ports(), both[..1]);
    let saved = bench.target.config_calls();
    let saved = saved.iter().find(|call| call.0 == "nvmf_set_config").unwrap();
    assert_eq!(saved.1, json!({ "discovery_filters": "transport,svcid" }));
    set("match_any").unwrap();
    assert_eq!(ports(), both);
    assert!(set("port").unwrap_err().to_string().contains("svcid"));
}
