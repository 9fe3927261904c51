//! Wire structures of the standards and nothing else: no logic, no I/O, no allocation.
//!
//! Every structure is of the endianness that its standard prescribes, unaligned and without padding, so any byte slice of the right
//! length can be viewed as it with [`zerocopy`]. Its size and the offset of each field stand in its
//! definition, as in the standard's own figure, and are asserted by the compiler.
//!
//! - [`nvme`]: NVM Express Base Specification 2.x and NVM Command Set Specification 1.x.
//! - [`nvmf`]: NVMe over Fabrics: NQNs, Connect, properties, discovery, authentication commands.
//! - [`nvme_tcp`]: NVMe/TCP Transport Specification 1.x: PDUs and their header checks.
//! - [`iscsi`]: iSCSI (RFC 7143): headers of every PDU, text keys, names; big-endian.
//! - [`scsi`]: SCSI (SAM-5, SPC-4/5, SBC-3/4): CDBs, sense data, pages, parameter lists; big-endian.
//! - [`virtio`]: VIRTIO 1.3: the block device, the two layouts of queues.
//!
//! A raw structure says nothing about its values. What has rules of its own has a checked type beside
//! it ([`nvme::sgl::Sgl`], [`nvmf::Nqn`], [`nvme_tcp::CheckedHdr`]), and only that goes further inward.
#![forbid(unsafe_code)]
#![allow(
    missing_debug_implementations,
    reason = "zerocopy's derives add hidden helper types to tuple structs; every type of ours has Debug"
)]

#[macro_use]
mod wire;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod iscsi;
pub mod nvme;
pub mod nvme_tcp;
pub mod nvmf;
pub mod scsi;
pub mod virtio;
