//! Vital product data pages (SPC-4 7.8, SBC-3 6.6).

use penstock_spec::scsi::inquiry::{
    ASSOCIATION_LU, ASSOCIATION_PORT, ASSOCIATION_TARGET, BlockCharacteristics, BlockLimits,
    BlockProvisioning, CODE_SET_ASCII, CODE_SET_BINARY, CODE_SET_UTF8, CopyDescriptorHdr, CopyDescriptorType,
    DESIGNATOR_PIV, DesignatorHdr, DesignatorType, ExtendedInquiry, ModePagePolicy, PERIPHERAL_DISK,
    PROTOCOL_ISCSI, ProvisioningFlags, RodTokenLimits, VpdHdr, VpdPage,
};

use super::inquiry::blank_padded;
use super::table::{TABLE, is_there};
use super::{copy, len8, len16, put, token};
use crate::config::LuConfig;
use crate::lu::LuView;
use crate::sense::{Fault, SENSE_BYTES_MAX, Sense};
use penstock_spec::scsi::opcode::Opcode;

/// The pages that there are, in ascending order.
const PAGES: &[VpdPage] = &[
    VpdPage::SUPPORTED_PAGES,
    VpdPage::UNIT_SERIAL_NUMBER,
    VpdPage::DEVICE_IDENTIFICATION,
    VpdPage::MANAGEMENT_NETWORK_ADDRESSES,
    VpdPage::EXTENDED_INQUIRY,
    VpdPage::MODE_PAGE_POLICY,
    VpdPage::THIRD_PARTY_COPY,
    VpdPage::BLOCK_LIMITS,
    VpdPage::BLOCK_DEVICE_CHARACTERISTICS,
    VpdPage::LOGICAL_BLOCK_PROVISIONING,
];

/// Puts a VPD page into `out`, as seen through the target port with that relative identifier.
pub(crate) fn page(page: VpdPage, lu: &LuView, port: u16, out: &mut Vec<u8>) -> Result<(), Fault> {
    let config = &lu.config;
    match page {
        VpdPage::BLOCK_LIMITS => put(out, &block_limits(config)),
        VpdPage::BLOCK_DEVICE_CHARACTERISTICS => put(out, &characteristics()),
        VpdPage::LOGICAL_BLOCK_PROVISIONING => put(out, &provisioning(config)),
        VpdPage::EXTENDED_INQUIRY => put(out, &extended(config)),
        _ => {
            let mut body = Vec::new();
            match page {
                VpdPage::SUPPORTED_PAGES => body.extend(PAGES.iter().map(|page| page.0)),
                VpdPage::UNIT_SERIAL_NUMBER => body.extend(config.serial.bytes()),
                VpdPage::DEVICE_IDENTIFICATION => identification(lu, port, &mut body),
                VpdPage::MANAGEMENT_NETWORK_ADDRESSES => {}
                VpdPage::MODE_PAGE_POLICY => {
                    put(
                        &mut body,
                        &ModePagePolicy { page: 0x3f, subpage: 0xff, ..ModePagePolicy::default() },
                    );
                }
                VpdPage::THIRD_PARTY_COPY => third_party_copy(config, &mut body),
                _ => return Err(Sense::cdb(2).into()),
            }
            put(out, &hdr(page, body.len()));
            out.extend_from_slice(&body);
        }
    }
    Ok(())
}

fn hdr(page: VpdPage, len: usize) -> VpdHdr {
    VpdHdr { peripheral: PERIPHERAL_DISK, page: page.0, len: len16(len).into() }
}

fn designator(out: &mut Vec<u8>, code_set: u8, designator_type: u8, designator: &[u8]) {
    let hdr =
        DesignatorHdr { code_set, designator_type, len: len8(designator.len()), ..DesignatorHdr::default() };
    put(out, &hdr);
    out.extend_from_slice(designator);
}

/// A SCSI name string: null-terminated, padded with nulls to a multiple of four.
fn name_string(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(251);
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// T10 vendor ID based designator: vendor, then the serial number.
pub(crate) fn t10_designator(config: &LuConfig) -> Vec<u8> {
    let mut vendor = [b' '; 8];
    blank_padded(&config.vendor, &mut vendor);
    let mut bytes = vendor.to_vec();
    bytes.extend(config.serial.bytes().take(200));
    bytes
}

fn identification(lu: &LuView, port: u16, out: &mut Vec<u8>) {
    let config = &lu.config;
    let naa = ASSOCIATION_LU | DesignatorType::NAA.0;
    designator(out, CODE_SET_BINARY, naa, &config.naa());
    let t10 = ASSOCIATION_LU | DesignatorType::T10_VENDOR_ID.0;
    designator(out, CODE_SET_ASCII, t10, &t10_designator(config));
    let [high, low] = port.to_be_bytes();
    let relative = DESIGNATOR_PIV | ASSOCIATION_PORT | DesignatorType::RELATIVE_TARGET_PORT.0;
    designator(out, PROTOCOL_ISCSI | CODE_SET_BINARY, relative, &[0, 0, high, low]);
    if let Some(group) = lu.group_of(port) {
        let [high, low] = group.id.to_be_bytes();
        let group = DESIGNATOR_PIV | ASSOCIATION_PORT | DesignatorType::TARGET_PORT_GROUP.0;
        designator(out, PROTOCOL_ISCSI | CODE_SET_BINARY, group, &[0, 0, high, low]);
    }
    let port_name = name_string(&format!("{},t,0x{port:04x}", config.device_name));
    let name = DESIGNATOR_PIV | ASSOCIATION_PORT | DesignatorType::SCSI_NAME.0;
    designator(out, PROTOCOL_ISCSI | CODE_SET_UTF8, name, &port_name);
    let device = DESIGNATOR_PIV | ASSOCIATION_TARGET | DesignatorType::SCSI_NAME.0;
    designator(out, PROTOCOL_ISCSI | CODE_SET_UTF8, device, &name_string(&config.device_name));
}

fn extended(config: &LuConfig) -> ExtendedInquiry {
    let volatile = config.descriptor.shared().caps().write_cache;
    ExtendedInquiry {
        hdr: hdr(VpdPage::EXTENDED_INQUIRY, 60),
        // HEADSUP, ORDSUP, SIMPSUP.
        task_attributes: 0x07,
        cache: u8::from(volatile),
        luiclr: 0x01,
        sense_len_max: len8(SENSE_BYTES_MAX),
        ..ExtendedInquiry::default()
    }
}

fn block_limits(config: &LuConfig) -> BlockLimits {
    let (info, limits) = (config.info(), &config.limits);
    let granularity = (info.physical_block_bytes / info.block_bytes).max(info.caps.optimal_blocks);
    let transfer_max = config.transfer_blocks_max();
    let mut page = BlockLimits {
        hdr: hdr(VpdPage::BLOCK_LIMITS, 60),
        // WRITE SAME of 0 blocks, "until the end", is refused.
        wsnz: 0x01,
        compare_and_write_max: limits.compare_and_write_blocks_max,
        granularity: u16::try_from(granularity).unwrap_or(1).into(),
        transfer_max: transfer_max.into(),
        transfer_optimal: info.caps.optimal_blocks.min(transfer_max).into(),
        write_same_max: u64::from(limits.write_same_blocks_max).into(),
        ..BlockLimits::default()
    };
    if config.is_thin() {
        page.unmap_lba_max = limits.unmap_blocks_max.into();
        page.unmap_descriptors_max = u32::from(limits.unmap_descriptors_max).into();
        page.unmap_granularity = granularity.into();
    }
    if limits.atomic_blocks_max > 0 {
        page.atomic_max = u32::from(limits.atomic_blocks_max).into();
    }
    page
}

fn characteristics() -> BlockCharacteristics {
    BlockCharacteristics {
        hdr: hdr(VpdPage::BLOCK_DEVICE_CHARACTERISTICS, 60),
        rotation_rate: 1.into(),
        ..BlockCharacteristics::default()
    }
}

fn provisioning(config: &LuConfig) -> BlockProvisioning {
    let thin = config.is_thin();
    BlockProvisioning {
        hdr: hdr(VpdPage::LOGICAL_BLOCK_PROVISIONING, 4),
        flags: ProvisioningFlags::default()
            .with_lbpu(thin)
            .with_lbpws(thin)
            .with_lbpws10(thin)
            .with_lbprz(config.unmapped_reads_zero())
            .0,
        provisioning_type: if thin { 2 } else { 0 },
        ..BlockProvisioning::default()
    }
}

/// Appends a third-party copy descriptor: its body, padded to a multiple of four bytes.
fn copy_descriptor(out: &mut Vec<u8>, kind: CopyDescriptorType, mut body: Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
    put(out, &CopyDescriptorHdr { descriptor_type: kind.0.into(), len: len16(body.len()).into() });
    out.extend_from_slice(&body);
}

fn third_party_copy(config: &LuConfig, out: &mut Vec<u8>) {
    let block_bytes = config.descriptor.shared().block_bytes();
    put(
        out,
        &RodTokenLimits {
            hdr: CopyDescriptorHdr {
                descriptor_type: CopyDescriptorType::BLOCK_DEVICE_ROD_LIMITS.0.into(),
                len: 0x20.into(),
            },
            ranges_max: len16(token::RANGES_MAX).into(),
            inactivity_max_s: token::INACTIVITY_MAX_S.into(),
            inactivity_default_s: token::INACTIVITY_DEFAULT_S.into(),
            transfer_max: (token::TRANSFER_BYTES_MAX / u64::from(block_bytes)).into(),
            transfer_optimal: (token::TRANSFER_BYTES_MAX / u64::from(block_bytes)).into(),
            ..RodTokenLimits::default()
        },
    );
    let mut commands = vec![0];
    for opcode in [Opcode::THIRD_PARTY_COPY_OUT, Opcode::THIRD_PARTY_COPY_IN] {
        let of_opcode = TABLE.iter().filter(|entry| entry.opcode == opcode && is_there(entry, config));
        let actions: Vec<u8> = of_opcode.filter_map(|entry| entry.action).collect();
        commands.extend([opcode.0, len8(actions.len())]);
        commands.extend(actions);
    }
    let len = len8(commands.len() - 1);
    if let Some(first) = commands.first_mut() {
        *first = len;
    }
    copy_descriptor(out, CopyDescriptorType::SUPPORTED_COMMANDS, commands);
    let mut parameters = vec![0; 28];
    put_at(&mut parameters, 4, &len16(copy::CSCDS_MAX).to_be_bytes());
    put_at(&mut parameters, 6, &len16(copy::SEGMENTS_MAX).to_be_bytes());
    put_at(&mut parameters, 8, &copy::DESCRIPTOR_BYTES_MAX.to_be_bytes());
    copy_descriptor(out, CopyDescriptorType::PARAMETER_DATA, parameters);
    let types = vec![
        3,
        penstock_spec::scsi::copy::SEGMENT_BLOCK_TO_BLOCK,
        penstock_spec::scsi::copy::SEGMENT_BLOCK_TO_BLOCK_OFFSET,
        penstock_spec::scsi::copy::CSCD_IDENTIFICATION,
    ];
    copy_descriptor(out, CopyDescriptorType::SUPPORTED_DESCRIPTORS, types);
    copy_descriptor(out, CopyDescriptorType::ROD_TOKEN_FEATURES, token::features());
    copy_descriptor(out, CopyDescriptorType::SUPPORTED_ROD, token::supported_rods());
    let mut general = vec![0; 32];
    put_at(&mut general, 0, &1_u32.to_be_bytes());
    put_at(&mut general, 4, &1_u32.to_be_bytes());
    put_at(&mut general, 8, &copy::SEGMENT_BYTES_MAX.to_be_bytes());
    copy_descriptor(out, CopyDescriptorType::GENERAL_COPY_OPERATIONS, general);
}

fn put_at(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + field.len()) {
        to.copy_from_slice(field);
    }
}
