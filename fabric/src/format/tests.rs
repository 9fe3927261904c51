use super::*;

fn identity() -> Identity {
    let pool = Uuid::from_u128(7);
    Identity { magic: Magic::NODE, pool, disk: 3, lane: LaneNo(2), address: 100, sequence: 9 }
}

fn sealed(covered: u32) -> Vec<u8> {
    let mut bytes = vec![0x55; 4096];
    put(&mut bytes, 0, &Prefix::new(&identity(), covered));
    seal(&mut bytes);
    bytes
}

#[test]
fn a_sealed_structure_is_recognised_and_any_changed_bit_of_it_is_not() {
    let bytes = sealed(300);
    assert!(Prefix::check(&identity(), &bytes).is_ok());
    for bit in 0..300 * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Prefix::check(&identity(), &bad).is_err(), "bit {bit}");
    }
    assert!(Prefix::check(&identity(), &bytes[..299]).is_err());
}

#[test]
fn what_belongs_elsewhere_is_told_from_what_is_damaged() {
    let bytes = sealed(4096);
    let check = |identity: &Identity| Prefix::check(identity, &bytes).unwrap_err();
    assert_eq!(check(&Identity { magic: Magic::BATCH, ..identity() }), FormatError::Magic);
    assert_eq!(check(&Identity { pool: Uuid::nil(), ..identity() }), FormatError::Pool);
    assert_eq!(check(&Identity { disk: 4, ..identity() }), FormatError::Misplaced);
    assert_eq!(check(&Identity { address: 101, ..identity() }), FormatError::Misplaced);
    assert_eq!(check(&Identity { sequence: 10, ..identity() }), FormatError::Stale);
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let mut bytes = sealed(64);
    put(&mut bytes, 8, &U16::new(VERSION + 1));
    seal(&mut bytes);
    let error = Prefix::check(&identity(), &bytes).unwrap_err();
    assert_eq!(error, FormatError::Version { found: VERSION + 1, known: VERSION });
}

#[test]
fn no_bytes_make_a_parser_panic() {
    let mut rng = penstock_reactor::rng::Rng::seeded(1);
    for _ in 0..2000 {
        let mut bytes = vec![0; 4096];
        rng.fill(&mut bytes);
        for magic in [Magic::BATCH, Magic::EGROUP, Magic::SUPERBLOCK] {
            bytes[..8].copy_from_slice(&magic.0);
            put(&mut bytes, 8, &U16::new(VERSION));
            let covered = u32::try_from(64 + rng.below(4033)).unwrap();
            put(&mut bytes, 16, &U32::new(covered));
            seal(&mut bytes);
            assert!(Prefix::parse(magic, &bytes).is_ok());
            let parsed = [
                log::BatchHeader::parse(&bytes).is_ok(),
                superblock::Superblock::parse(&bytes, crate::id::DiskBlock(0)).is_ok(),
                {
                    let prefix: Prefix = take(&bytes, 0).unwrap();
                    let lane = LaneNo(prefix.lane.get());
                    let (disk, address) = (prefix.disk.get(), prefix.address.get());
                    let pool = Uuid::from_bytes(prefix.pool);
                    let identity =
                        Identity { magic, pool, disk, lane, address, sequence: prefix.sequence.get() };
                    let generation: U32 = take(&bytes, 64).unwrap();
                    egroup::HeaderPart::parse(&identity, crate::id::Generation(generation.get()), &bytes[..])
                        .is_ok()
                },
            ];
            assert_eq!(parsed, [false; 3], "random fields are never a structure of ours");
        }
    }
}
