//! NVMe Qualified Names (Base 4.7 "NVMe Qualified Names").
//!
//! `nqn.yyyy-mm.reverse.domain[:string]`, or `nqn.2014-08.org.nvmexpress:uuid:<uuid>`; UTF-8, at most 223 bytes.

use core::fmt;
use core::str::FromStr;

/// The most bytes in an NQN (Base 4.7: 223, terminator not included).
pub const NQN_LEN_MAX: usize = 223;

/// Length of the field that holds an NQN in wire structures; what the name does not use is zero.
pub const NQN_FIELD_LEN: usize = 256;

/// NQN of the discovery service that every discovery subsystem answers to (Base 3.1.3.3).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// What the UUID form of an NQN begins with.
pub const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// A checked NQN, kept inline: copying it allocates nothing.
#[derive(Clone, Copy)]
pub struct Nqn {
    len: u8,
    bytes: [u8; NQN_LEN_MAX],
}

const _: () = assert!(size_of::<Nqn>() == 224);
const _: () = assert!(NQN_LEN_MAX <= u8::MAX as usize);

/// Why a name is not an NQN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NqnError {
    /// Longer than [`NQN_LEN_MAX`], or nothing ends it in its field.
    #[error("the NQN has {len} bytes, and 223 are the most: shorten it")]
    TooLong {
        /// Length, in bytes.
        len: usize,
    },
    /// Bytes after the name's end are not zero.
    #[error("the NQN field has bytes after the terminating zero: it must be padded with zeroes")]
    NotPadded,
    /// Not UTF-8.
    #[error("the NQN is not UTF-8")]
    NotUtf8,
    /// Does not begin `nqn.yyyy-mm.` with a month of 01 to 12.
    #[error("the NQN does not begin with \"nqn.yyyy-mm.\": use a date when the domain was yours")]
    Date,
    /// The domain is empty or has a character or label that no domain has.
    #[error("the NQN has no valid reverse domain name after its date")]
    Domain,
    /// A colon with nothing after it, or a control character in the part after the colon.
    #[error("the part of the NQN after the colon is empty or has control characters")]
    Name,
    /// The UUID form without a valid UUID.
    #[error("the NQN has the form \"nqn.2014-08.org.nvmexpress:uuid:\" without a valid UUID after it")]
    Uuid,
}

impl Nqn {
    /// The discovery service's well-known name.
    #[must_use]
    pub fn discovery() -> Self {
        Self::copy_of(DISCOVERY_NQN.as_bytes())
    }

    /// Checks a name without padding or terminator.
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn parse(name: &[u8]) -> Result<Self, NqnError> {
        if name.len() > NQN_LEN_MAX {
            return Err(NqnError::TooLong { len: name.len() });
        }
        let text = core::str::from_utf8(name).map_err(|_| NqnError::NotUtf8)?;
        check_form(text)?;
        Ok(Self::copy_of(name))
    }

    /// Checks a name in a 256-byte field: terminated by a zero and padded with zeroes.
    ///
    /// # Errors
    /// The first rule that the field breaks.
    pub fn from_field(field: &[u8; NQN_FIELD_LEN]) -> Result<Self, NqnError> {
        let len = field.iter().position(|b| *b == 0).unwrap_or(NQN_FIELD_LEN);
        let (name, padding) = field.split_at_checked(len).ok_or(NqnError::TooLong { len })?;
        if padding.iter().any(|b| *b != 0) {
            return Err(NqnError::NotPadded);
        }
        Self::parse(name)
    }

    /// The name in a 256-byte field, padded with zeroes.
    #[must_use]
    pub fn to_field(&self) -> [u8; NQN_FIELD_LEN] {
        let mut field = [0; NQN_FIELD_LEN];
        for (to, from) in field.iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
        field
    }

    /// The name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Whether this is the discovery service's well-known name.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.as_bytes() == DISCOVERY_NQN.as_bytes()
    }

    /// Takes at most [`NQN_LEN_MAX`] bytes that are known to be a valid name.
    fn copy_of(name: &[u8]) -> Self {
        let mut bytes = [0; NQN_LEN_MAX];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(name) {
            *to = *from;
            len += 1;
        }
        Self { len, bytes }
    }
}

fn check_form(text: &str) -> Result<(), NqnError> {
    let date_and_rest = text.strip_prefix("nqn.").ok_or(NqnError::Date)?;
    let (date, rest) = date_and_rest.split_once('.').ok_or(NqnError::Date)?;
    if !is_date(date) {
        return Err(NqnError::Date);
    }
    let (domain, name) = match rest.split_once(':') {
        Some((domain, name)) => (domain, Some(name)),
        None => (rest, None),
    };
    if !is_domain(domain) {
        return Err(NqnError::Domain);
    }
    if name.is_some_and(|n| n.is_empty() || n.chars().any(char::is_control)) {
        return Err(NqnError::Name);
    }
    match text.strip_prefix(UUID_PREFIX) {
        Some(uuid) if !is_uuid(uuid) => Err(NqnError::Uuid),
        _ => Ok(()),
    }
}

/// `yyyy-mm`, month 01 to 12.
fn is_date(text: &str) -> bool {
    let Some((year, month)) = text.split_once('-') else { return false };
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    digits(year, 4) && digits(month, 2) && ("01"..="12").contains(&month)
}

/// Labels of letters, digits, hyphens and underscores, joined by dots; letters of any script (IDN).
fn is_domain(text: &str) -> bool {
    text.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    })
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Self, NqnError> {
        Self::parse(text.as_bytes())
    }
}

impl PartialEq for Nqn {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Nqn {}

impl PartialOrd for Nqn {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Nqn {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl core::hash::Hash for Nqn {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nqn({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_names_are_taken() {
        for name in [
            DISCOVERY_NQN,
            "nqn.2026-11.io.penstock:vdisk0",
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.com.example:nvme.host.sys.xyz",
            "nqn.2020-01.org.bücher:scheibe é",
        ] {
            assert_eq!(name.parse::<Nqn>().unwrap().as_str(), name);
        }
        assert!(Nqn::discovery().is_discovery());
    }

    #[test]
    fn each_broken_rule_is_named() {
        let long = format!("nqn.2026-11.io.penstock:{}", "x".repeat(200));
        for (name, error) in [
            ("", NqnError::Date),
            ("iqn.2026-11.io.penstock:a", NqnError::Date),
            ("nqn.2026-13.io.penstock:a", NqnError::Date),
            ("nqn.2026-00.io.penstock:a", NqnError::Date),
            ("nqn.26-11.io.penstock:a", NqnError::Date),
            ("nqn.2026-11", NqnError::Date),
            ("nqn.2026-11.:a", NqnError::Domain),
            ("nqn.2026-11.io..penstock:a", NqnError::Domain),
            ("nqn.2026-11.io.-pen:a", NqnError::Domain),
            ("nqn.2026-11.io.penstock:", NqnError::Name),
            ("nqn.2026-11.io.penstock:a\nb", NqnError::Name),
            ("nqn.2014-08.org.nvmexpress:uuid:f81d4fae", NqnError::Uuid),
            (long.as_str(), NqnError::TooLong { len: 224 }),
        ] {
            assert_eq!(name.parse::<Nqn>(), Err(error), "{name}");
        }
        assert_eq!(Nqn::parse(b"nqn.2026-11.io.p:\xff"), Err(NqnError::NotUtf8));
    }

    #[test]
    fn a_field_must_be_padded_with_zeroes() {
        let nqn = Nqn::discovery();
        let mut field = nqn.to_field();
        assert_eq!(Nqn::from_field(&field), Ok(nqn));
        field[255] = 1;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::NotPadded));
        assert_eq!(Nqn::from_field(&[b'n'; 256]), Err(NqnError::TooLong { len: 256 }));
    }
}
