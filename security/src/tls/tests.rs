use std::collections::BTreeMap;

use super::*;
use crate::psk::ConfiguredPsk;
use penstock_spec::nvmf::Nqn;

struct Store(BTreeMap<Vec<u8>, Arc<TlsPsk>>);

impl PskStore for Store {
    fn find(&self, identity: &[u8]) -> Option<Arc<TlsPsk>> {
        self.0.get(identity).cloned()
    }
}

fn psk(hash: Hash, version: u8) -> TlsPsk {
    let nqn = |name: &str| Nqn::parse(format!("nqn.2026-11.io.penstock:{name}").as_bytes()).unwrap();
    ConfiguredPsk::generate(hash).unwrap().tls_psk(&nqn("host"), &nqn("disk"), version).unwrap()
}

fn store(psks: &[&TlsPsk]) -> Store {
    Store(psks.iter().map(|psk| (psk.identity.clone().into_bytes(), Arc::new((*psk).clone()))).collect())
}

/// Moves what one side has to send to the other.
fn carry(from: &mut Session, to: &mut Session) -> usize {
    let mut moved = 0;
    loop {
        let bytes = from.net_bytes();
        let space = to.net_space();
        let len = bytes.len().min(space.len());
        if len == 0 {
            return moved;
        }
        space[..len].copy_from_slice(&bytes[..len]);
        to.net_came(len);
        from.net_sent(len);
        moved += len;
    }
}

fn shake(client: &mut Session, server: &mut Session, known: &Store) -> Result<(), TlsError> {
    for _ in 0..8 {
        let one = client.handshake(&Store(BTreeMap::new()));
        carry(client, server);
        one?;
        let other = server.handshake(known);
        carry(server, client);
        other?;
        if client.is_open() && server.is_open() {
            return Ok(());
        }
    }
    panic!("no end of the handshake")
}

fn pair(psk: &TlsPsk) -> (Session, Session) {
    let context = Context::new().unwrap();
    let mut client = Session::client(&context, Arc::new(psk.clone())).unwrap();
    let mut server = Session::server(&context).unwrap();
    shake(&mut client, &mut server, &store(&[psk])).unwrap();
    (client, server)
}

#[test]
fn both_hashes_and_both_versions_of_identities_work_and_data_flow() {
    for (hash, version) in [(Hash::Sha256, 0), (Hash::Sha256, 1), (Hash::Sha384, 1)] {
        let psk = psk(hash, version);
        let (mut client, mut server) = pair(&psk);
        assert_eq!(server.psk().unwrap().identity, psk.identity);
        let data: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < data.len() {
            if let Some(len) = client.write(&data[sent..]).unwrap() {
                sent += len;
            }
            carry(&mut client, &mut server);
            let mut buf = [0; 5000];
            while let Some(len) = server.read(&mut buf).unwrap() {
                got.extend_from_slice(&buf[..len]);
            }
        }
        assert_eq!(got, data);
        client.close();
        carry(&mut client, &mut server);
        assert_eq!(server.read(&mut [0; 1]), Ok(Some(0)));
    }
}

#[test]
fn a_ring_that_is_not_emptied_holds_the_writer_back() {
    let (mut client, mut server) = pair(&psk(Hash::Sha256, 1));
    let data = vec![7; RECORD_BYTES_MAX];
    let mut written = 0;
    while let Some(len) = client.write(&data).unwrap() {
        written += len;
    }
    assert!((RING_BYTES / 2..RING_BYTES).contains(&written));
    carry(&mut client, &mut server);
    let (mut read, mut buf) = (0, vec![0; 1000]);
    while let Some(len) = server.read(&mut buf).unwrap() {
        read += len;
    }
    assert_eq!(read, written);
    assert!(client.write(&data).unwrap().is_some());
}

#[test]
fn a_key_that_is_not_known_or_not_the_same_is_refused() {
    let (known, unknown) = (psk(Hash::Sha384, 1), psk(Hash::Sha384, 1));
    let context = Context::new().unwrap();
    let attempt = |client: &TlsPsk| {
        let mut client = Session::client(&context, Arc::new(client.clone())).unwrap();
        let mut server = Session::server(&context).unwrap();
        shake(&mut client, &mut server, &store(&[&known])).unwrap_err()
    };
    assert!(matches!(attempt(&unknown), TlsError::Failed(_)));
    let forged = TlsPsk { key: unknown.key.clone(), ..known.clone() };
    assert!(matches!(attempt(&forged), TlsError::Failed(_)));
}

#[test]
fn what_is_no_tls_is_an_error_and_no_panic() {
    let context = Context::new().unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0, 4, 1, 0, 0, 0], &[0x16; 600]] {
        let mut server = Session::server(&context).unwrap();
        server.net_space()[..garbage.len()].copy_from_slice(garbage);
        server.net_came(garbage.len());
        assert!(server.handshake(&store(&[])).is_err());
    }
}

#[test]
fn a_changed_record_ends_the_connection() {
    let (mut client, mut server) = pair(&psk(Hash::Sha256, 1));
    client.write(b"data").unwrap();
    let mut bytes = client.net_bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    server.net_space()[..bytes.len()].copy_from_slice(&bytes);
    server.net_came(bytes.len());
    assert!(server.read(&mut [0; 16]).is_err());
}

#[test]
fn identities_are_found_in_an_extension_and_nowhere_else() {
    let ext = [0, 17, 0, 3, b'a', b'b', b'c', 0, 0, 0, 0, 0, 2, b'd', b'e', 9, 9, 9, 9, 0, 33];
    let found: Vec<&[u8]> = identities(&ext).collect();
    assert_eq!(found, [&b"abc"[..], b"de"]);
    for len in 0..ext.len() {
        assert!(identities(&ext[..len]).count() <= 2);
    }
    assert_eq!(identities(&[0, 4, 0, 200, 1, 2]).count(), 0);
}
