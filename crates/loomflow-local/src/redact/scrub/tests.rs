//! Every known shape is found, and clean text is left alone.

use super::*;

/// `n` characters that no prefix, word or English text contains.
fn chars(n: usize) -> String {
    "a1B2c3D4e5F6g7H8".chars().cycle().take(n).collect()
}

fn hex(n: usize) -> String {
    "0123456789abcdef".chars().cycle().take(n).collect()
}

fn upper(n: usize) -> String {
    "A1B2C3D4E5F6G7H8".chars().cycle().take(n).collect()
}

/// One sample of each shape: what stands before the secret and is kept, and the secret.
fn samples() -> Vec<(String, String)> {
    let whole = [
        format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", chars(64)),
        format!("-----BEGIN PRIVATE KEY-----\n{}", chars(64)),
        format!("eyJ{}.eyJ{}.{}", chars(20), chars(20), chars(20)),
        format!("sk-{}", chars(20)),
        format!("sk-proj-{}", chars(40)),
        format!("sk-ant-api03-{}", chars(40)),
        format!("sk_live_{}", chars(24)),
        format!("rk_live_{}", chars(24)),
        format!("whsec_{}", chars(24)),
        format!("AKIA{}", upper(16)),
        format!("ASIA{}", upper(16)),
        format!("ghp_{}", chars(36)),
        format!("gho_{}", chars(36)),
        format!("github_pat_{}", chars(60)),
        format!("glpat-{}", chars(20)),
        format!("xoxb-{}", chars(20)),
        format!("xapp-1-{}", chars(20)),
        format!("hooks.slack.com/services/T00000000/B00000000/{}", chars(24)),
        format!("discord.com/api/webhooks/123456789012345678/{}", chars(60)),
        format!("AIza{}", chars(35)),
        format!("GOCSPX-{}", chars(28)),
        format!("ya29.{}", chars(40)),
        format!("npm_{}", chars(36)),
        format!("pypi-{}", chars(60)),
        format!("hf_{}", chars(34)),
        format!("SG.{}.{}", chars(22), chars(43)),
        format!("SK{}", hex(32)),
        format!("dop_v1_{}", hex(64)),
        format!("shpat_{}", hex(32)),
        format!("sq0atp-{}", chars(22)),
        format!("key-{}", hex(32)),
        format!("lin_api_{}", chars(40)),
        format!("ntn_{}", chars(46)),
        format!("gsk_{}", chars(52)),
        format!("r8_{}", chars(37)),
        format!("pplx-{}", chars(48)),
        format!("xai-{}", chars(80)),
        format!("hvs.{}", chars(24)),
        format!("dp.pt.{}", chars(43)),
        format!("AGE-SECRET-KEY-1{}", upper(58)),
        format!("PMAK-{}-{}", hex(24), hex(34)),
        format!("NRAK-{}", upper(27)),
        format!("sntrys_{}", chars(60)),
        format!("dckr_pat_{}", chars(27)),
        format!("figd_{}", chars(40)),
        format!("ATATT3{}", chars(60)),
        format!("lfk_{}", chars(43)),
    ];
    let kept = [
        ("Bearer ", chars(20)),
        ("bearer ", chars(20)),
        ("Authorization: Basic ", "dXNlcjpwYXNz".into()),
        ("postgres://bot:", "hunter2!@db".into()),
        ("redis://:", "hunter2!@db".into()),
        ("password=", "correct-horse".into()),
        ("DB_PASSWORD: ", "correct-horse".into()),
        ("\"api_key\": \"", "correct-horse".into()),
        ("{\\\"apiKey\\\":\\\"", "correct-horse".into()),
        ("OPENAI_API_KEY=", "correct-horse".into()),
        ("?access_token=", "correct-horse".into()),
        ("client_secret = '", "correct-horse".into()),
        ("pwd=", "correct-horse".into()),
    ];
    let kept = kept.into_iter().map(|(name, secret)| (name.to_owned(), secret));
    whole.into_iter().map(|secret| (String::new(), secret)).chain(kept).collect()
}

#[test]
fn every_shape_is_found_and_its_name_stays() {
    let scrub = PatternScrub::new();
    for (name, secret) in samples() {
        for (before, behind) in [("", ""), ("see ", " there"), ("(", ")"), ("用户: ", "。")] {
            // A private key without its end takes everything that follows: what follows is the key.
            let behind = if secret.contains("BEGIN PRIVATE") { "" } else { behind };
            if name.ends_with(['=', ' ', '"', '\'', ':']) && before.is_empty() && behind == "。" {
                continue;
            }
            let text = format!("{before}{name}{secret} {behind}");
            let clean = scrub.scrub(&text);
            let secret = secret.strip_suffix("@db").unwrap_or(&secret);
            assert!(!clean.contains(secret), "{text} -> {clean}");
            let expected = format!("{before}{name}{MARK}");
            assert!(
                clean.starts_with(&expected) || clean.contains(MARK) && name.is_empty(),
                "{text} -> {clean}"
            );
            assert!(clean.ends_with(behind), "{clean}");
            assert_eq!(scrub.scrub(&clean), clean, "scrubbing twice changes nothing");
        }
    }
}

#[test]
fn clean_text_is_left_alone() {
    let scrub = PatternScrub::new();
    for text in [
        "",
        "The quick brown fox jumps over the lazy dog, and the token count was 1234.",
        "Please reset my password: I forgot it.",
        "The sk- prefix, ghp_ and AKIA are well known; a Bearer token is not shown.",
        "input_tokens=1234567, output_tokens: 99",
        "https://example.com:8080/path?q=1 and postgres://db.internal/app and user@example.com",
        "run_01j9z3k4m5n6p7q8r9s0t1v2w3 of sess_01j9z3k4m5n6p7q8r9s0t1v2w3",
        "SKU 4711, key-value stores, secret_santa, the npm_config_registry variable",
        "commit d0beb09e1f2a3b4c5d6e7f8091a2b3c4d5e6f708 by Ada",
        "{\"order\":\"A-1\",\"cents\":1999,\"note\":\"leave at the door\"}",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "Die Schlüssel liegen unter der Matte; 鍵はどこですか。",
    ] {
        assert!(matches!(scrub.scrub(text), Cow::Borrowed(_)), "{text} -> {}", scrub.scrub(text));
    }
}

#[test]
fn a_registered_secret_is_found_from_then_on() {
    let scrub = PatternScrub::new();
    let text = "the word is swordfish-42, again swordfish-42";
    assert_eq!(scrub.scrub(text), text);
    scrub.register(&Arc::new(Secret::new("swordfish-42".to_owned())));
    scrub.register(&Arc::new(Secret::new("swordfish-42".to_owned())));
    scrub.register(&Arc::new(Secret::new("word".to_owned())));
    assert_eq!(scrub.scrub(text), format!("the word is {MARK}, again {MARK}"));
    assert!(!format!("{scrub:?}").contains("swordfish"));
}

#[test]
fn the_value_of_a_member_whose_name_is_a_secrets_is_taken_out() {
    let scrub = Arc::new(PatternScrub::new());
    let redactor = loomflow_core::Redactor::new(scrub.clone());
    for name in
        ["password", "DB_PASSWORD", "apiKey", "api-key", "X-Api-Key", "client_secret", "token", "accessToken"]
    {
        for value in
            [serde_json::json!("hunter2"), serde_json::json!(12_345_678), serde_json::json!(["hunter2"])]
        {
            let clean = redactor.json(&serde_json::json!({ name: value })).into_inner();
            assert!(clean.contains(MARK) && !clean.contains("hunter2") && !clean.contains("123"), "{clean}");
        }
        assert_eq!(scrub.scrub_member(name, ""), "");
    }
    for (name, n) in [("input_tokens", 1), ("max_tokens", 2), ("tokens", 3), ("key", 4), ("author", 5)] {
        let text = redactor.json(&serde_json::json!({ name: n })).into_inner();
        assert_eq!(text, format!("{{\"{name}\":{n}}}"));
    }
    scrub.register(&Arc::new(Secret::new("8675309123".to_owned())));
    let clean = redactor.json(&serde_json::json!({ "n": 8_675_309_123_u64, "m": 8_675_309_124_u64 }));
    let value: serde_json::Value = serde_json::from_str(clean.get()).unwrap();
    assert_eq!(value, serde_json::json!({ "n": MARK, "m": 8_675_309_124_u64 }));
}

#[test]
fn a_long_secret_keeps_no_tail() {
    let scrub = PatternScrub::new();
    let secret: String = (0..4_100).map(|n| char::from(b'a' + ((n * n + n / 7) % 26) as u8)).collect();
    scrub.register(&Arc::new(Secret::new(secret.clone())));
    let clean = scrub.scrub(&format!("before {secret} after")).into_owned();
    assert_eq!(clean.replace(MARK, ""), "before  after", "nothing of it stays");
}
