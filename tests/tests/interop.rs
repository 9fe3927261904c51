//! What hosts of other makes do, allowed by the standards and unlike Linux: data in many small pieces, Connect's data by
//! R2T, bursts of admin commands, descriptors of every form.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use penstock_tests::initiator::{Connect, HOST_NQN, Host, Pdu, Queue, pdu};
use penstock_tests::target::{Backend, Penstock, Target};

const MIB: u64 = 1 << 20;
const R2T: u8 = 0x09;
const LAST: u8 = 0x04;

fn start() -> Result<Penstock> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 4 * MIB)?;
    Ok(target)
}

fn word(pdu: &Pdu, at: usize) -> Result<u32> {
    let bytes = pdu.body.get(at..at + 4).context("a short PDU")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

/// Answers one R2T with PDUs of at most `piece` bytes.
fn give(queue: &mut Queue, data: &[u8], piece: usize) -> Result<()> {
    let asked = queue.receive()?;
    ensure!(asked.kind == R2T, "PDU type {:#04x} instead of an R2T", asked.kind);
    let (offset, length) = (usize::try_from(word(&asked, 4)?)?, usize::try_from(word(&asked, 8)?)?);
    let tags = asked.body.get(..4).context("a short R2T")?.to_vec();
    let data = data.get(offset..offset + length).context("an R2T beyond the data")?;
    let mut sent = 0;
    for part in data.chunks(piece) {
        let last = if sent + part.len() == data.len() { LAST } else { 0 };
        let mut bytes = vec![pdu::H2C_DATA, last, 24, 24];
        bytes.extend_from_slice(&u32::try_from(24 + part.len())?.to_le_bytes());
        bytes.extend_from_slice(&tags);
        bytes.extend_from_slice(&u32::try_from(offset + sent)?.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(part.len())?.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(part);
        queue.send(&bytes)?;
        sent += part.len();
    }
    Ok(())
}

#[test]
fn a_mebibyte_comes_in_pieces_of_any_size() -> Result<()> {
    let target = start()?;
    let mut host = Host::connect(target.port(), target.nqn())?;
    for (seed, piece) in (1_u8..).zip([1 << 20, 65_536, 4096, 512, 100]) {
        let data: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8 ^ seed).collect();
        host.io.announce_write(1, 0, 2048, 512)?;
        give(&mut host.io, &data, piece)?;
        ensure!(host.io.completion()?.status == 0, "pieces of {piece} bytes: the write failed");
        let (back, _) = host.io.read(1, 0, 2048, 512)?;
        ensure!(back == data, "pieces of {piece} bytes: other data came back");
    }
    Ok(())
}

#[test]
fn connects_data_may_come_by_r2t() -> Result<()> {
    let target = start()?;
    let mut admin = Queue::open(target.port())?;
    admin.initialize()?;
    let mut command = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| {
        command.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
    };
    put(0, &[0x7f, 0x40, 0, 0, 0x01]);
    put(32, &1024_u32.to_le_bytes());
    put(39, &[0x5a]);
    put(44, &31_u16.to_le_bytes());
    let mut data = vec![0; 1024];
    let mut place = |at: usize, bytes: &[u8]| {
        data.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
    };
    place(16, &[0xff, 0xff]);
    place(256, target.nqn().as_bytes());
    place(512, HOST_NQN.as_bytes());
    admin.submit(&mut command, &[])?;
    give(&mut admin, &data, 1024)?;
    ensure!(admin.completion()?.status == 0, "Connect failed");
    admin.enable()
}

/// ESXi fills the admin queue at once.
#[test]
fn a_burst_of_admin_commands_up_to_the_queues_size_is_answered() -> Result<()> {
    let target = start()?;
    for entries in [16, 32, 128] {
        let mut admin = Queue::open(target.port())?;
        admin.initialize()?;
        admin.connect(&Connect { entries, ..Connect::admin(target.nqn()) })?;
        admin.enable()?;
        let mut waiting = BTreeSet::new();
        for _ in 1..entries {
            let mut keep_alive = [0; 64];
            keep_alive[0] = 0x18;
            keep_alive[1] = 0x40;
            waiting.insert(admin.submit(&mut keep_alive, &[])?);
        }
        while !waiting.is_empty() {
            let done = admin.completion()?;
            ensure!(done.status == 0 && waiting.remove(&done.cid), "{entries} entries: {done:?}");
        }
    }
    Ok(())
}

#[test]
fn descriptors_of_every_form_are_taken_or_refused_by_name() -> Result<()> {
    let target = start()?;
    let mut host = Host::connect(target.port(), target.nqn())?;
    let write = |kind: u8, address: u64, length: u32| {
        let mut command = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| {
            command.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
        };
        put(0, &[0x01, 0x40]);
        put(4, &[1]);
        put(24, &address.to_le_bytes());
        put(32, &length.to_le_bytes());
        put(39, &[kind]);
        command
    };
    // What the command's status is, in the capsule or without data, by the standard's names.
    let (fine, bad_type, bad_length, bad_offset) = (0, 0x11, 0x0f, 0x16);
    for (what, kind, address, length, in_capsule, expected) in [
        ("in the capsule", 0x01, 0, 512, true, fine),
        ("in the capsule, with an offset beyond it", 0x01, 512, 512, true, bad_offset),
        ("in the capsule, longer than it", 0x01, 0, 1024, true, bad_length),
        ("transport data block of another length", 0x5a, 0, 1024, false, bad_length),
        ("a host's address", 0x00, 4096, 512, false, bad_type),
        ("bit bucket", 0x10, 0, 512, false, bad_type),
        ("segment", 0x20, 0, 512, false, bad_type),
        ("last segment", 0x31, 0, 512, false, bad_type),
        ("keyed data block", 0x40, 0, 512, false, bad_type),
        ("reserved", 0x70, 0, 512, false, bad_type),
    ] {
        let data: &[u8] = if in_capsule { &[7; 512] } else { &[] };
        host.io.submit(&mut write(kind, address, length), data)?;
        let status = host.io.completion()?.status & 0x7ff;
        ensure!(status == expected, "{what}: status {status:#x} instead of {expected:#x}");
    }
    host.io.submit(&mut write(0x5a, 0, 512), &[])?;
    give(&mut host.io, &[9; 512], 512)?;
    ensure!(host.io.completion()?.status == 0, "transport data block: the write failed");
    Ok(())
}
