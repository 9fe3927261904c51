//! The harness itself.

use anyhow::Result;
use penstock_tests::guest::{Guest, Kernel};
use penstock_tests::initiator::Host;
use penstock_tests::scenario::{self, Connect};
use penstock_tests::target::{Nvmet, Target};

#[test]
fn a_guest_runs_scripts_and_says_how_they_ended() -> Result<()> {
    let mut guest = Guest::boot(Kernel::Linux6_1, &[])?;
    assert_eq!(guest.run("uname -r | cut -d. -f1,2")?.trim(), "6.1");
    let failed = guest.try_run("echo before; exit 7", std::time::Duration::from_secs(10))?;
    assert_eq!((failed.code, failed.text.as_str()), (7, "before\n"));
    let error = guest.run("false; echo never").unwrap_err().to_string();
    assert!(error.contains("exit code 1"), "{error}");
    Ok(())
}

/// The scenarios that the daemon must pass, against the Linux kernel's own target: should this fail, they are wrong.
#[test]
fn the_scenarios_hold_against_the_kernels_own_target() -> Result<()> {
    let mut target = Nvmet::start()?;
    target.add_namespace(1, 64 << 20)?;
    let mut guest = Guest::boot(Kernel::Linux6_12, &[])?;
    scenario::is_discovered(&mut guest, &target)?;
    scenario::admin_commands_are_answered(&mut guest, &target)?;
    scenario::data_comes_back(&mut guest, &target, Connect::DIGESTS)?;
    scenario::a_file_system_stays_clean(&mut guest, &target, Connect::MANY_QUEUES)?;
    scenario::namespaces_come_grow_and_go(&mut guest, &mut target)
}

#[test]
fn the_small_host_reads_from_the_kernels_own_target() -> Result<()> {
    let mut target = Nvmet::start()?;
    target.add_namespace(1, 8 << 20)?;
    let mut host = Host::connect(target.port(), target.nqn())?;
    let (bytes, _) = host.io.read(1, 8, 16, 512)?;
    assert_eq!(bytes, [0; 16 * 512]);
    Ok(())
}
