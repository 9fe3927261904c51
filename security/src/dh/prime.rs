//! The primes of RFC 7919, made by the formula that it gives.
//!
//! p = 2^b − 2^(b−64) + (⌊2^(b−130)·e⌋ + X)·2^64 − 1, with X of each group. Shorter than five tables of digits, and a
//! wrong one cannot hide: the tests hold the results against the digests of the RFC's own.

/// Bits of precision beyond the point while e is summed up.
const GUARD_BITS: usize = 64;

/// The prime of `bits` bits, big-endian.
pub(super) fn prime(bits: usize, x: u64) -> Vec<u8> {
    // ⌊2^(b−130)·e⌋ has b − 128 bits: with 64 ones above it. The −1 at the end makes 64 ones below it, and takes one
    // from it.
    let mut sum = e_shifted(bits - 130);
    add(&mut sum, x - 1);
    let middle = bits / 8 - 16;
    let mut bytes = vec![0xff; bits / 8];
    let limbs = sum.iter().flat_map(|limb| limb.to_le_bytes());
    for (to, byte) in bytes.iter_mut().rev().skip(8).take(middle).zip(limbs) {
        *to = byte;
    }
    bytes
}

/// ⌊2^bits · e⌋, little-endian limbs.
fn e_shifted(bits: usize) -> Vec<u32> {
    let len = (bits + GUARD_BITS).div_ceil(32) + 1;
    let mut term = vec![0_u32; len];
    if let Some(limb) = term.get_mut((bits + GUARD_BITS) / 32) {
        *limb = 1 << ((bits + GUARD_BITS) % 32);
    }
    let mut sum = term.clone();
    let mut divisor = 1_u32;
    while term.iter().any(|limb| *limb != 0) {
        divide(&mut term, divisor);
        divisor += 1;
        let mut carry = 0_u64;
        for (to, limb) in sum.iter_mut().zip(&term) {
            let [low, high] = halves(u64::from(*to) + u64::from(*limb) + carry);
            (*to, carry) = (low, u64::from(high));
        }
    }
    sum.split_off(GUARD_BITS / 32)
}

fn divide(number: &mut [u32], divisor: u32) {
    let divisor = u64::from(divisor.max(1));
    let mut rest = 0_u64;
    for limb in number.iter_mut().rev() {
        let part = (rest << 32) | u64::from(*limb);
        let [low, _] = halves(part / divisor);
        (*limb, rest) = (low, part % divisor);
    }
}

fn add(number: &mut [u32], addend: u64) {
    let mut carry = addend;
    for limb in number {
        let sum = u64::from(*limb) + (carry & u64::from(u32::MAX));
        let [low, high] = halves(sum);
        *limb = low;
        carry = (carry >> 32) + u64::from(high);
    }
}

/// Low and high half.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
