//! iSCSI names (RFC 7143, 4.2.7; RFC 3721).

use core::fmt;
use core::str::FromStr;

/// Bytes of a name at most (RFC 7143, 4.2.7.2).
pub const NAME_LEN_MAX: usize = 223;

/// Why a name is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than 223 bytes.
    #[error("an iSCSI name has 1 to {NAME_LEN_MAX} bytes, not {0}")]
    Len(usize),
    /// Neither `iqn.`, `eui.` nor `naa.`.
    #[error("an iSCSI name begins with iqn., eui. or naa.")]
    Type,
    /// A byte that names do not have.
    #[error(
        "byte {byte:#04x} at offset {at} is not allowed in an iSCSI name: use a-z, 0-9, '-', '.' and ':'"
    )]
    Byte {
        /// Which byte.
        byte: u8,
        /// Where.
        at: usize,
    },
    /// An `iqn.` name without date and naming authority.
    #[error("an iqn. name goes on with yyyy-mm.naming-authority, as iqn.2026-11.com.example:disk")]
    Iqn,
    /// An `eui.` or `naa.` name without its hexadecimal digits.
    #[error("an eui. name goes on with 16 hexadecimal digits, a naa. name with 16 or 32")]
    Digits,
}

/// An iSCSI name in its normal form: ASCII, lower case. (Names with other letters must be normalized by stringprep
/// before they come here; letters of ASCII are made small, as RFC 3722 does.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IscsiName {
    bytes: [u8; NAME_LEN_MAX],
    len: u8,
}

impl IscsiName {
    /// Checks a name as it came and makes it small.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        let mut name = Self { bytes: [0; NAME_LEN_MAX], len: 0 };
        let len = bytes.len();
        name.len = u8::try_from(len).ok().filter(|len| *len > 0).ok_or(NameError::Len(len))?;
        let to = name.bytes.get_mut(..len).ok_or(NameError::Len(len))?;
        for ((to, byte), at) in to.iter_mut().zip(bytes).zip(0..) {
            let small = byte.to_ascii_lowercase();
            // Names in UTF-8 are let pass as they are: initiators exist whose names are not ASCII.
            let fine =
                small.is_ascii_lowercase() || small.is_ascii_digit() || matches!(small, b'-' | b'.' | b':');
            if !fine && small < 0x80 {
                return Err(NameError::Byte { byte: *byte, at });
            }
            *to = small;
        }
        if core::str::from_utf8(name.as_bytes()).is_err() {
            let at = bytes.iter().position(|byte| *byte >= 0x80).unwrap_or(0);
            return Err(NameError::Byte { byte: bytes.get(at).copied().unwrap_or(0), at });
        }
        name.check_type()?;
        Ok(name)
    }

    fn check_type(&self) -> Result<(), NameError> {
        let bytes = self.as_bytes();
        let (kind, rest) = bytes.split_at_checked(4).ok_or(NameError::Type)?;
        let hex = |lens: &[usize]| lens.contains(&rest.len()) && rest.iter().all(u8::is_ascii_hexdigit);
        match kind {
            b"iqn." => {
                let (date, authority) = rest.split_at_checked(8).ok_or(NameError::Iqn)?;
                let dated = date.iter().zip(b"0000-00.").all(|(byte, form)| match form {
                    b'0' => byte.is_ascii_digit(),
                    other => byte == other,
                });
                if dated && !authority.is_empty() { Ok(()) } else { Err(NameError::Iqn) }
            }
            b"eui." if hex(&[16]) => Ok(()),
            b"naa." if hex(&[16, 32]) => Ok(()),
            b"eui." | b"naa." => Err(NameError::Digits),
            _ => Err(NameError::Type),
        }
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IscsiName({self})")
    }
}

impl FromStr for IscsiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_types_of_names_are_known_and_made_small() {
        for good in ["iqn.2026-11.io.penstock:vdisk0", "eui.0123456789abcdef", "naa.52004567ba64678d"] {
            assert_eq!(good.parse::<IscsiName>().unwrap().as_str(), good);
        }
        assert_eq!("IQN.2026-11.Io:X".parse::<IscsiName>().unwrap().as_str(), "iqn.2026-11.io:x");
        assert_eq!("iqn.26-11.io".parse::<IscsiName>(), Err(NameError::Iqn));
        assert_eq!("iqn.2026-11.".parse::<IscsiName>(), Err(NameError::Iqn));
        assert_eq!("eui.0123".parse::<IscsiName>(), Err(NameError::Digits));
        assert_eq!("disk".parse::<IscsiName>(), Err(NameError::Type));
        assert_eq!("".parse::<IscsiName>(), Err(NameError::Len(0)));
        assert_eq!("iqn.2026-11.a b".parse::<IscsiName>(), Err(NameError::Byte { byte: b' ', at: 13 }));
        assert!(IscsiName::parse(&[b'a'; 224]).is_err());
        assert!(IscsiName::parse(b"iqn.2026-11.io:\xff").is_err());
    }
}
