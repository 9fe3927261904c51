//! What a logical unit is: identity, limits, ports. Plain data that the control side makes and cores read.

use penstock_bdev::{BdevInfo, Descriptor, Op, OpenMode};
use penstock_spec::scsi::report::AccessState;
use uuid::Uuid;

/// Names a logical unit within the process. One logical unit may appear as several LUNs and in several targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LuId(pub u64);

/// A target port group and its state (SPC-4 5.15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGroup {
    /// TARGET PORT GROUP.
    pub id: u16,
    /// Its asymmetric access state.
    pub state: AccessState,
    /// Whether it is the preferred one.
    pub preferred: bool,
    /// RELATIVE TARGET PORT IDENTIFIERs of its ports.
    pub ports: Vec<u16>,
}

/// How much one command may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that one command moves at most; a transport has buffers for so many.
    pub transfer_bytes_max: u32,
    /// Blocks of one COMPARE AND WRITE at most.
    pub compare_and_write_blocks_max: u8,
    /// Blocks of one WRITE SAME at most.
    pub write_same_blocks_max: u32,
    /// Blocks of one UNMAP at most.
    pub unmap_blocks_max: u32,
    /// Descriptors of one UNMAP at most.
    pub unmap_descriptors_max: u16,
    /// Blocks that the bdev writes all or not at all, whatever happens; 0: it does not promise that, and there is no
    /// WRITE ATOMIC.
    pub atomic_blocks_max: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfer_bytes_max: 16 << 20,
            compare_and_write_blocks_max: 255,
            write_same_blocks_max: 32 << 10,
            unmap_blocks_max: 1 << 20,
            unmap_descriptors_max: 256,
            atomic_blocks_max: 0,
        }
    }
}

/// A logical unit, fixed when it is made.
#[derive(Debug, Clone)]
pub struct LuConfig {
    /// Which.
    pub id: LuId,
    /// The disk.
    pub descriptor: Descriptor,
    /// T10 VENDOR IDENTIFICATION, up to 8 ASCII characters.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION, up to 16 ASCII characters.
    pub product: String,
    /// PRODUCT REVISION LEVEL, up to 4 ASCII characters.
    pub revision: String,
    /// PRODUCT SERIAL NUMBER, ASCII.
    pub serial: String,
    /// Name of the target device: its iSCSI name.
    pub device_name: String,
    /// Refuse writes whatever the bdev would say.
    pub read_only: bool,
    /// RMB: the medium can be ejected and loaded by START STOP UNIT.
    pub removable: bool,
    /// How much one command may ask for.
    pub limits: Limits,
    /// Target port groups at the beginning. Every port is in one of them.
    pub groups: Vec<PortGroup>,
}

impl LuConfig {
    /// A disk with the usual identity: the bdev's UUID is its serial number; one port, 1, in one group, 1.
    #[must_use]
    pub fn new(id: LuId, descriptor: Descriptor, device_name: &str) -> Self {
        let serial = descriptor.shared().uuid().simple().to_string();
        Self {
            id,
            descriptor,
            vendor: "PENSTOCK".to_owned(),
            product: "Virtual Disk".to_owned(),
            revision: "0001".to_owned(),
            serial,
            device_name: device_name.to_owned(),
            read_only: false,
            removable: false,
            limits: Limits::default(),
            groups: vec![PortGroup {
                id: 1,
                state: AccessState::ACTIVE_OPTIMIZED,
                preferred: false,
                ports: vec![1],
            }],
        }
    }

    /// Geometry as of now.
    #[must_use]
    pub fn info(&self) -> BdevInfo {
        self.descriptor.shared().info()
    }

    /// Whether blocks can be unmapped.
    #[must_use]
    pub fn is_thin(&self) -> bool {
        self.descriptor.shared().caps().has(Op::Unmap)
    }

    /// Whether unmapped blocks read as zeroes.
    #[must_use]
    pub fn unmapped_reads_zero(&self) -> bool {
        self.is_thin() && self.descriptor.shared().caps().unmap_zeroes
    }

    /// Whether nobody may write.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.descriptor.mode() == OpenMode::ReadOnly
    }

    /// Blocks that one command moves at most.
    #[must_use]
    pub fn transfer_blocks_max(&self) -> u32 {
        self.limits.transfer_bytes_max / self.descriptor.shared().block_bytes()
    }

    /// NAA locally assigned identifier (SPC-4 7.8.6.6.4): 60 bits of the bdev's UUID, the same on every node.
    #[must_use]
    pub fn naa(&self) -> [u8; 8] {
        naa_of(self.descriptor.shared().uuid())
    }
}

/// Folds a UUID into NAA 3h and 60 bits.
fn naa_of(uuid: Uuid) -> [u8; 8] {
    let (high, low) = uuid.as_u64_pair();
    let folded = (low ^ high.rotate_left(17)) & (u64::MAX >> 4);
    (0x3 << 60 | folded).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_naa_is_of_the_uuid_and_locally_assigned() {
        let (a, b) = (naa_of(Uuid::from_u128(1)), naa_of(Uuid::from_u128(2)));
        assert_ne!(a, b);
        assert_eq!((a[0] >> 4, b[0] >> 4), (3, 3));
        assert_eq!(a, naa_of(Uuid::from_u128(1)));
    }
}
