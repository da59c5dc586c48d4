//! Signatures of bodies: an HMAC over the time and the body, so that neither can be changed, and old ones are told from new.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use loomflow_core::{Error, ErrorKind, Result, Secret, Timestamp};
use sha2::Sha256;

/// When a body was signed, in whole seconds since 1970.
pub const TIMESTAMP_HEADER: &str = "loomflow-timestamp";
/// `v1=` and 64 hex digits; several are separated by commas, and one that fits is enough.
pub const SIGNATURE_HEADER: &str = "loomflow-signature";
/// The request's id: the same for each attempt to deliver it.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// The headers that sign `body` at `now`: the time, and the signature.
#[must_use]
pub fn sign(secret: &Secret<String>, body: &[u8], now: Timestamp) -> [(&'static str, String); 2] {
    let seconds = now.as_micros().div_euclid(1_000_000).to_string();
    let tag = mac(secret, &seconds, body).finalize().into_bytes();
    let hex = tag.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [(TIMESTAMP_HEADER, seconds), (SIGNATURE_HEADER, format!("v1={hex}"))]
}

/// Checks that whoever sent `body` knows the secret, and signed it no longer ago than `tolerance`. Compares in constant time.
///
/// A body that is sent again within `tolerance` passes again: whoever must not act twice remembers the ids they acted on for
/// that long. A signature that is as much ahead of `now` is refused, too.
///
/// # Errors
///
/// [`ErrorKind::Auth`] for a header that is missing, there twice, or no signature of that body; the message says which, and
/// nothing of the body.
pub fn verify<'h>(
    secret: &Secret<String>,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
    body: &[u8],
    now: Timestamp,
    tolerance: Duration,
) -> Result<()> {
    let (mut timestamp, mut signatures) = (None, None);
    for (name, value) in headers {
        let place = if name.eq_ignore_ascii_case(TIMESTAMP_HEADER) {
            &mut timestamp
        } else if name.eq_ignore_ascii_case(SIGNATURE_HEADER) {
            &mut signatures
        } else {
            continue;
        };
        if place.replace(value).is_some() {
            return Err(refused("a header of the signature is there twice"));
        }
    }
    let (Some(timestamp), Some(signatures)) = (timestamp, signatures) else {
        return Err(refused("it is not signed"));
    };
    let seconds = timestamp.parse::<i64>().ok().filter(|_| timestamp.bytes().all(|b| b.is_ascii_digit()));
    let at = seconds.and_then(|seconds| seconds.checked_mul(1_000_000)).map(Timestamp::from_micros);
    let at = at.ok_or_else(|| refused("the time of its signature is no number of seconds"))?;
    if now.saturating_since(at).max(at.saturating_since(now)) > tolerance {
        return Err(refused("its signature is too old, or a clock is wrong"));
    }
    let fits = |signature: &str| {
        let tag = signature.trim().strip_prefix("v1=").and_then(bytes);
        tag.is_some_and(|tag| mac(secret, timestamp, body).verify_slice(&tag).is_ok())
    };
    if signatures.split(',').take(8).any(fits) { Ok(()) } else { Err(refused("its signature does not fit")) }
}

fn mac(secret: &Secret<String>, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes());
    let mut mac = mac.expect("an HMAC takes a key of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| (b as char).to_digit(16).filter(|_| !b.is_ascii_uppercase());
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let mut tag = [0; 32];
    if !rest.is_empty() || pairs.len() != tag.len() {
        return None;
    }
    for (byte, [high, low]) in tag.iter_mut().zip(pairs) {
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(tag)
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Auth, why.to_owned()).with_operation("verify webhook")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    const TOLERANCE: Duration = Duration::from_secs(300);

    /// The figure of another implementation: `printf '1492774577.{"a":1}' | openssl dgst -sha256 -hmac key`.
    #[test]
    fn it_is_the_hmac_that_everybody_computes() {
        let [(_, timestamp), (_, signature)] = sign(&secret("key"), br#"{"a":1}"#, at(1_492_774_577));
        assert_eq!(timestamp, "1492774577");
        assert_eq!(signature, "v1=b47ff869cac67fa42e024f96a1ad404e1177fcf4e269d3a187ec6fac93f041ae");
    }

    #[test]
    fn what_was_signed_passes_and_nothing_else_does() {
        let key = secret("0123456789abcdef0123456789abcdef");
        let [(t, timestamp), (s, signature)] = sign(&key, b"body", at(1_000));
        let check = |headers: &[(&str, &str)], body: &[u8], now| {
            verify(&key, headers.iter().copied(), body, at(now), TOLERANCE).is_ok()
        };
        let headers = [(t, &*timestamp), (s, &*signature)];
        for now in [700, 1_000, 1_300] {
            assert!(check(&headers, b"body", now));
        }
        assert!(check(
            &[("Loomflow-Timestamp", &timestamp), ("LOOMFLOW-SIGNATURE", &signature)],
            b"body",
            1_000
        ));
        for now in [699, 1_301, 1_000_000] {
            assert!(!check(&headers, b"body", now), "{now}");
        }
        for body in [&b"bodY"[..], b"body ", b"", b"1000.body"] {
            assert!(!check(&headers, body, 1_000));
        }
        let two = format!("v1={}, {signature}", "0".repeat(64));
        assert!(check(&[(t, &timestamp), (s, &two)], b"body", 1_000), "one that fits is enough");
        let upper = signature.to_uppercase().replace("V1", "v1");
        let short = &signature[..signature.len() - 2];
        for bad in ["", "v1=", short, &signature[3..], &upper, &signature.replace("v1", "v0")] {
            assert!(!check(&[(t, &timestamp), (s, bad)], b"body", 1_000), "{bad}");
        }
        for bad in ["1001", "+1000", " 1000", "1000.0", "-1", "99999999999999999999", ""] {
            assert!(!check(&[(t, bad), (s, &signature)], b"body", 1_000), "{bad}");
        }
        assert!(!check(&headers[..1], b"body", 1_000) && !check(&headers[1..], b"body", 1_000));
        let twice = [headers[0], headers[1], headers[1]];
        assert!(!check(&twice, b"body", 1_000), "which of the two was checked, nobody could say");
        let other = secret("0123456789abcdef0123456789abcdeF");
        assert!(verify(&other, headers, b"body", at(1_000), TOLERANCE).is_err());
    }
}
