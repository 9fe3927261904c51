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
