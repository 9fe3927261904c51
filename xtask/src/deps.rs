//! Installs what the tests need, and only what is missing: a second run touches neither the network nor the machine.
//!
//! Four kinds: Debian packages (system-wide, which takes root), guest kernels (unpacked under the target directory,
//! never installed), Python tools (in a virtual environment under the target directory) and cargo's (there as well).

mod apt;
mod cargo_deny;
mod kernels;
mod ktls;
mod mirror;
mod python;

use anyhow::Result;

pub(crate) use cargo_deny::cargo_deny;

use crate::run;

/// Options of `cargo xtask deps`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Look for newer guest kernels even where some are already there.
    #[arg(long)]
    refresh: bool,
}

/// QEMU's own iSCSI initiator.
const QEMU_ISCSI: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so";

/// A program the tests start (or a file, by its whole path), and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
    /// Take it from the backports where the release has some: the version in the release itself is too old.
    newest: bool,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package, newest: false }
}

/// Every program from a Debian package that the tests, or the guests' images, need.
const TOOLS: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", newest: true },
    Tool { program: "qemu-img", package: "qemu-utils", newest: true },
    Tool { program: QEMU_ISCSI, package: "qemu-block-extra", newest: true },
    tool("iscsi-test-cu", "libiscsi-bin"),
    tool("iscsid", "open-iscsi"),
    tool("multipathd", "multipath-tools"),
    tool("sg_vpd", "sg3-utils"),
    tool("udevadm", "udev"),
    tool("dmsetup", "dmsetup"),
    tool("busybox", "busybox-static"),
    tool("grub-mkimage", "grub-common"),
    tool("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin"),
    tool("fio", "fio"),
    tool("strace", "strace"),
    tool("sqlite3", "sqlite3"),
    tool("nvme", "nvme-cli"),
    tool("keyctl", "keyutils"),
    tool("valgrind", "valgrind"),
    tool("mkfs.ext4", "e2fsprogs"),
    tool("depmod", "kmod"),
    tool("ip", "iproute2"),
    tool("xz", "xz-utils"),
    tool("ldd", "libc-bin"),
];

/// `cargo xtask deps`.
pub(crate) fn main(args: &Args) -> Result<()> {
    let dir = run::e2e_dir();
    std::fs::create_dir_all(&dir)?;
    let mut apt = apt::Apt::new(&dir)?;
    let mut missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !run::in_path(tool.program)).collect();
    let venv = Tool { program: "python3", package: "python3-venv", newest: false };
    if !python::can_make_venv() {
        missing.push(&venv);
    }
    let (newest, stable): (Vec<_>, Vec<_>) = missing.into_iter().partition(|tool| tool.newest);
    apt.install(&stable.iter().map(|tool| tool.package).collect::<Vec<_>>(), apt::From::Release)?;
    apt.install(&newest.iter().map(|tool| tool.package).collect::<Vec<_>>(), apt::From::Backports)?;
    kernels::fetch(&dir, &mut apt, args.refresh)?;
    ktls::fetch(&dir)?;
    python::install(&dir)
}
