//! Text keys (RFC 7143, section 6).

/// Bytes of a key's name at most (6.1).
pub const KEY_LEN_MAX: usize = 63;
/// Bytes of a value at most, unless a key says otherwise (6.1).
pub const VALUE_LEN_MAX: usize = 255;

/// Why text is no list of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// No `=`.
    #[error("a text key without '='")]
    NoValue,
    /// A key with no name, one too long, or with bytes that key names do not have.
    #[error("a key's name has 1 to {KEY_LEN_MAX} bytes of A-Z, a-z, 0-9, '.', '-', '+', '@' and '_'")]
    Key,
    /// A value that is no text.
    #[error("a text value that is not UTF-8")]
    Value,
}

/// One `key=value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Its name.
    pub key: &'a str,
    /// Its value.
    pub value: &'a str,
}

/// The pairs of a text segment, each ended by a NUL; the last one's NUL may be missing, further NULs are padding.
pub fn pairs(bytes: &[u8]) -> impl Iterator<Item = Result<Pair<'_>, TextError>> {
    bytes.split(|byte| *byte == 0).filter(|item| !item.is_empty()).map(pair)
}

fn pair(item: &[u8]) -> Result<Pair<'_>, TextError> {
    let at = item.iter().position(|byte| *byte == b'=').ok_or(TextError::NoValue)?;
    let (key, value) = item.split_at(at);
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+@_".contains(byte);
    if key.is_empty() || key.len() > KEY_LEN_MAX || !key.iter().all(fine) {
        return Err(TextError::Key);
    }
    let key = core::str::from_utf8(key).map_err(|_| TextError::Key)?;
    let value = core::str::from_utf8(value.get(1..).unwrap_or_default()).map_err(|_| TextError::Value)?;
    Ok(Pair { key, value })
}

/// A numerical value: decimal, or hexadecimal after `0x` (6.1, "numerical-value").
#[must_use]
pub fn number(value: &str) -> Option<u32> {
    let hex = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
    match hex {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        None if value.bytes().all(|byte| byte.is_ascii_digit()) => value.parse().ok(),
        _ => None,
    }
}

/// A boolean value: `Yes` or `No`.
#[must_use]
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// The text of a boolean value.
#[must_use]
pub const fn yes_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_end_with_nul_and_the_last_may_lack_it() {
        let all: Vec<_> = pairs(b"A=1\0B.c=\0\0X-y=a=b").map(Result::unwrap).collect();
        let pair = |key, value| Pair { key, value };
        assert_eq!(all, [pair("A", "1"), pair("B.c", ""), pair("X-y", "a=b")]);
        assert_eq!(pairs(b"A").next(), Some(Err(TextError::NoValue)));
        assert_eq!(pairs(b"=1").next(), Some(Err(TextError::Key)));
        assert_eq!(pairs(b"A b=1").next(), Some(Err(TextError::Key)));
        assert_eq!(pairs(b"A=\xff").next(), Some(Err(TextError::Value)));
        assert_eq!(pairs(&[b'A'; 64]).next(), Some(Err(TextError::NoValue)));
        assert_eq!(pairs(b"").count(), 0);
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal_and_nothing_else() {
        assert_eq!([number("0"), number("0x1F"), number("65536")], [Some(0), Some(31), Some(65536)]);
        for bad in ["", "0x", "-1", "+1", "1 ", "4294967296", "0x+1", "Yes"] {
            assert_eq!(number(bad), None, "{bad}");
        }
        assert_eq!((boolean("Yes"), boolean("No"), boolean("yes")), (Some(true), Some(false), None));
    }
}
