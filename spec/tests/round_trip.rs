//! Goal: no parser of bytes panics, and what is written down is what is read back.

use penstock_spec::nvme::identify::namespace::ns_id_descriptors;
use penstock_spec::nvme::sgl::{SglBase, SglDescriptor, TcpSgl};
use penstock_spec::nvme::{Sgl, Sqe, Status};
use penstock_spec::nvme_tcp::{C2hDataHdr, CheckedHdr, CommonHdr, H2cDataHdr, IcReq, IcResp, R2tHdr};
use penstock_spec::nvme_tcp::{DigestFlags, Receiver, RxRules, align_of_pda, data_offset};
use penstock_spec::nvmf::property::{Cap, Cc, PropertySize};
use penstock_spec::nvmf::{ConnectData, Nqn};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

fn base() -> impl Strategy<Value = SglBase> {
    prop_oneof![Just(SglBase::Address), Just(SglBase::Capsule)]
}

fn sgl() -> impl Strategy<Value = Sgl> {
    prop_oneof![
        (base(), any::<u64>(), any::<u32>()).prop_map(|(base, addr, len)| Sgl::DataBlock { base, addr, len }),
        any::<u32>().prop_map(|len| Sgl::BitBucket { len }),
        (base(), any::<u64>(), 1_u32..1 << 27, any::<bool>())
            .prop_map(|(base, addr, n, last)| Sgl::Segment { base, addr, len: n * 16, last }),
        (any::<u64>(), 0_u32..1 << 24, any::<u32>(), any::<bool>())
            .prop_map(|(addr, len, key, invalidate)| Sgl::Keyed { addr, len, key, invalidate }),
        any::<u32>().prop_map(|len| Sgl::Transport { len }),
    ]
}

proptest! {
    #[test]
    fn every_sgl_is_read_back_as_it_was_written(sgl in sgl()) {
        let raw = SglDescriptor::from(sgl);
        prop_assert_eq!(raw.parse(), Ok(sgl));
        let for_tcp = matches!(sgl, Sgl::Transport { .. } | Sgl::DataBlock { base: SglBase::Capsule, .. });
        prop_assert_eq!(raw.parse_tcp().is_ok(), for_tcp);
    }

    #[test]
    fn any_descriptor_is_refused_or_written_back_the_same(bytes: [u8; 16]) {
        let raw = SglDescriptor::read_from_bytes(&bytes).unwrap();
        match raw.parse() {
            Ok(sgl) => prop_assert_eq!(SglDescriptor::from(sgl).parse(), Ok(sgl)),
            Err(error) => prop_assert!(!error.status().is_success()),
        }
        if let Ok(TcpSgl::InCapsule { len, .. } | TcpSgl::Transport { len }) = raw.parse_tcp() {
            prop_assert_eq!(len, raw.length.get());
        }
    }

    #[test]
    fn a_status_keeps_its_parts(bits: u16) {
        let status = Status::from_bits(bits);
        prop_assert_eq!(status.to_bits(), bits);
        let again = Status::new(status.sct().0, status.sc()).with_crd(status.crd()).with_phase(status.phase());
        let again = if status.more() { again.with_more() } else { again };
        let again = if status.dnr() { again.with_dnr() } else { again };
        prop_assert_eq!(again, status);
        prop_assert!(!status.to_string().is_empty());
    }

    #[test]
    fn any_name_is_refused_or_kept(name in "\\PC{0,80}", prefix: bool) {
        let name = if prefix { format!("nqn.2026-11.io.penstock:{name}") } else { name };
        if let Ok(nqn) = name.parse::<Nqn>() {
            prop_assert_eq!(nqn.as_str(), &name);
            prop_assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
        } else {
            prop_assert!(!prefix || name.len() == 24 || name.len() > 223);
        }
    }

    #[test]
    fn connect_data_of_any_bytes_is_looked_at_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 1024)) {
        let data = ConnectData::ref_from_bytes(&bytes).unwrap();
        prop_assert!(data.subsystem().is_err() || data.subnqn[0] == b'n');
        prop_assert!(data.host().is_err() || data.hostnqn[0] == b'n' || data.hostnqn.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_bit_field_changes_only_its_own_bits(raw: u64, mqes0: u16, to: u8, iosqes in 0_u8..16, en: bool) {
        let cap = Cap(raw).with_mqes0(mqes0).with_to(to);
        prop_assert_eq!((cap.mqes0(), cap.to()), (mqes0, to));
        prop_assert_eq!(cap.0 & 0xffff_ffff_00ff_0000, raw & 0xffff_ffff_00ff_0000);
        let cc = Cc(0xffff_ffff).with_iosqes(iosqes).with_en(en);
        prop_assert_eq!((cc.iosqes(), cc.en(), cc.iocqes(), cc.shn()), (iosqes, en, 15, 3));
    }

    #[test]
    fn pdus_of_any_bytes_are_checked_without_a_panic(bytes: [[u8; 32]; 4], initialized: bool, host: bool) {
        let bytes = bytes.as_flattened();
        let ch = CommonHdr::read_from_prefix(bytes).unwrap().0;
        let receiver = if host { Receiver::Host } else { Receiver::Controller };
        let rules = RxRules { initialized, ..RxRules::before_init(receiver) };
        let hdr = CheckedHdr::parse(&ch, &rules).unwrap_or(CheckedHdr {
            pdu_type: ch.pdu_type, flags: ch.flags(), hlen: 24, hdgst_len: 0,
            data_off: 24, data_len: 8, ddgst_len: 0, plen: 32,
        });
        let results = [
            IcReq::ref_from_bytes(bytes).unwrap().check(),
            IcResp::ref_from_bytes(bytes).unwrap().check(DigestFlags(0)),
            H2cDataHdr::read_from_prefix(bytes).unwrap().0.check(&hdr),
            C2hDataHdr::read_from_prefix(bytes).unwrap().0.check(&hdr),
            R2tHdr::read_from_prefix(bytes).unwrap().0.check(),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            prop_assert!(error.fes().name().is_some() && error.fei() < 24);
        }
    }

    #[test]
    fn data_begins_aligned_and_as_early_as_it_may(end in 8_u8..=128, pda: u8) {
        let off = data_offset(end, pda);
        prop_assert!(off >= u32::from(end) && off < u32::from(end) + align_of_pda(pda));
        prop_assert!(off.is_multiple_of(align_of_pda(pda)) && off <= 255);
    }

    #[test]
    fn namespace_descriptors_of_any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let total: usize = ns_id_descriptors(&bytes).map(|(_, nid)| nid.len() + 4).sum();
        prop_assert!(total <= bytes.len());
    }

    #[test]
    fn any_command_can_be_looked_at(bytes: [[u8; 32]; 2]) {
        let sqe = Sqe::read_from_bytes(bytes.as_flattened()).unwrap();
        prop_assert_eq!(sqe.as_bytes(), bytes.as_flattened());
        let mut again = sqe;
        again.set_fuse(sqe.fuse());
        again.set_psdt(sqe.psdt());
        prop_assert_eq!(again, sqe);
        prop_assert!(PropertySize::from_attrib(sqe.opc).is_none_or(|s| s.attrib() == sqe.opc & 7));
    }
}

#[test]
fn the_identify_structures_are_where_the_standard_has_them() {
    use penstock_spec::nvme::identify::{IdentifyController, IdentifyNamespace, LbaFormat};
    let mut page = [0_u8; 4096];
    page[520] = 0x05;
    page[1792] = 4;
    page[768..771].copy_from_slice(b"nqn");
    let ctrlr = IdentifyController::ref_from_bytes(&page).unwrap();
    assert_eq!((ctrlr.oncs.get(), ctrlr.ioccsz.get(), &ctrlr.subnqn[..3]), (5, 4, &b"nqn"[..]));
    let mut ns = IdentifyNamespace { flbas: 0x21, ..IdentifyNamespace::default() };
    ns.lbaf[17] = LbaFormat::new(12);
    assert_eq!(ns.block_len(), Some(4096));
    assert_eq!(LbaFormat::new(8).block_len(), None);
    assert_eq!(LbaFormat::new(255).block_len(), None);
}
