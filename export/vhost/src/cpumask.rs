//! The cores that a controller may use, as SPDK writes them: `0x5`, or `[0,2-3]`.

use penstock_reactor::ReactorHandle;

/// The numbers of the cores in `text`.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub(crate) fn parse(text: &str) -> Result<Vec<u32>, String> {
    let wrong = || format!("is {text:?}; it must be a mask like 0x5 or a list like [0,2-3]");
    let text = text.trim();
    let cores = match text.strip_prefix('[').map(|list| list.strip_suffix(']')) {
        Some(list) => cores_of_list(list.ok_or_else(wrong)?).ok_or_else(wrong)?,
        None => cores_of_mask(text).ok_or_else(wrong)?,
    };
    if cores.is_empty() { Err(wrong()) } else { Ok(cores) }
}

fn cores_of_list(list: &str) -> Option<Vec<u32>> {
    const CORE_MAX: u32 = 4095;
    let mut cores = Vec::new();
    for item in list.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > CORE_MAX {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

fn cores_of_mask(mask: &str) -> Option<Vec<u32>> {
    let digits = mask.strip_prefix("0x").or_else(|| mask.strip_prefix("0X")).unwrap_or(mask);
    let mut cores = Vec::new();
    for (place, digit) in (0_u32..).zip(digits.chars().rev()) {
        let bits = digit.to_digit(16)?;
        cores.extend((0..4).filter(|bit| bits & (1 << bit) != 0).map(|bit| 4 * place + bit));
    }
    cores.sort_unstable();
    Some(cores)
}

/// A mask of these reactors' cores. A reactor that is not pinned counts as the core of its own number.
pub(crate) fn mask_of(reactors: &[ReactorHandle], allowed: &[usize]) -> String {
    let cores = allowed.iter().filter_map(|index| reactors.get(*index)).map(core_of);
    let mut digits: Vec<u32> = Vec::new();
    for core in cores {
        let place = usize::try_from(core / 4).unwrap_or(0);
        if digits.len() <= place {
            digits.resize(place + 1, 0);
        }
        if let Some(digit) = digits.get_mut(place) {
            *digit |= 1 << (core % 4);
        }
    }
    let text: String = digits.iter().rev().filter_map(|digit| char::from_digit(*digit, 16)).collect();
    format!("0x{text}")
}

/// The number by which a mask names a reactor.
pub(crate) fn core_of(reactor: &ReactorHandle) -> u32 {
    reactor.core().unwrap_or(reactor.id().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lists_name_the_same_cores() {
        assert_eq!(parse("0x5"), Ok(vec![0, 2]));
        assert_eq!(parse("[0,2-3]"), Ok(vec![0, 2, 3]));
        assert_eq!(parse("100"), Ok(vec![8]));
        for wrong in ["", "0x", "0", "[", "[]", "[1-0]", "[x]", "0xg", "[0-99999]"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
