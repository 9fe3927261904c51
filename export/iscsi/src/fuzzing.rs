//! What the fuzz targets do with bytes from outside.

/// The bytes that an initiator sends: the machine must neither panic nor keep an I/O.
pub fn connection(bytes: &[u8]) {
    crate::conn::bench::connection(bytes);
}

/// The requests of one login, each its flags, the length of its keys (2, little-endian) and its keys.
pub fn login(bytes: &[u8]) {
    crate::conn::bench::login(bytes);
}

#[cfg(test)]
mod tests {
    fn replay(corpus: &str, run: impl Fn(&[u8])) {
        let dir = format!("{}/../../fuzz/corpus/{corpus}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir}: {error}")) {
            run(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }

    #[test]
    fn the_corpus_of_connections_passes() {
        replay("iscsi_connection", super::connection);
    }

    #[test]
    fn the_corpus_of_logins_passes() {
        replay("iscsi_login", super::login);
    }
}
