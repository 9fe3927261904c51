use std::io::Write as _;

use proptest::prelude::*;

use super::*;

/// An image of version 3 with clusters of 512 bytes: a plain one, a zero one, a compressed one, nothing, of a disk of 2 KiB.
fn image(compression: Compression) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(4, &3_u32.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &2048_u64.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &512_u64.to_be_bytes());
    put(100, &112_u32.to_be_bytes());
    let stored = match compression {
        Compression::Deflate => miniz_oxide::deflate::compress_to_vec(&[0x5a; 512], 6),
        Compression::Zstd => {
            put(72, &incompatible::COMPRESSION.to_be_bytes());
            put(104, &[1]);
            zstd::bulk::compress(&[0x5a; 512], 1).unwrap()
        }
    };
    let mut l1 = vec![0; 512];
    l1[..8].copy_from_slice(&(1 << 63 | 1024_u64).to_be_bytes());
    let mut l2 = vec![0; 512];
    // The plain cluster at 1536; the compressed one at 2048 + 7, within its first sector.
    for (index, entry) in [1 << 63 | 1536_u64, ZERO, COMPRESSED | 2055].into_iter().enumerate() {
        l2[index * 8..index * 8 + 8].copy_from_slice(&entry.to_be_bytes());
    }
    let mut compressed = vec![0xee; 512];
    compressed[7..7 + stored.len()].copy_from_slice(&stored);
    [header, l1, l2, vec![0xab; 512], compressed].concat()
}

fn open(bytes: &[u8]) -> Result<Qcow2, ImageError> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("penstock-qcow2-{}-{number}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    Qcow2::new(file)
}

/// All of the disk, up to a MiB.
fn all(image: &mut Qcow2) -> Result<Vec<u8>, ImageError> {
    let mut out = vec![0; usize::try_from(image.bytes().min(1 << 20)).unwrap()];
    image.read(0, &mut out).map(|()| out)
}

#[test]
fn plain_zero_compressed_and_absent_clusters_are_read() {
    for compression in [Compression::Deflate, Compression::Zstd] {
        let mut image = open(&image(compression)).unwrap();
        let wanted = [[0xab; 512], [0; 512], [0x5a; 512], [0; 512]].concat();
        assert_eq!((image.bytes(), all(&mut image).unwrap()), (2048, wanted));
        assert_eq!((image.next_data(0).unwrap(), image.next_data(2048).unwrap()), (Some(0), None));
    }
}

#[test]
fn what_is_not_read_is_refused_with_a_remedy() {
    let cases: [(usize, &[u8], &str); 9] = [
        (8, &[0, 0, 0, 0, 0, 0, 2, 0], "backing file"),
        (32, &[0, 0, 0, 1], "encrypted"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], "corrupt"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], "another file"),
        (72, &[0, 0, 0, 0, 0, 0, 1, 0], "newer"),
        (4, &[0, 0, 0, 1], "version 1"),
        (20, &[0, 0, 0, 40], "2^40"),
        (24, &[0xff; 8], "bytes"),
        (36, &[0, 0, 0, 0], "L1 table"),
    ];
    for (at, bytes, word) in cases {
        let mut wrong = image(Compression::Deflate);
        wrong[at..at + bytes.len()].copy_from_slice(bytes);
        let error = open(&wrong).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(open(b"QFI\xfb").unwrap_err().to_string().contains("does not begin"));
}

#[test]
fn tables_and_clusters_behind_the_end_are_damage() {
    let good = image(Compression::Deflate);
    // The L2 table, the plain and the compressed cluster.
    for at in [512, 1024, 1024 + 16] {
        let mut wrong = good.clone();
        wrong[at + 4] = 0x7f;
        let error = all(&mut open(&wrong).unwrap()).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_but_do_not_crash(
        changes in prop::collection::vec((0..2560_usize, any::<u8>()), 1..12), zstd in any::<bool>(), length in 0..2561_usize,
    ) {
        let mut bytes = image(if zstd { Compression::Zstd } else { Compression::Deflate });
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(length.max(100));
        if let Ok(mut image) = open(&bytes) {
            drop(all(&mut image));
            let mut offset = 0;
            for _ in 0..16 {
                let Ok(Some(next)) = image.next_data(offset) else { break };
                prop_assert!(next >= offset);
                offset = next + image.window();
            }
        }
    }
}
