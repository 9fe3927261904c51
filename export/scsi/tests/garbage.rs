//! Rubbish in every field: always a legal answer, never a panic.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod bench;

use bench::Bench;
use penstock_scsi::Sense;
use proptest::prelude::*;

const OPCODES: &[u8] = &[
    0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x34,
    0x35, 0x37, 0x41, 0x42, 0x48, 0x55, 0x5a, 0x5e, 0x5f, 0x83, 0x84, 0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f,
    0x90, 0x91, 0x93, 0x9c, 0x9e, 0xa0, 0xa3, 0xa4, 0xa8, 0xaa, 0xae, 0xaf, 0xb7, 0x7f, 0xff,
];

/// A CDB with many zeroes, so that it gets beyond the first checks.
fn cdb() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![6 => Just(0_u8), 2 => 0..32_u8, 1 => any::<u8>()];
    (prop::sample::select(OPCODES.to_vec()), prop::collection::vec(byte, 15)).prop_map(|(opcode, rest)| {
        let mut cdb = vec![opcode];
        cdb.extend(rest);
        cdb
    })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => Just(0_u8), 2 => 0..40_u8, 1 => any::<u8>()];
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(byte, 0..700),
        (0..20_usize).prop_map(|blocks| vec![1; blocks * 512]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_command_ends_with_a_legal_answer(commands in prop::collection::vec((0..3_usize, 0..3_u16, cdb(), data()), 1..12)) {
        let mut bench = Bench::with(2, 3, 512, |config| {
            config.removable = true;
            config.limits.transfer_bytes_max = 1 << 20;
            config.limits.atomic_blocks_max = 16;
        });
        for (nexus, lun, cdb, data) in commands {
            let outcome = bench.run(nexus, lun, &cdb, &data);
            prop_assert!(matches!(outcome.status, 0x00 | 0x02 | 0x08 | 0x18), "status {:02x}", outcome.status);
            if outcome.status != 0 {
                prop_assert!(outcome.data.is_empty());
            }
            if let Some((key, _)) = outcome.sense {
                prop_assert!(key != 4, "an internal failure by {:02x?} {:02x?}", cdb, data);
            }
        }
    }

    #[test]
    fn allocation_lengths_cut_and_nothing_else(cdb in cdb(), alloc in 0..300_u32) {
        let (at, width) = match cdb[0] {
            0x03 | 0x1a => (4, 1),
            0x12 => (3, 2),
            0x5a | 0x5e | 0x37 => (7, 2),
            0x9e | 0x84 => (10, 4),
            0xa0 | 0xa3 | 0xb7 => (6, 4),
            _ => return Ok(()),
        };
        let with = |alloc: u32| {
            let mut cdb = cdb.clone();
            cdb[at..at + width].copy_from_slice(&alloc.to_be_bytes()[4 - width..]);
            cdb
        };
        let alloc = if width == 1 { alloc.min(255) } else { alloc };
        let full = if width == 1 { 255 } else { 60_000 };
        let mut bench = Bench::new(1, 1);
        let whole = bench.run(0, 0, &with(full), &[]);
        let cut = bench.run(0, 0, &with(alloc), &[]);
        prop_assert_eq!(whole.status, cut.status);
        prop_assert_eq!(&whole.data[..whole.data.len().min(alloc as usize)], &cut.data[..]);
        prop_assert_eq!(cut.transfer_bytes, cut.data.len() as u64);
    }

    #[test]
    fn parameter_lists_of_rubbish_are_parsed_to_their_end(
        opcode in prop::sample::select(vec![0x15_u8, 0x55, 0x42, 0x5f, 0x83, 0xa4]),
        action in 0..0x20_u8,
        list in data(),
    ) {
        let mut bench = Bench::new(2, 1);
        let mut cdb = vec![0; 16];
        cdb[0] = opcode;
        cdb[1] = if matches!(opcode, 0x15 | 0x55) { 0x10 } else { action };
        let len = list.len() as u32;
        match opcode {
            0x15 => cdb[4] = len.min(255) as u8,
            0x55 | 0x42 => cdb[7..9].copy_from_slice(&(len as u16).to_be_bytes()),
            0x5f => cdb[5..9].copy_from_slice(&len.to_be_bytes()),
            0x83 => cdb[10..14].copy_from_slice(&len.to_be_bytes()),
            _ => cdb[6..10].copy_from_slice(&len.to_be_bytes()),
        }
        let outcome = bench.run(0, 0, &cdb, &list);
        prop_assert!(matches!(outcome.status, 0x00 | 0x02 | 0x18));
    }

    #[test]
    fn sense_of_rubbish_is_none_or_some(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        std::hint::black_box(Sense::decode(&bytes));
    }
}
