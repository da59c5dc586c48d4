//! The decimal reader against long-hand arithmetic on digits, and the price of a configuration file.

use loomflow_core::{ErrorKind, Price};
use proptest::prelude::*;

use super::decimal::{NotUnits, Units, units};
use super::{PriceTable, UsdPerMillion};

/// The same by moving the point in the text: whole digits before it, and one more when anything but zeros is behind it.
fn by_hand(whole: &str, fraction: &str, shift: i32) -> Option<(u64, bool)> {
    let digits = format!("{whole}{fraction}");
    let point = i32::try_from(whole.len()).unwrap() + shift;
    let at = |i: i32| usize::try_from(i).ok().and_then(|i| digits.as_bytes().get(i)).map_or(0, |b| b - b'0');
    let mut before: Vec<u8> = (0..point.max(0)).map(at).collect();
    let exact = (point..i32::try_from(digits.len()).unwrap()).all(|i| at(i) == 0);
    if !exact {
        let nines = before.iter().rev().take_while(|d| **d == 9).count();
        let kept = before.len() - nines;
        before[kept..].fill(0);
        match kept {
            0 => before.insert(0, 1),
            _ => before[kept - 1] += 1,
        }
    }
    let mut sum = 0_u64;
    for digit in before {
        sum = sum.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some((sum, exact))
}

fn written(exponent: Option<i32>, plus: bool, big: bool) -> String {
    let e = if big { 'E' } else { 'e' };
    match exponent {
        None => String::new(),
        Some(power) if plus && power >= 0 => format!("{e}+{power}"),
        Some(power) => format!("{e}{power}"),
    }
}

proptest! {
    #[test]
    fn decimals_are_what_long_hand_says(
        whole in "[0-9]{1,20}",
        fraction in "[0-9]{0,17}",
        exponent in proptest::option::of(-40..40_i32),
        scale in 0..13_i32,
        (plus, big) in any::<(bool, bool)>(),
    ) {
        let point = if fraction.is_empty() { "" } else { "." };
        let text = format!("{whole}{point}{fraction}{}", written(exponent, plus, big));
        let expected = by_hand(&whole, &fraction, exponent.unwrap_or(0) + scale);
        match units(&text, scale) {
            Ok(Units { rounded_up, exact }) => prop_assert_eq!(Some((rounded_up, exact)), expected, "{}", text),
            Err(why) => {
                prop_assert_eq!(why, NotUnits::TooLarge, "{}", text);
                prop_assert_eq!(expected, None, "{}", text);
            }
        }
    }

    #[test]
    fn what_a_float_prints_is_what_is_read(pico in 0..10_000_000_000_u64) {
        // As a list writes it (dollars per token, a double) and as a file does (dollars per million tokens).
        let dollars = format!("{pico}e-12").parse::<f64>().unwrap();
        prop_assert_eq!(units(&format!("{dollars:e}"), 12), Ok(Units { rounded_up: pico, exact: true }));
        let text = format!("{}.{:06}", pico / 1_000_000, pico % 1_000_000);
        let json = format!(r#"{{"input":{text},"output":"{text}"}}"#);
        let read: UsdPerMillion = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(read.price(), Price::per_token(pico, pico));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[-+0-9.eE ]{0,70}|\\PC{0,10}", scale in 0..13_i32) {
        _ = units(&text, scale);
        _ = UsdPerMillion::new(&text, "1");
        prop_assert!(PriceTable::from_json(&text).is_err());
    }
}

#[test]
fn decimals_at_the_borders() {
    let exactly = |n| Ok(Units { rounded_up: n, exact: true });
    let up = |n| Ok(Units { rounded_up: n, exact: false });
    for (text, scale, expected) in [
        ("4e-07", 12, exactly(400_000)),
        ("1.25e-06", 12, exactly(1_250_000)),
        ("0.00000015", 12, exactly(150_000)),
        ("6.25E-8", 12, exactly(62_500)),
        ("0", 12, exactly(0)),
        ("0.000e9", 12, exactly(0)),
        ("1e-12", 12, exactly(1)),
        ("1e-13", 12, up(1)),
        ("1e-999", 12, up(1)),
        ("1e-99999999999999999999", 12, up(1)),
        ("1.0000000000001", 12, up(1_000_000_000_001)),
        ("18446744073709551615", 0, exactly(u64::MAX)),
        ("18446744073709551614.5", 0, up(u64::MAX)),
        ("18446744073709551615.5", 0, Err(NotUnits::TooLarge)),
        ("18446744073709551616", 0, Err(NotUnits::TooLarge)),
        ("1e99999999999999999999", 0, Err(NotUnits::TooLarge)),
        ("0e99999999999999999999", 0, exactly(0)),
        ("-1", 0, Err(NotUnits::Negative)),
        ("-0.0", 0, Err(NotUnits::Negative)),
        ("123456789012345678901234567890123456789", 0, Err(NotUnits::TooLong)),
    ] {
        assert_eq!(units(text, scale), expected, "{text}");
    }
    for text in [
        "", " ", ".", "1.", ".5", "1e", "e1", "1e+", "1e1.5", "+1", "--1", "-", "NaN", "inf", "1_000", "1,5",
        "0x1", "٣",
    ] {
        assert_eq!(units(text, 12), Err(NotUnits::NotANumber), "{text:?}");
    }
    assert_eq!(units(&"0".repeat(65), 0), Err(NotUnits::TooLong));
}

#[test]
fn a_configured_price_is_exact_and_complete() {
    let read = |json: &str| serde_json::from_str::<UsdPerMillion>(json);
    let price = read(r#"{"input": 0.40, "cached_input": "0.10", "output": 1.60}"#).unwrap().price();
    assert_eq!(price, Price::per_token(400_000, 1_600_000).with_cache(100_000, 400_000));
    let written = UsdPerMillion::new("3", "15").unwrap().with_cache_write("3.75").unwrap();
    assert_eq!(
        Price::from(written),
        Price::per_token(3_000_000, 15_000_000).with_cache(3_000_000, 3_750_000)
    );
    assert_eq!(read(r#"{"input":0,"output":0}"#).unwrap().price(), Price::default(), "a server of one's own");
    for (json, says) in [
        (r#"{"input":1}"#, "missing field `output`"),
        (r#"{"input":1,"output":1,"cache_input":1}"#, "unknown field `cache_input`"),
        (r#"{"input":-0.4,"output":1}"#, r#""-0.4" is negative"#),
        (r#"{"input":-4,"output":1}"#, r#""-4" is negative"#),
        (r#"{"input":"NaN","output":1}"#, r#""NaN" is not a decimal number"#),
        (r#"{"input":0.4000001,"output":1}"#, "six places"),
        (r#"{"input":1e30,"output":1}"#, "too large"),
        (r#"{"input":true,"output":1}"#, "US dollars per million tokens"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(says), "{json}: {error}");
    }
    let error = UsdPerMillion::new("1", &"9".repeat(500)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().len() < 200, "{error}");
}
