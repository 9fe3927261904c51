use penstock_spec::nvme::nvm::RwControl;
use penstock_spec::nvme::sgl::SglDescriptor;
use proptest::prelude::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::*;

const NS: NsGeometry = NsGeometry {
    blocks: 1000,
    block_bytes: 512,
    caps: Caps {
        native_ops: Caps::ops(&Op::ALL),
        io_blocks_max: 0,
        boundary_blocks: 0,
        optimal_blocks: 0,
        write_cache: false,
        unmap_zeroes: true,
        late_buffers: false,
    },
};
const LIMITS: IoLimits = IoLimits { data_len_max: 128 << 10, nsid_max: 32, wzsl: WZSL_DEFAULT, dmrsl: 64 };

fn rw(opcode: NvmOpcode, slba: u64, blocks: u32, control: RwControl) -> Sqe {
    let sgl = if matches!(opcode, NvmOpcode::WRITE_ZEROES | NvmOpcode::VERIFY) {
        SglDescriptor::none()
    } else {
        SglDescriptor::transport(blocks * 512)
    };
    let mut cmd = *RwCmd::from_sqe(&Sqe::new(opcode.0, 1).with_sgl(sgl));
    cmd.slba = U64::new(slba);
    cmd.nlb0 = U16::new(u16::try_from(blocks - 1).unwrap());
    cmd.control = U16::new(control.0);
    *cmd.as_sqe()
}

fn check(sqe: &Sqe) -> Result<IoPlan, Status> {
    parse(sqe, Some(&NS), &LIMITS)
}

#[test]
fn a_read_has_its_zero_based_length_and_its_force_unit_access() {
    let sqe = rw(NvmOpcode::READ, 992, 8, RwControl(0).with_fua(true).with_lr(true));
    let sgl = TcpSgl::Transport { len: 4096 };
    let transfer = Transfer::ToHost(sgl);
    let plan = IoPlan::Io { op: Op::Read, flags: IoFlags::FUA, lba: Lba(992), blocks: 8, transfer };
    assert_eq!(check(&sqe), Ok(plan));
}

#[test]
fn a_range_that_ends_beyond_the_namespace_or_the_number_space_is_out_of_range() {
    for slba in [993, 1000, u64::MAX, u64::MAX - 7] {
        for opcode in [
            NvmOpcode::READ,
            NvmOpcode::WRITE,
            NvmOpcode::COMPARE,
            NvmOpcode::WRITE_ZEROES,
            NvmOpcode::VERIFY,
        ] {
            let error = check(&rw(opcode, slba, 8, RwControl(0))).unwrap_err();
            assert_eq!(error, Status::LBA_OUT_OF_RANGE.with_dnr(), "{opcode} {slba}");
        }
    }
}

#[test]
fn more_data_than_mdts_is_an_invalid_field() {
    assert_eq!(check(&rw(NvmOpcode::WRITE, 0, 257, RwControl(0))), Err(INVALID_FIELD));
    assert!(check(&rw(NvmOpcode::WRITE, 0, 256, RwControl(0))).is_ok());
}

#[test]
fn an_sgl_of_another_length_or_kind_is_refused_as_the_standard_says() {
    let mut sqe = rw(NvmOpcode::WRITE, 0, 8, RwControl(0));
    sqe.sgl1 = SglDescriptor::transport(4095);
    assert_eq!(check(&sqe), Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
    sqe.sgl1 = SglDescriptor::transport(8192);
    assert_eq!(check(&sqe), Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
    sqe.sgl1.id = 0x20;
    assert!(check(&sqe).is_err());
    sqe.sgl1 = SglDescriptor::in_capsule(0, 4096);
    assert!(check(&sqe).is_ok());
    sqe.set_psdt(Psdt::Prp);
    assert_eq!(check(&sqe), Err(INVALID_FIELD));
}

#[test]
fn protection_information_and_directives_are_refused() {
    for control in [
        RwControl(0).with_pract(true),
        RwControl(0).with_prchk(1),
        RwControl(0).with_stc(true),
        RwControl(0).with_cetype(1),
        RwControl(0).with_dtype(1),
    ] {
        assert_eq!(check(&rw(NvmOpcode::WRITE, 0, 8, control)), Err(INVALID_FIELD), "{control:?}");
    }
}

#[test]
fn compare_then_write_is_the_one_fused_operation() {
    let fusions = [Fuse::First, Fuse::Second, Fuse::Reserved];
    for opcode in [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::COMPARE, NvmOpcode::WRITE_ZEROES] {
        for fuse in fusions {
            let mut sqe = rw(opcode, 0, 8, RwControl(0));
            sqe.set_fuse(fuse);
            let good = (opcode, fuse) == (NvmOpcode::COMPARE, Fuse::First)
                || (opcode, fuse) == (NvmOpcode::WRITE, Fuse::Second);
            assert_eq!(check(&sqe).is_ok(), good, "{opcode} {fuse:?}");
        }
    }
}

#[test]
fn verify_reads_into_a_buffer_of_its_own_up_to_vsl() {
    let plan = check(&rw(NvmOpcode::VERIFY, 4, 8, RwControl(0))).unwrap();
    let transfer = Transfer::Scratch(4096);
    let read = IoPlan::Io { op: Op::Read, flags: IoFlags::NONE, lba: Lba(4), blocks: 8, transfer };
    assert_eq!(plan, read);
    assert_eq!(check(&rw(NvmOpcode::VERIFY, 0, 257, RwControl(0))), Err(INVALID_FIELD));
    assert_eq!(check(&rw(NvmOpcode::VERIFY, 0, 8, RwControl(0).with_prchk(1))), Err(INVALID_FIELD));
}

fn copy_cmd(sdlba: u64, ranges: u8, change: impl Fn(CopyControl) -> CopyControl, len: u32) -> Sqe {
    let sgl = SglDescriptor::transport(len);
    let mut cmd = *CopyCmd::from_sqe(&Sqe::new(NvmOpcode::COPY.0, 1).with_sgl(sgl));
    cmd.sdlba = U64::new(sdlba);
    cmd.cdw12 = U32::new(change(CopyControl(0).with_nr0(ranges - 1)).0);
    *cmd.as_sqe()
}

#[test]
fn copy_takes_format_0_and_refuses_what_it_does_not_do() {
    let plan = check(&copy_cmd(10, 3, |c| c.with_fua(true), 96)).unwrap();
    assert!(matches!(plan, IoPlan::Copy { ranges: 3, to: Lba(10), flags: IoFlags::FUA, .. }), "{plan:?}");
    assert_eq!(check(&copy_cmd(10, 3, |c| c, 95)), Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
    assert_eq!(check(&copy_cmd(1000, 1, |c| c, 32)), Err(Status::LBA_OUT_OF_RANGE.with_dnr()));
    for format in 1..16 {
        assert_eq!(check(&copy_cmd(0, 1, |c| c.with_desfmt(format), 64)), Err(INVALID_FIELD), "{format}");
    }
    assert_eq!(check(&copy_cmd(0, 1, |c| c.with_prinfor(1), 32)), Err(INVALID_FIELD));
    assert_eq!(check(&copy_cmd(0, 1, |c| c.with_dtype(1), 32)), Err(INVALID_FIELD));
}

#[test]
fn a_bad_source_range_refuses_the_copy_and_is_told_by_its_number() {
    let range = |slba, blocks: u32| CopyRange0 {
        slba: U64::new(slba),
        nlb0: U16::new(u16::try_from(blocks - 1).unwrap()),
        ..CopyRange0::default()
    };
    let check = |ranges: &[CopyRange0], to| {
        let count = u16::try_from(ranges.len()).unwrap();
        check_copy(ranges.as_bytes(), count, Lba(to), &NS).map_err(|fault| (fault.status, fault.range))
    };
    assert_eq!(check(&[range(0, 10), range(20, 10)], 100), Ok(()));
    let out = Status::LBA_OUT_OF_RANGE.with_dnr();
    assert_eq!(check(&[range(0, 10), range(995, 10)], 100), Err((out, 1)));
    assert_eq!(check(&[range(0, 10), range(20, 10)], 985), Err((out, 1)), "the destination ends first");
    let overlap = Status::OVERLAPPING_IO_RANGE.with_dnr();
    assert_eq!(check(&[range(0, 10), range(119, 10)], 100), Err((overlap, 1)));
    assert_eq!(check(&[range(0, 10), range(120, 10)], 100), Ok(()));
    let big = NsGeometry { blocks: 1 << 30, ..NS };
    let most = copy_blocks_max(512);
    assert_eq!(check_copy(range(0, most).as_bytes(), 1, Lba(1 << 20), &big), Ok(()));
    let over = [range(0, most), range(most.into(), 1)];
    let fault = check_copy(over.as_bytes(), 2, Lba(1 << 20), &big).unwrap_err();
    assert_eq!((fault.status, fault.range), (Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(), 1));
    assert!(check_copy(over.as_bytes(), 3, Lba(0), &big).is_err(), "data are missing");
}

#[test]
fn namespaces_that_are_not_there_are_told_apart_as_invalid_and_inactive() {
    let status = |nsid: u32| {
        let mut sqe = rw(NvmOpcode::READ, 0, 8, RwControl(0));
        sqe.nsid = U32::new(nsid);
        parse(&sqe, None, &LIMITS).unwrap_err()
    };
    assert_eq!(status(2), INVALID_FIELD);
    for nsid in [0, 33, NSID_ALL - 1, NSID_ALL] {
        assert_eq!(status(nsid), Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(), "{nsid}");
    }
    let flush = Sqe::new(NvmOpcode::FLUSH.0, NSID_ALL);
    assert_eq!(parse(&flush, None, &LIMITS), Ok(IoPlan::FlushAll));
    assert_eq!(parse(&Sqe::new(NvmOpcode::FLUSH.0, 1), Some(&NS), &LIMITS), Ok(super::flush()));
}

#[test]
fn write_zeroes_keeps_the_blocks_unless_deallocation_is_asked_for() {
    let flags = |control| match check(&rw(NvmOpcode::WRITE_ZEROES, 0, 8, control)) {
        Ok(IoPlan::Io { op: Op::WriteZeroes, flags, transfer: Transfer::None, .. }) => flags,
        other => panic!("{other:?}"),
    };
    assert_eq!(flags(RwControl(0)), IoFlags::KEEP_ALLOCATED);
    assert_eq!(flags(RwControl(0).with_deac(true)), IoFlags::NONE);
    let big = NsGeometry { blocks: 1 << 30, block_bytes: 4096, ..NS };
    let limit = (4096_u32 << WZSL_DEFAULT) / 4096;
    assert!(parse(&rw(NvmOpcode::WRITE_ZEROES, 0, limit, RwControl(0)), Some(&big), &LIMITS).is_ok());
    let over = rw(NvmOpcode::WRITE_ZEROES, 0, limit + 1, RwControl(0));
    assert_eq!(parse(&over, Some(&big), &LIMITS), Err(INVALID_FIELD));
}

fn dsm(ranges: u8, attributes: u32, len: u32) -> Sqe {
    let mut sqe = Sqe::new(NvmOpcode::DATASET_MANAGEMENT.0, 1).with_sgl(SglDescriptor::transport(len));
    sqe.cdw10 = U32::new(u32::from(ranges));
    sqe.cdw11 = U32::new(attributes);
    sqe
}

/// Linux always sends a whole page of ranges, whatever NR says.
#[test]
fn dataset_management_takes_a_page_however_few_ranges_it_has() {
    let plan = |sqe| match check(&sqe) {
        Ok(IoPlan::Dsm { ranges, deallocate, transfer }) => Ok((ranges, deallocate, transfer.len_bytes())),
        Ok(other) => panic!("{other:?}"),
        Err(status) => Err(status),
    };
    assert_eq!(plan(dsm(0, 4, 4096)), Ok((1, true, 4096)));
    assert_eq!(plan(dsm(255, 3, 4096)), Ok((256, false, 4096)));
    assert_eq!(plan(dsm(1, 4, 16)), Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
    assert_eq!(plan(dsm(1, 4, 8192)), Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
    let mut fixed = NS;
    fixed.caps.native_ops = Caps::ops(&[Op::Read, Op::Write]);
    let planned = parse(&dsm(0, 4, 16), Some(&fixed), &LIMITS).unwrap();
    assert!(matches!(planned, IoPlan::Dsm { deallocate: false, .. }));
}

#[test]
fn one_bad_range_refuses_all_of_them() {
    let range =
        |slba, blocks| DsmRange { slba: U64::new(slba), len_blocks: U32::new(blocks), cattr: U32::new(0) };
    let good = [range(0, 10), range(5, 0), range(999, 1)];
    assert_eq!(check_dsm(good.as_bytes(), 3, &NS), Ok(()));
    assert_eq!(dsm_range(good.as_bytes(), 2), Some((Lba(999), 1)));
    let bad = [range(0, 10), range(999, 2)];
    assert_eq!(check_dsm(bad.as_bytes(), 2, &NS), Err(Status::LBA_OUT_OF_RANGE.with_dnr()));
    assert!(check_dsm(bad.as_bytes(), 3, &NS).is_err());
}

#[test]
fn an_opcode_that_identify_does_not_offer_is_invalid() {
    for opcode in 0..=255 {
        let known = check(&Sqe::new(opcode, 1).with_sgl(SglDescriptor::transport(512)));
        let invalid = known == Err(Status::INVALID_OPCODE.with_dnr());
        assert_eq!(invalid, !is_supported(NvmOpcode(opcode)), "{opcode:#x}");
    }
}

proptest! {
    #[test]
    fn any_64_bytes_become_a_plan_within_the_limits_or_an_error(bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform32(any::<u8>())) {
        let sqe = Sqe::read_from_bytes(&[bytes, tail].concat()).unwrap();
        for ns in [Some(&NS), None] {
            match parse(&sqe, ns, &LIMITS) {
                Ok(IoPlan::Io { op, lba, blocks, transfer, .. }) => {
                    prop_assert!(transfer.len_bytes() <= LIMITS.data_len_max);
                    prop_assert!(lba.0 + u64::from(blocks) <= NS.blocks);
                    prop_assert!(op.data_factor() == 0 || transfer.len_bytes() == blocks * 512);
                }
                Ok(IoPlan::Dsm { ranges, transfer, .. }) => {
                    prop_assert!(u32::from(ranges) * 16 <= transfer.len_bytes());
                }
                Ok(IoPlan::Copy { ranges, to, transfer, .. }) => {
                    prop_assert!(u32::from(ranges) * 32 <= transfer.len_bytes() && to.0 < NS.blocks);
                }
                Ok(IoPlan::FlushAll) => {}
                Err(status) => prop_assert!(!status.is_success()),
            }
        }
    }
}
