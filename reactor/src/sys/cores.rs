//! Lists of cores, as people write them.

/// Cores are numbered below this.
pub const CORES_MAX: u32 = 4096;

/// Why a list of cores was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no list of cores: {why}; write 0-3,8 or [0-3,8] or the mask 0x10f")]
pub struct CoreListError {
    text: String,
    why: &'static str,
}

/// Reads `0-3,8`, SPDK's `[0-3,8]`, or a mask `0x10f`; the cores come in order, each once.
///
/// A bare number is a list of one core; SPDK's masks without `0x` are not taken, for `10` would be core 10 to some and
/// core 4 to others.
///
/// # Errors
/// [`CoreListError`] for an empty list, anything that is no number, and cores from [`CORES_MAX`] on.
pub fn parse_core_list(text: &str) -> Result<Vec<u32>, CoreListError> {
    let wrong = |why| CoreListError { text: text.to_owned(), why };
    let trimmed = text.trim();
    let cores = match trimmed.strip_prefix("0x").or_else(|| trimmed.strip_prefix("0X")) {
        Some(digits) => parse_mask(digits),
        None => {
            let inner = match trimmed.strip_prefix('[') {
                Some(rest) => rest.strip_suffix(']').ok_or_else(|| wrong("the bracket is not closed"))?,
                None => trimmed,
            };
            parse_ranges(inner)
        }
    };
    let mut cores = cores.map_err(wrong)?;
    cores.sort_unstable();
    cores.dedup();
    if cores.is_empty() { Err(wrong("it names no core")) } else { Ok(cores) }
}

fn parse_ranges(text: &str) -> Result<Vec<u32>, &'static str> {
    let mut cores = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (parse_core(first)?, parse_core(last)?);
        if first > last {
            return Err("a range ends before it begins");
        }
        if cores.len() > usize::try_from(2 * CORES_MAX).unwrap_or(usize::MAX) {
            return Err("it names more cores than there can be");
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

fn parse_core(text: &str) -> Result<u32, &'static str> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("there is something that is no number");
    }
    match text.parse() {
        Ok(core) if core < CORES_MAX => Ok(core),
        _ => Err("it names a core that cannot be"),
    }
}

/// Hexadecimal, of any length, with the commas that the kernel puts after each 32 bits allowed.
fn parse_mask(digits: &str) -> Result<Vec<u32>, &'static str> {
    let mut cores = Vec::new();
    for (at, digit) in (0_u32..).zip(digits.chars().rev().filter(|digit| *digit != ',')) {
        let bits = digit.to_digit(16).ok_or("the mask is not hexadecimal")?;
        if bits != 0 && at >= CORES_MAX / 4 {
            return Err("it names a core that cannot be");
        }
        cores.extend((0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| at.saturating_mul(4) + bit));
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_ways_of_writing_name_the_same_cores() {
        for text in ["0-3,8", "[0-3,8]", "0x10f", " [ 8, 0 - 3 ] ", "0X0000,0000010F", "3,2,1,0-2,8"] {
            assert_eq!(parse_core_list(text), Ok(vec![0, 1, 2, 3, 8]), "{text}");
        }
        assert_eq!(parse_core_list("10"), Ok(vec![10]));
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for text in
            ["", "[]", "[0", "a", "1-", "3-1", "-1", "0x", "0xg", "0x0", "4096", "0-99999999999", "+1"]
        {
            let error = parse_core_list(text).unwrap_err().to_string();
            assert!(error.contains("write 0-3,8"), "{error}");
        }
        let far = format!("0x1{}", "0".repeat(5000));
        assert!(parse_core_list(&far).is_err());
    }
}
