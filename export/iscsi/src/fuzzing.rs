//! What the fuzz target does with bytes from outside.

/// The bytes that an initiator sends: the machine must neither panic nor keep an I/O.
pub fn connection(bytes: &[u8]) {
    crate::conn::bench::connection(bytes);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_connections_passes() {
        let dir = format!("{}/../../fuzz/corpus/iscsi_connection", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir}: {error}")) {
            super::connection(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }
}
#[cfg(test)]
mod smoke {
    #[test]
    fn smoke() {
        let dir = format!("{}/../../fuzz/corpus/iscsi_connection", env!("CARGO_MANIFEST_DIR"));
        let seeds: Vec<Vec<u8>> =
            std::fs::read_dir(&dir).unwrap().map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
        let mut x = 88172645463325252u64;
        let mut r = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        let end = std::time::Instant::now() + std::time::Duration::from_secs(40);
        let mut n = 0;
        while std::time::Instant::now() < end {
            let mut b = seeds[(r() as usize) % seeds.len()].clone();
            if r() % 2 == 0 {
                let o = &seeds[(r() as usize) % seeds.len()];
                b.extend_from_slice(&o[2..]);
            }
            for _ in 0..(r() % 8) {
                let i = (r() as usize) % b.len();
                b[i] = match r() % 4 {
                    0 => 0xff,
                    1 => 0,
                    2 => b[i] ^ (1 << (r() % 8)),
                    _ => r() as u8,
                };
            }
            if std::panic::catch_unwind(|| super::connection(&b)).is_err() {
                std::fs::write("/tmp/isc/fz/crash", &b).unwrap();
                panic!("crash after {n}");
            }
            n += 1;
        }
        eprintln!("{n} runs");
    }
}
