use penstock_bdev::null::Null;
use penstock_bdev::{Descriptor, OpenMode};
use penstock_spec::nvme::NSID_ALL;
use proptest::prelude::*;
use uuid::Uuid;
use zerocopy::FromBytes;

use super::*;
use crate::config::{ListenerConfig, NamespaceConfig, Nsid, SubsystemKind};

const STATES: [AnaState; 5] = [
    AnaState::OPTIMIZED,
    AnaState::NON_OPTIMIZED,
    AnaState::INACCESSIBLE,
    AnaState::PERSISTENT_LOSS,
    AnaState::CHANGE,
];

fn namespace(nsid: u32, anagrpid: u32) -> NamespaceConfig {
    let uuid = Uuid::from_u128(u128::from(nsid));
    let bdev = Null::new(&format!("null{nsid}"), uuid, 1000, 512).unwrap();
    NamespaceConfig {
        nsid: Nsid(nsid),
        descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite),
        blocks: 1000,
        block_bytes: 512,
        uuid,
        nguid: *uuid.as_bytes(),
        eui64: [0; 8],
        anagrpid,
    }
}

/// Namespaces 1 and 2 in group 1, 3 in group 7; ports 1 and 2.
fn subsystem() -> SubsystemConfig {
    let nqn = "nqn.2026-11.io.penstock:disk".parse().unwrap();
    let mut config = SubsystemConfig::new(nqn, SubsystemKind::Nvm);
    config.ana_reporting = true;
    for (nsid, group) in [(1, 1), (2, 1), (3, 7)] {
        config.namespaces.insert(Nsid(nsid), namespace(nsid, group));
    }
    config.listeners = vec![
        ListenerConfig::tcp(1, "127.0.0.1:4420".parse().unwrap()),
        ListenerConfig::tcp(2, "127.0.0.1:4421".parse().unwrap()),
    ];
    config
}

/// Identifier, change count, state, NSIDs.
type Listed = (u32, u64, AnaState, Vec<u32>);

/// Change count and groups.
fn parse(page: &[u8]) -> (u64, Vec<Listed>) {
    let (header, mut rest) = AnaLogHdr::ref_from_prefix(page).unwrap();
    let mut groups = Vec::new();
    for _ in 0..header.descriptors.get() {
        let (group, tail) = AnaGroupDescriptor::ref_from_prefix(rest).unwrap();
        let (nsids, tail) = tail.split_at(4 * usize::try_from(group.nsids.get()).unwrap());
        let nsids = nsids.chunks(4).map(|one| u32::from_le_bytes(one.try_into().unwrap())).collect();
        groups.push((group.agid.get(), group.chgcnt.get(), group.state, nsids));
        rest = tail;
    }
    assert!(rest.is_empty());
    (header.chgcnt.get(), groups)
}

#[test]
fn each_closed_state_has_its_path_related_status() {
    assert_eq!(
        STATES.map(refusal),
        [
            None,
            None,
            Some(Status::ANA_INACCESSIBLE),
            Some(Status::ANA_PERSISTENT_LOSS),
            Some(Status::ANA_TRANSITION),
        ]
    );
    assert!(STATES.iter().filter_map(|state| refusal(*state)).all(|status| !status.dnr()));
    assert!(STATES.iter().all(|state| state_of(name_of(*state)) == Some(*state)));
    assert_eq!(state_of("best"), None);
}

#[test]
fn a_command_is_refused_by_the_state_of_its_namespaces_group_on_its_port() {
    let mut config = subsystem();
    assert!(!config.ana_blocks());
    config.listeners[1].ana.set(Some(7), AnaState::INACCESSIBLE);
    assert!(config.ana_blocks());
    for (port, nsid, expected) in [
        (1, 3, Ok(())),
        (2, 1, Ok(())),
        (2, 3, Err(Status::ANA_INACCESSIBLE)),
        (2, NSID_ALL, Err(Status::ANA_INACCESSIBLE)),
        (1, NSID_ALL, Ok(())),
        (2, 9, Ok(())),
        (3, 1, Err(Status::ANA_INACCESSIBLE)),
    ] {
        assert_eq!(config.path_open(port, nsid), expected, "port {port}, namespace {nsid}");
    }
    config.listeners[1].ana.set(None, AnaState::NON_OPTIMIZED);
    assert!(!config.ana_blocks());
    config.ana_reporting = false;
    assert_eq!(config.path_open(3, 1), Ok(()));
}

#[test]
fn the_page_counts_changes_and_says_which_groups_changed() {
    let before = subsystem();
    let mut log = AnaLog::new(&before, 2);
    let optimized = AnaState::OPTIMIZED;
    assert_eq!(parse(&log.page(false)), (0, vec![(1, 0, optimized, vec![1, 2]), (7, 0, optimized, vec![3])]));
    let mut flipped = before.clone();
    flipped.listeners[0].ana.set(None, AnaState::CHANGE);
    assert!(!log.update(&before, &flipped, 2), "the other port's state is nobody's business");
    flipped.listeners[1].ana.set(Some(7), AnaState::NON_OPTIMIZED);
    assert!(log.update(&before, &flipped, 2));
    let (changes, groups) = parse(&log.page(true));
    assert_eq!(changes, 1);
    assert_eq!(groups, [(1, 0, optimized, vec![]), (7, 1, AnaState::NON_OPTIMIZED, vec![])]);
    let mut moved = flipped.clone();
    moved.namespaces.get_mut(&Nsid(2)).unwrap().anagrpid = 7;
    assert!(log.update(&flipped, &moved, 2));
    let (changes, groups) = parse(&log.page(false));
    assert_eq!(changes, 2);
    assert_eq!(groups, [(1, 2, optimized, vec![1]), (7, 2, AnaState::NON_OPTIMIZED, vec![2, 3])]);
    let mut fewer = moved.clone();
    fewer.namespaces.remove(&Nsid(1));
    assert!(!log.update(&moved, &fewer, 2), "that a namespace went is told by another event");
    assert_eq!(parse(&log.page(false)).1, [(7, 2, AnaState::NON_OPTIMIZED, vec![2, 3])]);
    assert!(!log.update(&fewer, &fewer, 2));
    assert_eq!(parse(&log.page(false)).0, 3);
}

proptest! {
    /// ESXi shows no disk where Identify names a group that the log does not have, or has without the namespace.
    #[test]
    fn every_namespace_is_in_the_log_under_the_group_that_identify_names(
        groups in proptest::collection::vec(1_u32..=8, 1..20),
        changes in proptest::collection::vec((0_usize..2, proptest::option::of(1_u32..=8), 0_usize..5), 0..20),
    ) {
        let mut config = subsystem();
        config.namespaces.clear();
        for (nsid, group) in (1..).zip(groups) {
            config.namespaces.insert(Nsid(nsid), namespace(nsid, group));
        }
        let mut log = AnaLog::new(&config, 1);
        for (listener, group, state) in changes {
            let before = config.clone();
            config.listeners[listener].ana.set(group, STATES[state]);
            let told = log.update(&before, &config, 1);
            let state_of = |config: &SubsystemConfig| -> Vec<_> {
                config.namespaces.values().map(|ns| config.ana_state(1, ns.anagrpid)).collect()
            };
            prop_assert_eq!(told, state_of(&before) != state_of(&config));
        }
        let (_, listed) = parse(&log.page(false));
        for namespace in config.namespaces.values() {
            let found = listed.iter().filter(|(_, _, _, nsids)| nsids.contains(&namespace.nsid.0));
            let found: Vec<_> = found.map(|(group, _, state, _)| (*group, *state)).collect();
            prop_assert_eq!(found, vec![(namespace.anagrpid, config.ana_state(1, namespace.anagrpid))]);
            let refused = config.path_open(1, namespace.nsid.0).err();
            prop_assert_eq!(refused, refusal(config.ana_state(1, namespace.anagrpid)));
        }
    }
}
