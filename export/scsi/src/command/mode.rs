//! MODE SENSE and MODE SELECT (SPC-4 6.10 to 6.13).

use penstock_spec::scsi::mode::{
    BlockDescriptor, CACHING_WCE, CONTROL_D_SENSE, CONTROL_GLTSD, CONTROL_SWP, CONTROL_TST_PER_NEXUS,
    CONTROL_UNRESTRICTED_REORDERING, CachingPage, ControlPage, DeviceSpecific, ErrorRecoveryPage,
    ExceptionsPage, LongBlockDescriptor, ModeHdr6, ModeHdr10, ModePage, PageControl, SUBPAGE_ALL,
};
use penstock_spec::scsi::sense::Asc;
use zerocopy::FromBytes;

use super::{len8, len16, put};
use crate::lu::{LuView, ModeValues};
use crate::sense::{Fault, Sense};

/// The pages that there are, in ascending order.
const PAGES: [ModePage; 4] = [
    ModePage::READ_WRITE_ERROR_RECOVERY,
    ModePage::CACHING,
    ModePage::CONTROL,
    ModePage::INFORMATIONAL_EXCEPTIONS,
];

/// What a MODE SENSE asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// The ten-byte header.
    pub(crate) long: bool,
    /// DBD: no block descriptor.
    pub(crate) dbd: bool,
    /// LLBAA: the long block descriptor is fine.
    pub(crate) llbaa: bool,
    /// PC and PAGE CODE.
    pub(crate) page: u8,
    pub(crate) subpage: u8,
}

/// Puts the mode parameters into `out`.
pub(crate) fn sense(asked: Asked, lu: &LuView, out: &mut Vec<u8>) -> Result<(), Fault> {
    let control = PageControl(asked.page >> 6);
    let code = ModePage(asked.page & 0x3f);
    if control == PageControl::SAVED {
        return Err(Sense::illegal(Asc::SAVING_NOT_SUPPORTED).into());
    }
    let all = code == ModePage::ALL_PAGES;
    let subpage_known = asked.subpage == 0 || asked.subpage == SUBPAGE_ALL;
    if !subpage_known || !(all || PAGES.contains(&code)) {
        return Err(Sense::cdb(if subpage_known { 2 } else { 3 }).into());
    }
    let mut pages = Vec::new();
    for page in PAGES.into_iter().filter(|page| all || *page == code) {
        page_bytes(page, control, lu, &mut pages);
    }
    let mut descriptor = Vec::new();
    if !asked.dbd {
        block_descriptor(lu, asked.llbaa, &mut descriptor);
    }
    let read_only = lu.config.is_read_only() || lu.modes.swp;
    let device_specific = DeviceSpecific::default().with_dpofua(true).with_wp(read_only).0;
    if asked.long {
        let len = len16(ModeHdr10::LEN - 2 + descriptor.len() + pages.len());
        let hdr = ModeHdr10 {
            len: len.into(),
            device_specific,
            longlba: u8::from(descriptor.len() == LongBlockDescriptor::LEN),
            block_descriptor_len: len16(descriptor.len()).into(),
            ..ModeHdr10::default()
        };
        put(out, &hdr);
    } else {
        let len = len8(ModeHdr6::LEN - 1 + descriptor.len() + pages.len());
        let block_descriptor_len = len8(descriptor.len());
        put(out, &ModeHdr6 { len, device_specific, block_descriptor_len, ..ModeHdr6::default() });
    }
    out.extend_from_slice(&descriptor);
    out.extend_from_slice(&pages);
    Ok(())
}

fn block_descriptor(lu: &LuView, long: bool, out: &mut Vec<u8>) {
    let info = lu.config.info();
    if long {
        let blocks = info.blocks.into();
        let block_bytes = info.block_bytes.into();
        put(out, &LongBlockDescriptor { blocks, block_bytes, ..LongBlockDescriptor::default() });
    } else {
        let blocks = u32::try_from(info.blocks).unwrap_or(u32::MAX);
        put(out, &BlockDescriptor { blocks: blocks.into(), block_bytes: info.block_bytes.into() });
    }
}

/// Appends one page as PAGE CONTROL wants it: current, changeable or default values.
fn page_bytes(page: ModePage, control: PageControl, lu: &LuView, out: &mut Vec<u8>) {
    let changeable = control == PageControl::CHANGEABLE;
    let values = match control {
        PageControl::CHANGEABLE => ModeValues { d_sense: true, swp: true },
        PageControl::DEFAULT => ModeValues::default(),
        _ => lu.modes,
    };
    match page {
        ModePage::READ_WRITE_ERROR_RECOVERY => {
            // AWRE, ARRE: what is below repairs by itself.
            let flags = if changeable { 0 } else { 0xc0 };
            put(out, &ErrorRecoveryPage { page: page.0, len: 10, flags, ..ErrorRecoveryPage::default() });
        }
        ModePage::CACHING => {
            let volatile = lu.config.descriptor.shared().caps().write_cache;
            let flags = if volatile && !changeable { CACHING_WCE } else { 0 };
            put(out, &CachingPage { page: page.0, len: 18, flags, ..CachingPage::default() });
        }
        ModePage::CONTROL => {
            let mut data = ControlPage { page: page.0, len: 10, ..ControlPage::default() };
            if !changeable {
                // TST 1: each nexus has a task set of its own.
                data.flags2 = CONTROL_TST_PER_NEXUS | CONTROL_GLTSD;
                data.flags3 = CONTROL_UNRESTRICTED_REORDERING;
                data.busy_timeout = 0xffff.into();
            }
            data.flags2 |= if values.d_sense { CONTROL_D_SENSE } else { 0 };
            data.flags4 |= if values.swp { CONTROL_SWP } else { 0 };
            put(out, &data);
        }
        _ => {
            // DEXCPT: there are no informational exceptions.
            let flags = if changeable { 0 } else { 0x08 };
            put(out, &ExceptionsPage { page: page.0, len: 10, flags, ..ExceptionsPage::default() });
        }
    }
}

/// Reads a MODE SELECT parameter list: what the changeable values are from now on.
pub(crate) fn select(list: &[u8], long: bool, lu: &LuView) -> Result<ModeValues, Fault> {
    let mut values = lu.modes;
    if list.is_empty() {
        return Ok(values);
    }
    let truncated = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let (hdr_len, descriptor_len, long_lba) = if long {
        let (hdr, _) = ModeHdr10::ref_from_prefix(list).map_err(|_| truncated)?;
        (ModeHdr10::LEN, usize::from(hdr.block_descriptor_len.get()), hdr.longlba & 1 != 0)
    } else {
        let (hdr, _) = ModeHdr6::ref_from_prefix(list).map_err(|_| truncated)?;
        (ModeHdr6::LEN, usize::from(hdr.block_descriptor_len), false)
    };
    let descriptor = list.get(hdr_len..hdr_len + descriptor_len).ok_or(truncated)?;
    check_descriptor(descriptor, long_lba, lu).map_err(|()| Sense::list(len16(hdr_len)))?;
    let mut at = hdr_len + descriptor_len;
    while let Some([code, len]) = list.get(at..at + 2) {
        let page = ModePage(code & 0x3f);
        let bytes = list.get(at..at + 2 + usize::from(*len)).ok_or(truncated)?;
        if code & 0x40 != 0 || !PAGES.contains(&page) {
            return Err(Sense::list(len16(at)).into());
        }
        check_page(page, bytes, lu).map_err(|offset| Sense::list(len16(at + offset)))?;
        if let (ModePage::CONTROL, Ok(control)) = (page, ControlPage::ref_from_bytes(bytes)) {
            values.d_sense = control.flags2 & CONTROL_D_SENSE != 0;
            values.swp = control.flags4 & CONTROL_SWP != 0;
        }
        at += bytes.len();
    }
    if at == list.len() { Ok(values) } else { Err(truncated.into()) }
}

/// A block descriptor may say what is anyway, or nothing (0).
fn check_descriptor(descriptor: &[u8], long_lba: bool, lu: &LuView) -> Result<(), ()> {
    let info = lu.config.info();
    let (blocks, block_bytes) = if descriptor.is_empty() {
        return Ok(());
    } else if long_lba {
        let fields = LongBlockDescriptor::ref_from_bytes(descriptor).map_err(|_| ())?;
        (fields.blocks.get(), fields.block_bytes.get())
    } else {
        let fields = BlockDescriptor::ref_from_bytes(descriptor).map_err(|_| ())?;
        (u64::from(fields.blocks.get()), fields.block_bytes.get() & 0x00ff_ffff)
    };
    let blocks_fit = blocks == 0 || blocks == info.blocks || (!long_lba && blocks == u64::from(u32::MAX));
    if blocks_fit && (block_bytes == 0 || block_bytes == info.block_bytes) { Ok(()) } else { Err(()) }
}

/// A page may differ from the current one in changeable bits only; `Err` says where else it does.
fn check_page(page: ModePage, bytes: &[u8], lu: &LuView) -> Result<(), usize> {
    let (mut current, mut mask) = (Vec::new(), Vec::new());
    page_bytes(page, PageControl::CURRENT, lu, &mut current);
    page_bytes(page, PageControl::CHANGEABLE, lu, &mut mask);
    if bytes.len() != current.len() {
        return Err(1);
    }
    let fields = bytes.iter().zip(current.iter().zip(&mask)).enumerate().skip(2);
    for (offset, (new, (old, changeable))) in fields {
        if (new ^ old) & !changeable != 0 {
            return Err(offset);
        }
    }
    Ok(())
}
