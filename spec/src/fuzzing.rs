//! What the fuzz targets do with bytes from outside; the corpus is replayed by the ordinary tests.
//!
//! Each function must return, whatever it is given, and asserts what readers of the checked types rely on.

use zerocopy::FromBytes;

use crate::iscsi::{self, CheckedBhs, IscsiName};
use crate::nvme::identify::namespace::ns_id_descriptors;
use crate::nvme::identify::{IdentifyNamespace, NsList};
use crate::nvme::{Cqe, Sgl, SglDescriptor, Sqe};
use crate::nvme_tcp::{
    C2hDataHdr, CheckedHdr, CommonHdr, DigestFlags, H2cDataHdr, IcReq, IcResp, R2tHdr, Receiver, RxRules,
};
use crate::nvmf::discovery::DiscoveryLogEntry;
use crate::nvmf::{ConnectData, Nqn};

/// A common header and what follows it, against rules made of the first 8 bytes.
pub fn pdu(bytes: &[u8]) {
    let Some(([flags, pda, c0, c1, d0, d1, d2, _], rest)) = bytes.split_first_chunk::<8>() else { return };
    let rules = RxRules {
        receiver: if flags & 1 == 0 { Receiver::Controller } else { Receiver::Host },
        initialized: flags & 2 != 0,
        hdgst: flags & 4 != 0,
        ddgst: flags & 8 != 0,
        pda: pda & 31,
        in_capsule_max: u32::from_le_bytes([*c0, *c1, 0, 0]),
        data_max: u32::from_le_bytes([*d0, *d1, *d2, 0]),
    };
    let Ok((ch, _)) = CommonHdr::ref_from_prefix(rest) else { return };
    let hdr = match CheckedHdr::parse(ch, &rules) {
        Ok(hdr) => hdr,
        Err(error) => {
            assert!(error.fes().name().is_some() && error.fei() < 8);
            return;
        }
    };
    let sum = u64::from(hdr.data_off) + u64::from(hdr.data_len) + u64::from(hdr.ddgst_len);
    assert_eq!(sum, u64::from(hdr.plen));
    assert_eq!(u32::from(hdr.psh_end()) + hdr.pad_len(), hdr.data_off);
    let transfer = |off: u32, len: u32| assert!(off.checked_add(len).is_some() && off.is_multiple_of(4));
    if let Ok((h2c, _)) = H2cDataHdr::ref_from_prefix(rest)
        && h2c.check(&hdr).is_ok()
    {
        transfer(h2c.datao.get(), h2c.datal.get());
    }
    if let Ok((c2h, _)) = C2hDataHdr::ref_from_prefix(rest)
        && c2h.check(&hdr).is_ok()
    {
        transfer(c2h.datao.get(), c2h.datal.get());
    }
    if let Ok((r2t, _)) = R2tHdr::ref_from_prefix(rest)
        && r2t.check().is_ok()
    {
        transfer(r2t.r2to.get(), r2t.r2tl.get());
    }
    if let Ok((req, _)) = IcReq::ref_from_prefix(rest)
        && req.check().is_ok()
    {
        assert!(req.hpda <= 31 && req.maxr2t() > 0);
    }
    if let Ok((resp, _)) = IcResp::ref_from_prefix(rest)
        && resp.check(DigestFlags(flags >> 4)).is_ok()
    {
        assert!(resp.cpda <= 31 && resp.maxh2cdata.get() >= 4096);
    }
}

/// A submission queue entry with its SGL descriptor, and a completion.
pub fn sqe(bytes: &[u8]) {
    if let Ok((sqe, _)) = Sqe::ref_from_prefix(bytes) {
        if let Ok(sgl) = sqe.sgl() {
            assert_eq!(SglDescriptor::from(sgl).parse(), Ok(sgl));
            if let Sgl::Segment { len, .. } = sgl {
                assert!(len > 0 && len.is_multiple_of(16));
            }
        }
        let tcp = sqe.sgl1.parse_tcp();
        assert!(tcp.is_err() || sqe.sgl().is_ok());
        let mut again = *sqe;
        again.set_fuse(sqe.fuse());
        again.set_psdt(sqe.psdt());
        assert_eq!(again, *sqe);
    }
    if let Ok((cqe, _)) = Cqe::ref_from_prefix(bytes) {
        assert_eq!(cqe.status().to_bits(), cqe.status_raw.get());
        assert_eq!(Cqe::default().with_result(cqe.result()).result(), cqe.result());
    }
}

/// Connect data and the NQNs in it, and a bare name.
pub fn connect(bytes: &[u8]) {
    if let Ok(nqn) = Nqn::parse(bytes) {
        assert_eq!(nqn.as_bytes(), bytes);
        assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
    }
    let mut data = ConnectData::default();
    for (to, from) in data.subnqn.iter_mut().zip(bytes) {
        *to = *from;
    }
    if let Ok(nqn) = data.subsystem() {
        assert!(bytes.starts_with(nqn.as_bytes()) && nqn.as_str().starts_with("nqn."));
    }
    if let Ok((data, _)) = ConnectData::ref_from_prefix(bytes) {
        assert!(data.host().is_err() || data.hostnqn.starts_with(b"nqn."));
    }
}

/// What a host reads of a controller: lists, descriptors, discovery entries.
pub fn identify(bytes: &[u8]) {
    let total: usize = ns_id_descriptors(bytes).map(|(_, nid)| nid.len() + 4).sum();
    assert!(total <= bytes.len());
    if let Ok((ns, _)) = IdentifyNamespace::ref_from_prefix(bytes) {
        assert!(ns.block_len().is_none_or(|len| len >= 512 && len.is_power_of_two()));
    }
    if let Ok((list, _)) = NsList::ref_from_prefix(bytes) {
        assert!(list.iter().all(|nsid| nsid != 0));
    }
    if let Ok((entry, _)) = DiscoveryLogEntry::ref_from_prefix(bytes) {
        assert!(entry.traddr().is_none_or(str::is_ascii) && entry.trsvcid().is_none_or(str::is_ascii));
    }
}

/// A basic header segment against limits made of the first 4 bytes.
pub fn iscsi_bhs(bytes: &[u8]) {
    let Some(([a, b, c, ahs], rest)) = bytes.split_first_chunk::<4>() else { return };
    let data_max = u32::from_be_bytes([0, *a, *b, *c]);
    let ahs_max = usize::from(*ahs);
    if let Ok(Some(bhs)) = CheckedBhs::parse_prefix(rest, data_max, ahs_max) {
        assert!(bhs.data_len <= data_max && bhs.ahs_len <= ahs_max && bhs.opcode.is_to_target());
        assert!((bhs.data_len + iscsi::pad_len(bhs.data_len)).is_multiple_of(4));
    }
}

/// Text keys and the values and names in them.
pub fn iscsi_text(bytes: &[u8]) {
    for pair in iscsi::text::pairs(bytes).flatten() {
        assert!(!pair.key.is_empty() && pair.key.len() <= iscsi::text::KEY_LEN_MAX);
        if let Some(number) = iscsi::text::number(pair.value) {
            assert_eq!(iscsi::text::number(&number.to_string()), Some(number));
        }
        if let Ok(name) = pair.value.parse::<IscsiName>() {
            assert_eq!(IscsiName::parse(name.as_bytes()), Ok(name));
        }
    }
    if let Ok(name) = IscsiName::parse(bytes) {
        assert!(name.as_str().len() == bytes.len());
    }
}

#[cfg(test)]
mod tests {
    /// Runs every file of a target's corpus.
    fn replay(target: &str, run: fn(&[u8])) {
        let dir = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{dir}: {e}"));
        let mut count = 0;
        for file in files {
            run(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }

    #[test]
    fn the_corpus_of_pdu_headers_passes() {
        replay("spec_pdu", super::pdu);
    }

    #[test]
    fn the_corpus_of_commands_passes() {
        replay("spec_sqe", super::sqe);
    }

    #[test]
    fn the_corpus_of_connect_data_passes() {
        replay("spec_connect", super::connect);
    }

    #[test]
    fn the_corpus_of_identify_data_passes() {
        replay("spec_identify", super::identify);
    }

    #[test]
    fn the_corpus_of_iscsi_headers_passes() {
        replay("spec_iscsi_bhs", super::iscsi_bhs);
    }

    #[test]
    fn the_corpus_of_iscsi_text_passes() {
        replay("spec_iscsi_text", super::iscsi_text);
    }
}
