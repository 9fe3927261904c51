//! The guest's root file system: one cpio archive with busybox, the tools, their libraries and the kernel modules,
//! unpacked by the kernel into memory, so that a guest needs no disk. Built once for each set of contents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::Kernel;
use super::cpio::Archive;
use crate::paths;

/// Programs of the machine's that guests use, beside busybox.
const TOOLS: &[&str] = &["nvme", "fio", "mkfs.ext4", "fsck.ext4", "blkdiscard"];

/// Kernel modules that guests may load, where the kernel has not built them in; their dependencies come along.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "nvme-tcp",
    "nvmet-tcp",
    "loop",
    "ext4",
    "crc32c-intel",
    "configfs",
];

const INIT: &str = include_str!("init.sh");

/// Directories of the image, parents first.
const DIRECTORIES: &[&str] = &[
    "/usr",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib64",
    "/dev",
    "/etc",
    "/etc/nvme",
    "/mnt",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/tmp",
    "/var",
];

/// A kernel and a root file system to boot.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// What an image has beside the usual.
#[derive(Clone, Debug, Default)]
pub(super) struct Extras {
    pub(super) tools: Vec<&'static str>,
    pub(super) modules: Vec<&'static str>,
    /// Files, and whole directories, that stand at the same place in the guest.
    pub(super) files: Vec<&'static str>,
}

/// What a path of the image holds.
#[derive(Debug)]
enum Entry {
    Copy(PathBuf),
    Text(String),
    Link(String),
}

impl Image {
    /// The image for `kernel`, built where it is not there or what it is built from has changed.
    pub(super) fn of(kernel: Kernel, extras: &Extras) -> Result<Self> {
        static BUILDING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let unpacked = fs::canonicalize(paths::e2e_dir().join("kernels").join(kernel.series()))
            .with_context(|| format!("no kernel {}: run `cargo xtask deps`", kernel.series()))?;
        let modules = only_entry(&unpacked.join("lib/modules"))?;
        let entries = entries(&modules, extras)?;
        let images = paths::e2e_dir().join("images");
        fs::create_dir_all(&images)?;
        let initrd = images.join(format!("{}-{:016x}.cpio", kernel.series(), digest(&entries)?));
        if !initrd.exists() {
            let partial = initrd.with_extension(format!("{}", std::process::id()));
            write(&partial, &entries).with_context(|| format!("cannot build {}", initrd.display()))?;
            fs::rename(&partial, &initrd)?;
        }
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { kernel: unpacked.join("boot").join(format!("vmlinuz-{release}")), initrd })
    }

    /// The same with `programs` (name and file) in /usr/bin, in a root file system of its own at `initrd`: the kernel unpacks
    /// one archive after the other. Not kept like the others, as programs under test change all the time.
    pub(super) fn with_programs(self, programs: &[(String, PathBuf)], initrd: PathBuf) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (name, file) in programs {
            add_program(&mut entries, name, file)?;
        }
        let second = initrd.with_extension("programs");
        write(&second, &entries).with_context(|| format!("cannot build {}", second.display()))?;
        fs::copy(&self.initrd, &initrd)?;
        let mut whole = File::options().append(true).open(&initrd)?;
        io::copy(&mut File::open(&second)?, &mut whole)?;
        fs::remove_file(&second)?;
        Ok(Self { initrd, ..self })
    }
}

/// Everything in the image but its directories, by path.
fn entries(modules: &Path, extras: &Extras) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    for (link, to) in
        [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")]
    {
        entries.insert(link.to_owned(), Entry::Link(to.to_owned()));
    }
    let busybox = paths::tool("busybox")?;
    for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
        entries.insert(format!("/usr/bin/{applet}"), Entry::Link("busybox".to_owned()));
    }
    add_program(&mut entries, "busybox", &busybox)?;
    entries.insert("/usr/sbin/modprobe".to_owned(), Entry::Link("../bin/busybox".to_owned()));
    for name in TOOLS.iter().chain(&extras.tools) {
        add_program(&mut entries, name, &paths::tool(name)?)?;
    }
    for file in &extras.files {
        add_file(&mut entries, Path::new(file))?;
    }
    add_modules(&mut entries, modules, &[MODULES, &extras.modules].concat())?;
    let texts = [
        ("/init", INIT),
        ("/etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("/etc/group", "root:x:0:\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n"),
        ("/etc/nsswitch.conf", "hosts: files\n"),
        (
            "/etc/nvme/hostnqn",
            concat!("nqn.2014-08.org.nvmexpress:uuid:", "11111111-2222-3333-4444-555555555555\n"),
        ),
        ("/etc/nvme/hostid", "11111111-2222-3333-4444-555555555555\n"),
    ];
    entries.extend(texts.map(|(path, text)| (path.to_owned(), Entry::Text(text.to_owned()))));
    Ok(entries)
}

/// Adds `file` as /usr/bin/`name`, and the shared libraries it needs where they are on this machine.
fn add_program(entries: &mut BTreeMap<String, Entry>, name: &str, file: &Path) -> Result<()> {
    entries.insert(format!("/usr/bin/{name}"), Entry::Copy(fs::canonicalize(file)?));
    let listed = Command::new(paths::tool("ldd")?).arg(file).output()?;
    let text = String::from_utf8_lossy(&listed.stdout);
    if !listed.status.success() {
        return Ok(()); // a static program
    }
    if text.contains("not found") {
        bail!("{} lacks a library on this machine:\n{text}", file.display());
    }
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let library = Path::new(library);
        let (Some(dir), Some(file_name)) = (library.parent(), library.file_name()) else { continue };
        let path = fs::canonicalize(dir)?.join(file_name);
        entries.insert(path.to_string_lossy().into_owned(), Entry::Copy(fs::canonicalize(library)?));
    }
    Ok(())
}

/// Adds a file, or all files of a directory, where they are on this machine.
fn add_file(entries: &mut BTreeMap<String, Entry>, file: &Path) -> Result<()> {
    let file = fs::canonicalize(file).with_context(|| format!("the guest wants {}", file.display()))?;
    if !file.is_dir() {
        entries.insert(file.to_string_lossy().into_owned(), Entry::Copy(file));
        return Ok(());
    }
    for entry in fs::read_dir(&file)? {
        add_file(entries, &entry?.path())?;
    }
    Ok(())
}

/// Adds the `wanted` modules with what they depend on, and the list of dependencies that modprobe reads.
fn add_modules(entries: &mut BTreeMap<String, Entry>, modules: &Path, wanted: &[&str]) -> Result<()> {
    let root = format!("/usr/lib/modules/{}", modules.file_name().unwrap_or_default().to_string_lossy());
    let listed = fs::read_to_string(modules.join("modules.dep"))
        .with_context(|| format!("cannot read {}/modules.dep", modules.display()))?;
    let (files, dependencies) = closure(&listed, wanted);
    for file in files {
        entries.insert(format!("{root}/{}", uncompressed(&file)), Entry::Copy(modules.join(file)));
    }
    entries.insert(format!("{root}/modules.dep"), Entry::Text(dependencies));
    Ok(())
}

/// The files that `wanted` modules need, and the lines of `listed` (a modules.dep) about them, for uncompressed files.
fn closure(listed: &str, wanted: &[&str]) -> (BTreeSet<String>, String) {
    let mut files = BTreeSet::new();
    let mut lines = String::new();
    let table: BTreeMap<&str, (&str, &str)> = listed
        .lines()
        .filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            let name = file.rsplit('/').next()?.split('.').next()?;
            Some((name, (file, needs)))
        })
        .collect();
    // A line of modules.dep names everything that the module needs, indirectly as well.
    for (file, needs) in wanted.iter().filter_map(|name| table.get(name)) {
        files.extend(std::iter::once(*file).chain(needs.split_whitespace()).map(str::to_owned));
    }
    for (file, needs) in table.values().filter(|(file, _)| files.contains(*file)) {
        lines += &format!("{}:", uncompressed(file));
        for need in needs.split_whitespace() {
            lines += &format!(" {}", uncompressed(need));
        }
        lines.push('\n');
    }
    (files, lines)
}

fn uncompressed(module: &str) -> &str {
    module.strip_suffix(".xz").unwrap_or(module)
}

/// A digest of everything that an image is built from: paths, texts, and files by name, size and time.
fn digest(entries: &BTreeMap<String, Entry>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    DIRECTORIES.hash(&mut hasher);
    for (path, entry) in entries {
        path.hash(&mut hasher);
        match entry {
            Entry::Copy(file) => {
                let meta = fs::metadata(file)?;
                (file, meta.len(), meta.modified()?).hash(&mut hasher);
            }
            Entry::Text(text) | Entry::Link(text) => text.hash(&mut hasher),
        }
    }
    Ok(hasher.finish())
}

fn write(file: &Path, entries: &BTreeMap<String, Entry>) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(file)?));
    let mut made: BTreeSet<String> = DIRECTORIES.iter().map(|dir| (*dir).to_owned()).collect();
    for dir in DIRECTORIES {
        archive.directory(dir)?;
    }
    for (path, entry) in entries {
        let ancestors: Vec<_> =
            Path::new(path).ancestors().skip(1).filter(|dir| dir.parent().is_some()).collect();
        for dir in ancestors.into_iter().rev().map(|dir| dir.to_string_lossy().into_owned()) {
            if made.insert(dir.clone()) {
                archive.directory(&dir)?;
            }
        }
        match entry {
            Entry::Copy(source) if source.extension().is_some_and(|ext| ext == "xz") => {
                let unpacked = Command::new("xz").args(["-dc"]).arg(source).output()?;
                if !unpacked.status.success() {
                    bail!(
                        "cannot unpack {}: {}",
                        source.display(),
                        String::from_utf8_lossy(&unpacked.stderr)
                    );
                }
                archive.file(path, &unpacked.stdout)?;
            }
            Entry::Copy(source) => archive.file(path, &fs::read(source)?)?,
            Entry::Text(text) => archive.file(path, text.as_bytes())?,
            Entry::Link(to) => archive.link(path, to)?,
        }
    }
    Ok(archive.finish()?)
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.next();
    Ok(entry.with_context(|| format!("{} is empty", dir.display()))??.path())
}

fn output(command: &mut Command) -> Result<String> {
    let out = command.output()?;
    if !out.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_brings_what_it_depends_on() {
        let listed = "kernel/a/nvme-tcp.ko.xz: kernel/a/nvme-fabrics.ko.xz\n\
                      kernel/a/nvme-fabrics.ko.xz:\n\
                      kernel/b/other.ko:\n";
        let (files, lines) = closure(listed, &["nvme-tcp", "built-in"]);
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            ["kernel/a/nvme-fabrics.ko.xz", "kernel/a/nvme-tcp.ko.xz"]
        );
        assert_eq!(lines, "kernel/a/nvme-fabrics.ko:\nkernel/a/nvme-tcp.ko: kernel/a/nvme-fabrics.ko\n");
    }
}
