//! INQUIRY without VPD (SPC-4 6.6.2).

use penstock_spec::scsi::cdb;
use penstock_spec::scsi::inquiry::{
    FORMAT_HISUP_2, InquiryFlags5, PERIPHERAL_DISK, PERIPHERAL_NONE, StandardInquiry, VERSION_SPC4,
    VersionDescriptor, VpdPage,
};

use super::{put, vpd};
use crate::lu::LuView;
use crate::sense::{Fault, Sense};

/// Puts the data of an INQUIRY into `out`. `lu` is `None` for a LUN without logical unit.
pub(crate) fn inquiry(
    cdb: &cdb::Inquiry,
    lu: Option<&LuView>,
    port: u16,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    if cdb.evpd & 0x01 != 0 {
        let lu = lu.ok_or(Sense::cdb(2))?;
        return vpd::page(VpdPage(cdb.page), lu, port, out);
    }
    if cdb.page != 0 || cdb.evpd != 0 {
        return Err(Sense::cdb(if cdb.page == 0 { 1 } else { 2 }).into());
    }
    put(out, &standard(lu));
    Ok(())
}

fn standard(lu: Option<&LuView>) -> StandardInquiry {
    let mut data = StandardInquiry {
        peripheral: PERIPHERAL_NONE,
        version: VERSION_SPC4,
        format: FORMAT_HISUP_2,
        additional_len: 91,
        vendor: *b"PENSTOCK",
        product: [b' '; 16],
        revision: [b' '; 4],
        flags7: 0x02,
        ..StandardInquiry::default()
    };
    let Some(lu) = lu else { return data };
    let config = &lu.config;
    data.peripheral = PERIPHERAL_DISK;
    data.rmb = if config.removable { 0x80 } else { 0 };
    data.flags5 = InquiryFlags5::default().with_three_pc(true).with_tpgs(3).0;
    let ports: usize = lu.groups.iter().map(|group| group.ports.len()).sum();
    data.flags6 = if ports > 1 { 0x10 } else { 0 };
    blank_padded(&config.vendor, &mut data.vendor);
    blank_padded(&config.product, &mut data.product);
    blank_padded(&config.revision, &mut data.revision);
    let claimed =
        [VersionDescriptor::SAM5, VersionDescriptor::ISCSI, VersionDescriptor::SPC4, VersionDescriptor::SBC3];
    for (to, descriptor) in data.versions.iter_mut().zip(claimed) {
        to.set(descriptor.0);
    }
    data
}

/// Puts `text` left-aligned into `field`, blanks after it; anything but printable ASCII becomes a blank.
pub(crate) fn blank_padded(text: &str, field: &mut [u8]) {
    let printable = text.bytes().map(|byte| if (0x20..=0x7e).contains(&byte) { byte } else { b' ' });
    for (to, from) in field.iter_mut().zip(printable.chain(std::iter::repeat(b' '))) {
        *to = from;
    }
}
