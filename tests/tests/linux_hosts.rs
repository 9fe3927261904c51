//! The Linux kernel's NVMe/TCP initiator, old and new, against the daemon.

use anyhow::Result;
use penstock_tests::guest::{Guest, Kernel};
use penstock_tests::scenario::{self, Connect};
use penstock_tests::target::{Backend, Penstock, Target};

const MIB: u64 = 1 << 20;

fn start(kernel: Kernel, backend: Backend, block_bytes: u32) -> Result<(Guest, Penstock)> {
    let mut target = Penstock::start(backend, block_bytes)?;
    target.add_namespace(1, 64 * MIB)?;
    Ok((Guest::boot(kernel, &[])?, target))
}

fn reads_back_what_it_wrote(kernel: Kernel) -> Result<()> {
    let (mut guest, target) = start(kernel, Backend::Malloc, 512)?;
    scenario::is_discovered(&mut guest, &target)?;
    scenario::admin_commands_are_answered(&mut guest, &target)?;
    for how in [Connect::ONE_QUEUE, Connect::MANY_QUEUES, Connect::DIGESTS] {
        scenario::data_comes_back(&mut guest, &target, how)?;
    }
    Ok(())
}

fn keeps_a_file_system_clean(kernel: Kernel) -> Result<()> {
    let (mut guest, target) = start(kernel, Backend::Uring, 4096)?;
    scenario::a_file_system_stays_clean(&mut guest, &target, Connect::MANY_QUEUES)?;
    scenario::a_file_system_stays_clean(&mut guest, &target, Connect::DIGESTS)
}

fn sees_namespaces_come_grow_and_go(kernel: Kernel) -> Result<()> {
    let (mut guest, mut target) = start(kernel, Backend::Uring, 512)?;
    scenario::namespaces_come_grow_and_go(&mut guest, &mut target)
}

#[test]
fn linux_6_1_discovers_connects_and_reads_back_what_it_wrote() -> Result<()> {
    reads_back_what_it_wrote(Kernel::Linux6_1)
}

#[test]
fn linux_6_12_discovers_connects_and_reads_back_what_it_wrote() -> Result<()> {
    reads_back_what_it_wrote(Kernel::Linux6_12)
}

#[test]
fn linux_6_1_keeps_a_file_system_clean() -> Result<()> {
    keeps_a_file_system_clean(Kernel::Linux6_1)
}

#[test]
fn linux_6_12_keeps_a_file_system_clean() -> Result<()> {
    keeps_a_file_system_clean(Kernel::Linux6_12)
}

#[test]
fn linux_6_1_sees_namespaces_come_grow_and_go() -> Result<()> {
    sees_namespaces_come_grow_and_go(Kernel::Linux6_1)
}

#[test]
fn linux_6_12_sees_namespaces_come_grow_and_go() -> Result<()> {
    sees_namespaces_come_grow_and_go(Kernel::Linux6_12)
}

#[test]
fn linux_6_12_uses_a_vdisk_as_any_disk() -> Result<()> {
    let (mut guest, mut target) = start(Kernel::Linux6_12, Backend::Vdisk, 512)?;
    scenario::data_comes_back(&mut guest, &target, Connect::MANY_QUEUES)?;
    scenario::a_file_system_stays_clean(&mut guest, &target, Connect::MANY_QUEUES)?;
    scenario::namespaces_come_grow_and_go(&mut guest, &mut target)
}
