//! Sense data: what went wrong, and its two encodings (SPC-4 4.5).

use penstock_spec::scsi::sense::{
    Asc, DescriptorSense, FixedSense, InformationDescriptor, KeySpecificDescriptor,
    RESPONSE_DESCRIPTOR_CURRENT, RESPONSE_FIXED_CURRENT, SKS_CD, SKSV, SenseKey, Status,
};
use zerocopy::{FromBytes, IntoBytes};

/// The longest sense data that a device server here returns.
pub const SENSE_BYTES_MAX: usize = 32;

/// The sense key specific bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specific {
    /// The offending byte of the CDB.
    Cdb(u16),
    /// The offending byte of the parameter list.
    Data(u16),
    /// How far an operation has got, of 65536.
    Progress(u16),
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// SENSE KEY.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE and qualifier.
    pub asc: Asc,
    /// INFORMATION.
    pub information: Option<u64>,
    /// SENSE KEY SPECIFIC.
    pub specific: Option<Specific>,
}

impl Sense {
    /// Sense without further information.
    #[must_use]
    pub const fn new(key: SenseKey, asc: Asc) -> Self {
        Self { key, asc, information: None, specific: None }
    }

    /// ILLEGAL REQUEST.
    #[must_use]
    pub const fn illegal(asc: Asc) -> Self {
        Self::new(SenseKey::ILLEGAL_REQUEST, asc)
    }

    /// INVALID FIELD IN CDB at `byte`.
    #[must_use]
    pub const fn cdb(byte: u16) -> Self {
        let mut sense = Self::illegal(Asc::INVALID_FIELD_IN_CDB);
        sense.specific = Some(Specific::Cdb(byte));
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST at `byte`.
    #[must_use]
    pub const fn list(byte: u16) -> Self {
        let mut sense = Self::illegal(Asc::INVALID_FIELD_IN_PARAMETER_LIST);
        sense.specific = Some(Specific::Data(byte));
        sense
    }

    /// NOT READY.
    #[must_use]
    pub const fn not_ready(asc: Asc) -> Self {
        Self::new(SenseKey::NOT_READY, asc)
    }

    /// UNIT ATTENTION.
    #[must_use]
    pub const fn attention(asc: Asc) -> Self {
        Self::new(SenseKey::UNIT_ATTENTION, asc)
    }

    /// With INFORMATION.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The bytes, in descriptor format or in fixed format. Fixed format has no room for INFORMATION beyond 32 bits and
    /// leaves it out (VALID clear) then.
    #[must_use]
    pub fn encode(&self, descriptor: bool) -> SenseBytes {
        if descriptor { self.encode_descriptor() } else { self.encode_fixed() }
    }

    fn specific_bytes(&self) -> Option<(u8, u16)> {
        Some(match self.specific? {
            Specific::Cdb(byte) => (SKSV | SKS_CD, byte),
            Specific::Data(byte) => (SKSV, byte),
            Specific::Progress(done) => (SKSV, done),
        })
    }

    fn encode_fixed(&self) -> SenseBytes {
        let mut fixed = FixedSense {
            response_code: RESPONSE_FIXED_CURRENT,
            sense_key: self.key.0,
            additional_len: 10,
            asc: self.asc.0.into(),
            ..FixedSense::default()
        };
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            fixed.response_code |= 0x80;
            fixed.information = information.into();
        }
        if let Some((sks, value)) = self.specific_bytes() {
            fixed.sks = sks;
            fixed.sks_value = value.into();
        }
        let mut bytes = SenseBytes::EMPTY;
        bytes.push(fixed.as_bytes());
        bytes
    }

    fn encode_descriptor(&self) -> SenseBytes {
        let mut hdr = DescriptorSense {
            response_code: RESPONSE_DESCRIPTOR_CURRENT,
            sense_key: self.key.0,
            asc: self.asc.0.into(),
            ..DescriptorSense::default()
        };
        let information = self.information.map(|value| InformationDescriptor {
            descriptor_type: 0x00,
            additional_len: 0x0a,
            valid: 0x80,
            information: value.into(),
            ..InformationDescriptor::default()
        });
        let specific = self.specific_bytes().map(|(sks, value)| KeySpecificDescriptor {
            descriptor_type: 0x02,
            additional_len: 0x06,
            sks,
            sks_value: value.into(),
            ..KeySpecificDescriptor::default()
        });
        hdr.additional_len =
            if information.is_some() { 12 } else { 0 } + if specific.is_some() { 8 } else { 0 };
        let mut bytes = SenseBytes::EMPTY;
        bytes.push(hdr.as_bytes());
        if let Some(descriptor) = information {
            bytes.push(descriptor.as_bytes());
        }
        if let Some(descriptor) = specific {
            bytes.push(descriptor.as_bytes());
        }
        bytes
    }

    /// Key and additional sense code of sense data in either format; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(SenseKey, Asc)> {
        match bytes.first()? & 0x7f {
            RESPONSE_FIXED_CURRENT => {
                let (fixed, _) = FixedSense::read_from_prefix(bytes).ok()?;
                Some((SenseKey(fixed.sense_key & 0x0f), Asc(fixed.asc.get())))
            }
            RESPONSE_DESCRIPTOR_CURRENT => {
                let (hdr, _) = DescriptorSense::read_from_prefix(bytes).ok()?;
                Some((SenseKey(hdr.sense_key & 0x0f), Asc(hdr.asc.get())))
            }
            _ => None,
        }
    }
}

/// Encoded sense data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenseBytes {
    len: u8,
    bytes: [u8; SENSE_BYTES_MAX],
}

impl SenseBytes {
    /// None.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; SENSE_BYTES_MAX] };

    fn push(&mut self, more: &[u8]) {
        let at = usize::from(self.len);
        if let Some(to) = self.bytes.get_mut(at..at + more.len()) {
            to.copy_from_slice(more);
            self.len += u8::try_from(more.len()).unwrap_or(0);
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// A command that ends without being done: its status, and sense data with CHECK CONDITION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Any status but GOOD.
    pub status: Status,
    /// With CHECK CONDITION.
    pub sense: Option<Sense>,
}

impl Fault {
    /// RESERVATION CONFLICT.
    pub const CONFLICT: Self = Self { status: Status::RESERVATION_CONFLICT, sense: None };
    /// BUSY.
    pub const BUSY: Self = Self { status: Status::BUSY, sense: None };
}

impl From<Sense> for Fault {
    fn from(sense: Sense) -> Self {
        Self { status: Status::CHECK_CONDITION, sense: Some(sense) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_sense_is_18_bytes_with_the_field_pointer() {
        let bytes = Sense::cdb(2).encode(false);
        let expected = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 0, 2];
        assert_eq!(bytes.as_slice(), expected);
    }

    #[test]
    fn fixed_sense_carries_information_of_32_bits_only() {
        let sense = Sense::new(SenseKey::MISCOMPARE, Asc::MISCOMPARE_DURING_VERIFY);
        let bytes = sense.with_information(0x1234).encode(false);
        assert_eq!(&bytes.as_slice()[..7], [0xf0, 0, 0xe, 0, 0, 0x12, 0x34]);
        let bytes = sense.with_information(1 << 32).encode(false);
        assert_eq!(&bytes.as_slice()[..7], [0x70, 0, 0xe, 0, 0, 0, 0]);
    }

    #[test]
    fn descriptor_sense_has_a_descriptor_for_each_piece() {
        let mut sense = Sense::list(4).with_information(1 << 40);
        let bytes = sense.encode(true);
        let expected = [
            0x72, 5, 0x26, 0, 0, 0, 0, 20, 0, 10, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 6, 0, 0, 0x80, 0, 4, 0,
        ];
        assert_eq!(bytes.as_slice(), expected);
        sense.information = None;
        sense.specific = None;
        assert_eq!(sense.encode(true).as_slice(), [0x72, 5, 0x26, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn both_formats_decode_to_what_was_encoded() {
        for asc in Asc::ALL {
            for descriptor in [false, true] {
                let bytes = Sense::illegal(*asc).with_information(7).encode(descriptor);
                assert_eq!(Sense::decode(bytes.as_slice()), Some((SenseKey::ILLEGAL_REQUEST, *asc)));
            }
        }
        assert_eq!(Sense::decode(&[]), None);
        assert_eq!(Sense::decode(&[0x70, 0]), None);
    }
}
