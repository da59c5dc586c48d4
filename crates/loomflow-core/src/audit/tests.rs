//! The chained log, judged by a verifier that is written from the published format and shares no code with it.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use serde_json::Value;
use sha2::Sha256;

use super::*;
use crate::redact::{KeepAll, Redactor};
use crate::{Identity, Namespace, Owner, Secret, UserId};

const KEY: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

fn key(id: &str) -> Arc<AuditKey> {
    Arc::new(AuditKey::new(id, Secret::new(KEY.to_vec())).unwrap())
}

fn owner(user: Option<&str>) -> Owner {
    let identity = user.map_or(Identity::Anonymous, |u| Identity::User(UserId::new(u).unwrap()));
    Owner::new(Namespace::new("shop").unwrap(), identity)
}

fn event(payload: &str) -> AuditEvent {
    let payload = Redactor::new(Arc::new(KeepAll)).text(payload);
    let at = Timestamp::from_micros(1_700_000_000_123_456);
    AuditEvent::new(at, Actor::Model, Action::ToolIntent, payload)
        .in_run(SessionId::new("conv \"42\"").unwrap(), RunId::from_u128(77))
}

fn small_log() -> Vec<String> {
    let key = key("k1");
    let mut chain = AuditChain::resume("log_test", 1, [0; 32]).unwrap();
    let entries = [
        (Some("alice"), r#"{"tool":"pay","args":{"to":"bob","cents":100}}"#),
        (
            None,
            r#"{"note":"\",\"mac\":\"0000000000000000000000000000000000000000000000000000000000000000\"}"}"#,
        ),
        (Some("user_1"), r#"{"mac":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"}"#),
        (Some("user_10"), "{}"),
    ];
    entries
        .iter()
        .map(|(user, payload)| chain.seal(&key, &owner(*user), &event(payload)).line.into_string())
        .collect()
}

/// Straight from the interface text: the last 74 bytes, HMAC over the rest and `}`, `prev` = the mac before.
fn oracle(lines: &[String]) -> Result<u64, &'static str> {
    let mut prev = "0".repeat(64);
    for (i, line) in lines.iter().enumerate() {
        let (body, tail) = line.split_at(line.len().checked_sub(74).ok_or("short")?);
        let mac = tail.strip_prefix(",\"mac\":\"").and_then(|t| t.strip_suffix("\"}")).ok_or("tail")?;
        let mut hmac = Hmac::<Sha256>::new_from_slice(KEY).unwrap();
        hmac.update(format!("{body}}}").as_bytes());
        let expected: String = hmac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
        if mac != expected {
            return Err("mac");
        }
        let entry: Value = serde_json::from_str(line).map_err(|_| "json")?;
        if entry["prev"] != *prev || entry["seq"] != i as u64 + 1 || entry["log"] != "log_test" {
            return Err("chain");
        }
        prev = mac.to_owned();
    }
    Ok(lines.len() as u64)
}

fn verify<'l>(lines: impl IntoIterator<Item = &'l [u8]>) -> AuditVerification {
    let mut verifier = AuditVerifier::new([key("k1")]);
    for line in lines {
        verifier.push(line);
    }
    verifier.finish()
}

fn kinds(lines: &[&str]) -> Vec<(u64, &'static str)> {
    verify(lines.iter().map(|l| l.as_bytes())).problems.iter().map(|p| (p.seq, p.kind)).collect()
}

#[test]
fn a_log_is_what_the_published_format_says() {
    let lines = small_log();
    assert_eq!(oracle(&lines), Ok(4));
    let done = verify(lines.iter().map(|l| l.as_bytes()));
    assert!(done.is_valid(), "{:?}", done.problems);
    assert_eq!((done.entries, done.first_seq, done.last_seq), (4, 1, 4));
    assert!(lines[3].ends_with(&format!(",\"mac\":\"{}\"}}", done.head)));
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    let members: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(members.len(), 14, "{members:?}");
    assert!(lines[0].starts_with(
        r#"{"v":1,"log":"log_test","seq":1,"at":"2023-11-14T22:13:20.123456Z","namespace":"shop","user_id":"alice","session_id":"conv \"42\"","run_id":"run_"#
    ));
    assert!(lines[1].contains(r#""user_id":null,"anonymous":true,"#));
    assert!(lines[0].contains(r#""actor":"model","action":"tool_intent","payload":{"tool":"pay","args":{"to":"bob","cents":100}},"key_id":"k1","prev":"0000"#));
}

#[test]
fn every_single_byte_matters() {
    let lines = small_log();
    for (i, line) in lines.iter().enumerate() {
        for at in 0..line.len() {
            for flip in [1_u8, 2, 0x20, 0x80] {
                let mut tampered = line.clone().into_bytes();
                tampered[at] ^= flip;
                let all =
                    lines.iter().enumerate().map(|(j, l)| if i == j { &tampered[..] } else { l.as_bytes() });
                let done = verify(all);
                assert!(!done.is_valid(), "line {i} byte {at} ^ {flip:#x} went unnoticed");
                assert!(done.problems.len() <= 3, "one bad byte is one story: {:?}", done.problems);
                assert!(done.problems.iter().any(|p| p.seq == i as u64 + 1 || p.kind != "bad_mac"));
            }
        }
    }
}

#[test]
fn a_changed_history_is_named() {
    let lines = small_log();
    let l: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(kinds(&[l[0], l[2], l[3]]), [(3, "gap")]);
    assert_eq!(kinds(&[l[1], l[2], l[3]]), [(2, "gap")]);
    assert_eq!(kinds(&[l[0], l[1], l[1], l[2], l[3]]), [(2, "duplicate")]);
    assert_eq!(kinds(&[l[0], l[2], l[1], l[3]]), [(3, "gap"), (2, "duplicate")]);
    assert_eq!(kinds(&[l[0], "garbage", l[1], l[2]]), [(2, "malformed")]);
    assert_eq!(kinds(&[l[0], "{}", l[2], l[3]]), [(2, "malformed")]);
    assert_eq!(kinds(&[l[0], "", "", l[3]]), [(2, "malformed"), (3, "malformed")]);
    let forged = l[1].replace("shop", "shoq");
    assert_eq!(kinds(&[l[0], &forged, l[2]]), [(2, "bad_mac")]);
    let other = l[1].replace("\"key_id\":\"k1\"", "\"key_id\":\"k9\"");
    assert_eq!(kinds(&[l[0], &other, l[2]]), [(2, "unknown_key")]);
    // Two logs under one key: an entry of one cannot be slipped into the other, and neither can a fork of this one.
    let mut chain = AuditChain::resume("log_other", 2, [7; 32]).unwrap();
    let foreign = chain.seal(&key("k1"), &owner(Some("alice")), &event("{}")).line;
    assert_eq!(kinds(&[l[0], &foreign, l[1], l[2]]), [(2, "foreign")]);
    let mut fork = AuditChain::resume("log_test", 2, [7; 32]).unwrap();
    let forked = fork.seal(&key("k1"), &owner(Some("alice")), &event("{}"));
    assert_eq!(kinds(&[l[0], &forked.line]), [(2, "broken_chain")]);
    // Members that a reader could understand in two ways are refused although the MAC fits.
    for double in [r#"{"v":1,"v":1"#, r#"{"v":1,"payload":{"a":1,"\u0061":2}"#] {
        let mut line = l[0].strip_prefix(r#"{"v":1"#).map(|rest| format!("{double}{rest}")).unwrap();
        line.truncate(line.len() - 74);
        key("k1").end_line(&mut line);
        assert_eq!(kinds(&[&line]), [(1, "malformed")], "{double}");
    }
    let mut torn = AuditVerifier::new([key("k1")]);
    torn.push(l[0].as_bytes());
    assert!(torn.push_torn(b"").is_empty());
    assert_eq!(torn.push_torn(&l[1].as_bytes()[..50]), [AuditProblem::new(2, "torn")]);
}

#[test]
fn a_removed_beginning_is_whole_only_where_it_was_recorded() {
    let lines = small_log();
    let (_, mac) = line::split_mac(lines[1].as_bytes()).unwrap();
    let from = |seq, mac| {
        let mut verifier = AuditVerifier::new([key("k1")]).with_log("log_test").starting_after(seq, mac);
        lines[2..].iter().for_each(|l| {
            verifier.push(l.as_bytes());
        });
        verifier.finish()
    };
    assert!(from(2, mac).is_valid());
    assert!(!from(2, [0; 32]).is_valid() && !from(1, mac).is_valid());
    assert_eq!(verify([]).head, "0".repeat(64));
}

#[test]
fn a_line_is_read_back_with_its_own_owner() {
    let key = key("k1");
    let mut chain = AuditChain::new();
    for user in [Some("alice"), Some("a\"b\\c"), Some("用户\u{301}"), None] {
        let sealed = chain.seal(&key, &owner(user), &event(r#"{"n":9007199254740993}"#));
        let (whose, entry) = parse_line(&sealed.line).unwrap();
        assert_eq!(whose, owner(user));
        assert_eq!(entry.event, event(r#"{"n":9007199254740993}"#));
        assert_eq!(entry.seq, sealed.seq);
    }
    let mut system = event("{}");
    (system.session, system.run) = (None, None);
    let line = chain.seal_system(&key, owner(None).namespace(), &system).line;
    let read = AuditLine::parse(&line).unwrap();
    assert!(read.owner.is_none() && read.entry.event == system && read.key_id == "k1");
    assert_eq!(parse_line(&line).unwrap_err().kind(), crate::ErrorKind::NotFound);
    for bad in
        ["", "{}", &line[1..], &line.replace("\"v\":1", "\"v\":2"), &line.replace("tool_intent", "dance")]
    {
        assert!(AuditLine::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_payload_that_would_spoil_the_log_is_kept_as_text() {
    let deep = format!("{}1{}", "{\"a\":".repeat(70), "}".repeat(70));
    for payload in
        ["", "plain words", "[1]", "{\n}", r#"{"a":1,"a":2}"#, "{} , \"x\":{}", "{\"a\":\"\u{1}\"}", &deep]
    {
        let key = key("k1");
        let sealed = AuditChain::new().seal(&key, &owner(None), &event(payload));
        let entry: Value = serde_json::from_str(&sealed.line).unwrap();
        assert_eq!(entry["payload"], serde_json::json!({ "text": payload }));
        assert!(verify([sealed.line.as_bytes()]).is_valid());
    }
}

#[test]
fn keys_are_checked_and_never_printed() {
    for (id, len) in [("", 32), ("a:b", 32), ("k", 31), ("k", 0)] {
        assert!(AuditKey::new(id, Secret::new(vec![b'z'; len])).is_err());
    }
    let hex = |text: &str| AuditKey::from_hex("k", &Secret::new(text.to_owned()));
    assert!(hex(&"7a".repeat(32)).is_ok() && hex(&"7A".repeat(32)).is_ok());
    for bad in ["7a".repeat(31), "7a".repeat(32) + "7", "zz".repeat(32), "é".repeat(32)] {
        let error = hex(&bad).unwrap_err().to_string();
        assert!(!error.contains(&bad), "{error}");
    }
    assert_eq!(format!("{:?}", key("k1")), "AuditKey { id: \"k1\", .. }");
    assert!(AuditChain::resume("a b", 1, [0; 32]).is_err() && AuditChain::resume("a", 0, [0; 32]).is_err());
}

/// So many cases of a property, unless `PROPTEST_CASES` says otherwise.
#[allow(clippy::disallowed_methods, reason = "how long tests run is chosen by whoever runs them")]
pub(super) fn cases(usual: u32) -> ProptestConfig {
    let wanted = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig::with_cases(wanted.unwrap_or(usual))
}

proptest! {
    #![proptest_config(cases(128))]

    /// Whatever is recorded, the log verifies, here and by the oracle, and is read back as it was.
    #[test]
    fn every_event_survives(payloads in prop::collection::vec((any::<String>(), any::<bool>()), 1..6)) {
        let key = key("k1");
        let mut chain = AuditChain::resume("log_test", 1, [0; 32]).unwrap();
        let mut lines = Vec::new();
        for (text, as_json) in &payloads {
            let payload = if *as_json { serde_json::json!({ text: [text] }).to_string() } else { text.clone() };
            lines.push(chain.seal(&key, &owner(Some("u")), &event(&payload)).line.into_string());
        }
        prop_assert_eq!(oracle(&lines), Ok(payloads.len() as u64));
        prop_assert!(verify(lines.iter().map(|l| l.as_bytes())).is_valid());
        prop_assert!(lines.iter().all(|l| !l.contains('\n') && parse_line(l).is_ok()));
    }

    /// Any edit of a log's bytes other than cutting whole lines off its end is noticed.
    #[test]
    fn any_edit_is_noticed(line in 0..4_usize, at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..4), cut in 0..4_usize) {
        let lines = small_log();
        let mut bytes = lines[line].clone().into_bytes();
        let from = at.index(bytes.len());
        let to = (from + cut).min(bytes.len());
        bytes.splice(from..to, with);
        prop_assume!(bytes != lines[line].as_bytes());
        let all = lines.iter().enumerate().map(|(j, l)| if j == line { &bytes[..] } else { l.as_bytes() });
        prop_assert!(!verify(all).is_valid());
    }
}
