//! Decimal text to a whole number of a small unit, without a detour through floating point.
//!
//! Stands on the standard library alone: `cargo xtask prices` compiles this very file, too.

/// More significant digits than any price has; what is within fits into 128 bits.
const MAX_DIGITS: usize = 38;

/// The longest text that is read.
const MAX_TEXT: usize = 64;

/// An exponent beyond this counts as this: no text of [`MAX_TEXT`] can bring either of them back into range.
const MAX_EXPONENT: i32 = 1_000;

/// A decimal number in whole units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    /// The number, rounded up to a whole unit.
    pub(crate) rounded_up: u64,
    /// Whether nothing had to be rounded.
    pub(crate) exact: bool,
}

/// Why a text is not a number of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotUnits {
    /// It is no decimal number, such as `NaN`, or a blank.
    NotANumber,
    /// It is below zero.
    Negative,
    /// It has more than 38 significant digits, or more than 64 characters.
    TooLong,
    /// It does not fit into 64 bits.
    TooLarge,
}

/// Reads `digits[.digits][e[+|-]digits]` and multiplies it by ten to the power of `scale`.
///
/// A minus sign is refused even before a zero: a price with one is a mistake.
pub(crate) fn units(text: &str, scale: i32) -> Result<Units, NotUnits> {
    if text.len() > MAX_TEXT {
        return Err(NotUnits::TooLong);
    }
    if let Some(rest) = text.strip_prefix('-') {
        return Err(if number(rest).is_some() { NotUnits::Negative } else { NotUnits::NotANumber });
    }
    let (whole, fraction, exponent) = number(text).ok_or(NotUnits::NotANumber)?;
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).skip_while(|b| *b == b'0').collect();
    let zeros = digits.iter().rev().take_while(|b| **b == b'0').count();
    let digits = &digits[..digits.len() - zeros];
    if digits.is_empty() {
        return Ok(Units { rounded_up: 0, exact: true });
    }
    if digits.len() > MAX_DIGITS {
        return Err(NotUnits::TooLong);
    }
    let significant = digits.iter().fold(0_u128, |sum, digit| sum * 10 + u128::from(digit - b'0'));
    let shift = i64::from(exponent) + i64::from(scale) + length(zeros) - length(fraction.len());
    shifted(significant, shift)
}

/// `value` times ten to the power of `shift`; `value` is not zero.
fn shifted(value: u128, shift: i64) -> Result<Units, NotUnits> {
    // A power that does not fit is beyond every value: more than 64 bits upwards, less than one unit downwards.
    let power = u32::try_from(shift.unsigned_abs()).ok().and_then(|s| 10_u128.checked_pow(s));
    let (rounded_up, exact) = match (shift < 0, power) {
        (false, Some(power)) => (value.checked_mul(power).ok_or(NotUnits::TooLarge)?, true),
        (false, None) => return Err(NotUnits::TooLarge),
        (true, Some(power)) => (value.div_ceil(power), value.is_multiple_of(power)),
        (true, None) => (1, false),
    };
    let rounded_up = u64::try_from(rounded_up).map_err(|_| NotUnits::TooLarge)?;
    Ok(Units { rounded_up, exact })
}

/// The parts of an unsigned decimal number: before the point, after it, and the exponent.
fn number(text: &str) -> Option<(&str, &str, i32)> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, power(exponent)?),
        None => (text, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) if is_digits(fraction) => (whole, fraction),
        Some(_) => return None,
        None => (mantissa, ""),
    };
    is_digits(whole).then_some((whole, fraction, exponent))
}

/// A power of ten, within [`MAX_EXPONENT`].
fn power(text: &str) -> Option<i32> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !is_digits(digits) {
        return None;
    }
    let size = digits.parse::<i32>().unwrap_or(MAX_EXPONENT).min(MAX_EXPONENT);
    Some(if negative { -size } else { size })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn length(of: usize) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX / 4)
}
