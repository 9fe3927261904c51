//! Goal: every rule of the common header refuses with the FES and FEI that the standard asks for, and
//! whatever is taken keeps the arithmetic that readers rely on.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;

const CONTROLLER: RxRules = RxRules {
    receiver: Receiver::Controller,
    initialized: true,
    hdgst: false,
    ddgst: false,
    pda: 0,
    in_capsule_max: 8192,
    data_max: 131_072,
};
const HOST: RxRules = RxRules { receiver: Receiver::Host, ..CONTROLLER };

fn refused(ch: CommonHdr, rules: &RxRules) -> (Fes, u32) {
    let error = CheckedHdr::parse(&ch, rules).unwrap_err();
    (error.fes(), error.fei())
}

fn hdr(ty: PduType, flags: u8, pdo: u8, plen: u32) -> CommonHdr {
    CommonHdr::new(ty, flags, ty.hlen(), pdo, plen)
}

#[test]
fn a_type_that_goes_the_other_way_is_an_invalid_field_at_offset_0() {
    for ty in [PduType::IC_RESP, PduType::R2T, PduType::C2H_DATA, PduType(0x08), PduType(0xff)] {
        assert_eq!(refused(hdr(ty, 0, 0, 24), &CONTROLLER), (Fes::INVALID_PDU_HEADER_FIELD, 0));
    }
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 0, 72), &HOST), (Fes::INVALID_PDU_HEADER_FIELD, 0));
}

#[test]
fn commands_before_and_a_second_icreq_after_initialization_are_sequence_errors() {
    let first = RxRules::before_init(Receiver::Controller);
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 0, 72), &first), (Fes::PDU_SEQUENCE_ERROR, 0));
    assert_eq!(refused(hdr(PduType::IC_REQ, 0, 0, 128), &CONTROLLER), (Fes::PDU_SEQUENCE_ERROR, 0));
    assert!(CheckedHdr::parse(&hdr(PduType::IC_REQ, 0, 0, 128), &first).is_ok());
    assert!(CheckedHdr::parse(&hdr(PduType::H2C_TERM_REQ, 0, 0, 152), &first).is_ok());
}

#[test]
fn lengths_and_offsets_are_refused_at_their_own_field() {
    let invalid = Fes::INVALID_PDU_HEADER_FIELD;
    let mut wrong_hlen = hdr(PduType::CAPSULE_CMD, 0, 0, 72);
    wrong_hlen.hlen = 71;
    assert_eq!(refused(wrong_hlen, &CONTROLLER), (invalid, 2));
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 0, 71), &CONTROLLER), (invalid, 4));
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 71, 80), &CONTROLLER), (invalid, 3));
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 74, 80), &CONTROLLER), (invalid, 3));
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 72, 72 + 8193), &CONTROLLER), (invalid, 4));
    assert_eq!(refused(hdr(PduType::H2C_DATA, 0, 24, 24), &CONTROLLER), (invalid, 4));
    assert_eq!(refused(hdr(PduType::H2C_TERM_REQ, 0, 0, 153), &CONTROLLER), (invalid, 4));
    let beyond = hdr(PduType::H2C_DATA, 0, 24, 24 + 131_073);
    assert_eq!(refused(beyond, &CONTROLLER), (Fes::LIMIT_EXCEEDED, 0));
}

#[test]
fn digest_flags_must_be_as_negotiated() {
    let digests = RxRules { hdgst: true, ddgst: true, ..CONTROLLER };
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 0, 0, 76), &digests), (Fes::INVALID_PDU_HEADER_FIELD, 1));
    assert_eq!(refused(hdr(PduType::CAPSULE_CMD, 1, 0, 76), &CONTROLLER), (Fes::INVALID_PDU_HEADER_FIELD, 1));
    assert_eq!(refused(hdr(PduType::H2C_DATA, 1, 28, 40), &digests), (Fes::INVALID_PDU_HEADER_FIELD, 1));
    let data = CheckedHdr::parse(&hdr(PduType::H2C_DATA, 3, 28, 28 + 8 + 4), &digests).unwrap();
    assert_eq!((data.data_off, data.data_len, data.ddgst_len), (28, 8, 4));
    let plain = CheckedHdr::parse(&hdr(PduType::CAPSULE_CMD, 1, 0, 76), &digests).unwrap();
    assert_eq!((plain.data_len, plain.ddgst_len), (0, 0));
}

#[test]
fn success_without_last_is_refused() {
    let ch = hdr(PduType::C2H_DATA, PduFlags::SUCCESS, 24, 28);
    assert_eq!(refused(ch, &HOST), (Fes::INVALID_PDU_HEADER_FIELD, 1));
}

fn rules() -> impl Strategy<Value = RxRules> {
    let sizes = (0_u8..=31, any::<u32>(), any::<u32>());
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), sizes).prop_map(
        |(host, initialized, hdgst, ddgst, (pda, in_capsule_max, data_max))| RxRules {
            receiver: if host { Receiver::Host } else { Receiver::Controller },
            initialized,
            hdgst,
            ddgst,
            pda,
            in_capsule_max,
            data_max,
        },
    )
}

proptest! {
    #[test]
    fn any_eight_bytes_are_refused_or_add_up(
        mut bytes: [u8; 8], ty in 0_u8..12, sane_hlen: bool, short: bool, rules in rules()
    ) {
        bytes[0] = ty;
        if sane_hlen { bytes[2] = PduType(ty).hlen(); }
        if short { bytes[5] &= 1; bytes[6] = 0; bytes[7] = 0; }
        let ch = CommonHdr::read_from_bytes(&bytes).unwrap();
        match CheckedHdr::parse(&ch, &rules) {
            Ok(hdr) => {
                prop_assert!(u32::from(hdr.psh_end()) <= hdr.data_off);
                let sum = u64::from(hdr.data_off) + u64::from(hdr.data_len) + u64::from(hdr.ddgst_len);
                prop_assert_eq!(sum, u64::from(hdr.plen));
                if hdr.pdu_type == PduType::CAPSULE_CMD {
                    prop_assert!(hdr.data_len <= rules.in_capsule_max);
                } else if hdr.pdu_type.has_data() {
                    prop_assert!(hdr.data_len <= rules.data_max && hdr.data_len > 0);
                }
            }
            Err(error) => prop_assert!(error.fei() < 8 && error.fes().name().is_some()),
        }
    }
}
