//! An operating system on a disk, for a machine that its own firmware boots.
//!
//! ```text
//!   sector 0: GRUB's boot sector, partition table | from 1 on: GRUB | from 2048 on: partition 1, ext4: /, /boot/vmlinuz, /boot/initrd
//! ```
//! The root file system is what other guests have in memory. The initial one only finds it (see init.sh).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Machine;
use super::image::Image;
use crate::paths::{self, Scratch};

const SECTOR_BYTES: u64 = 512;
const FIRST_SECTOR: u32 = 2048;
/// Where the Debian package grub-pc-bin has GRUB for machines with a BIOS.
const GRUB: &str = "/usr/lib/grub/i386-pc";
/// Bytes of the boot sector before the partition table.
const BOOT_CODE_BYTES: usize = 440;
/// What GRUB of any age can read.
const FEATURES: &str = "none,has_journal,extent,filetype,sparse_super,large_file,dir_index,ext_attr,flex_bg";

impl Machine {
    /// Makes it boot by its firmware, from the first disk that has a boot index, instead of being given a kernel.
    #[must_use]
    pub fn boots_from_disk(mut self) -> Self {
        self.from_disk = true;
        self
    }

    /// Installs what it would be given on a disk, as it lies in `disk`: a file of the right length, whose bytes are zero.
    ///
    /// # Errors
    /// Where a program is missing or fails, or the file is too short.
    pub fn install(&self, disk: &Path) -> Result<()> {
        let image = Image::of(self.kernel, &self.extras)?;
        let scratch = Scratch::new()?;
        let root = scratch.join("root");
        fs::create_dir_all(root.join("boot"))?;
        let mut unpack = Command::new(paths::tool("busybox")?);
        unpack
            .args(["cpio", "-idm"])
            .current_dir(&root)
            .stdin(File::open(&image.initrd)?)
            .stderr(Stdio::null());
        succeeds(&mut unpack)?;
        fs::copy(&image.kernel, root.join("boot/vmlinuz"))?;
        fs::copy(&image.initrd, root.join("boot/initrd"))?;
        let sectors = u32::try_from(fs::metadata(disk)?.len() / SECTOR_BYTES)?.checked_sub(FIRST_SECTOR);
        let sectors = sectors.context("the disk is too short")?;
        let mut format = Command::new(paths::tool("mkfs.ext4")?);
        format
            .args(["-q", "-F", "-O", FEATURES, "-E"])
            .arg(format!("offset={}", u64::from(FIRST_SECTOR) * SECTOR_BYTES));
        format.arg("-d").arg(&root).arg(disk).arg(format!("{}k", sectors / 2));
        succeeds(&mut format)?;
        let loader = self.loader(&scratch)?;
        let room = u64::from(FIRST_SECTOR - 1) * SECTOR_BYTES;
        ensure!(u64::try_from(loader.len())? <= room, "GRUB does not fit before the partition");
        let disk = File::options().write(true).open(disk)?;
        disk.write_all_at(&boot_sector(sectors)?, 0)?;
        disk.write_all_at(&loader, SECTOR_BYTES)?;
        Ok(disk.sync_all()?)
    }

    /// GRUB with what it needs to find the kernel.
    fn loader(&self, scratch: &Scratch) -> Result<Vec<u8>> {
        let (config, core) = (scratch.join("grub.cfg"), scratch.join("core.img"));
        let line = self.kernel_line()?;
        let text = format!(
            "set root=(hd0,msdos1)\nlinux /boot/vmlinuz {line} penstock.root=/dev/vda1\ninitrd /boot/initrd\nboot\n"
        );
        fs::write(&config, text)?;
        let mut make = Command::new(paths::tool("grub-mkimage")?);
        make.args(["-O", "i386-pc", "-p", "/boot/grub", "-d", GRUB])
            .arg("-c")
            .arg(&config)
            .arg("-o")
            .arg(&core);
        succeeds(make.args(["biosdisk", "part_msdos", "ext2", "linux"]))?;
        Ok(fs::read(core)?)
    }
}

/// GRUB's boot sector, and a table of one bootable partition of Linux's.
fn boot_sector(sectors: u32) -> Result<Vec<u8>> {
    let mut sector = fs::read(Path::new(GRUB).join("boot.img"))
        .with_context(|| format!("no GRUB in {GRUB}: run `cargo xtask deps`"))?;
    sector.truncate(BOOT_CODE_BYTES);
    sector.extend([0; 6]);
    // Cylinders, heads and sectors are nobody's business any more.
    sector.extend([0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    sector.extend(FIRST_SECTOR.to_le_bytes());
    sector.extend(sectors.to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

fn succeeds(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
