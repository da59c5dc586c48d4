//! A strict reader of one JSON object: it refuses what two readers could understand differently.

use std::borrow::Cow;

/// The deepest nesting of a line, its own braces included: less than any common JSON reader gives up at.
pub(super) const MAX_DEPTH: usize = 96;

/// A member of an object: its name, unescaped, and its value as the bytes that stand there.
pub(super) type Member<'t> = (Cow<'t, str>, &'t str);

/// The members of the one object that `text` consists of, in order.
///
/// Refused: anything but one object, duplicate names at any depth (compared unescaped), nesting beyond `max_depth`,
/// control characters, line breaks between tokens, lone surrogates, and every number JSON's grammar does not know.
pub(super) fn members(text: &str, max_depth: usize) -> Option<Vec<Member<'_>>> {
    let mut reader = Reader::new(text, max_depth);
    let mut top = Vec::with_capacity(16);
    reader.object(max_depth, Some(&mut top))?;
    reader.ended().then_some(top)
}

/// Whether `text` is one object that [`members`] would accept.
pub(super) fn is_object(text: &str, max_depth: usize) -> bool {
    let mut reader = Reader::new(text, max_depth);
    reader.object(max_depth, None).is_some() && reader.ended()
}

/// The text of a string value, unescaped.
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { unescape(inner).map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

struct Reader<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    /// The names of every object that is open, innermost last: one allocation for a whole line.
    names: Vec<Cow<'t, str>>,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str, max_depth: usize) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0, names: Vec::with_capacity(max_depth.min(16)) }
    }

    fn ended(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    fn object(&mut self, depth: usize, mut keep: Option<&mut Vec<Member<'t>>>) -> Option<()> {
        let below = depth.checked_sub(1)?;
        let base = self.names.len();
        self.eat(b'{')?;
        self.blanks();
        if self.eat(b'}').is_some() {
            return Some(());
        }
        loop {
            self.blanks();
            let name = self.name()?;
            self.blanks();
            self.eat(b':')?;
            self.blanks();
            let from = self.at;
            self.names.push(name.clone());
            self.value(below)?;
            if let Some(top) = keep.as_deref_mut() {
                top.push((name, &self.text[from..self.at]));
            }
            self.blanks();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => break,
                _ => return None,
            }
        }
        self.at += 1;
        let distinct = all_distinct(&mut self.names[base..]);
        self.names.truncate(base);
        distinct.then_some(())
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        let below = depth.checked_sub(1)?;
        self.eat(b'[')?;
        self.blanks();
        if self.eat(b']').is_some() {
            return Some(());
        }
        loop {
            self.blanks();
            self.value(below)?;
            self.blanks();
            match self.peek()? {
                b',' => self.at += 1,
                b']' => break,
                _ => return None,
            }
        }
        self.at += 1;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(depth, None),
            b'[' => self.array(depth),
            b'"' => self.string().map(drop),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.bytes[self.at..].starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }

    fn name(&mut self) -> Option<Cow<'t, str>> {
        let raw = self.string()?;
        if raw.contains('\\') { unescape(raw).map(Cow::Owned) } else { Some(Cow::Borrowed(raw)) }
    }

    /// Passes a string and returns what stands between its quotes; its escapes are checked.
    fn string(&mut self) -> Option<&'t str> {
        self.eat(b'"')?;
        let from = self.at;
        let mut escaped = false;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
        let raw = &self.text[from..self.at];
        self.at += 1;
        (!escaped || unescape(raw).is_some()).then_some(raw)
    }
}

/// Whether no two names are equal. A long list is sorted, so that a hostile line cannot make this quadratic.
fn all_distinct(names: &mut [Cow<'_, str>]) -> bool {
    if names.len() <= 8 {
        return names.iter().enumerate().all(|(i, name)| !names[..i].contains(name));
    }
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

fn unescape(inner: &str) -> Option<String> {
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = *rest.as_bytes().get(at + 1)?;
        rest = &rest[at + 1..];
        let plain = match code {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (unicode, after) = unicode_escape(rest)?;
                out.push(unicode);
                rest = after;
                continue;
            }
            _ => return None,
        };
        out.push(plain);
        rest = &rest[1..];
    }
    out.push_str(rest);
    Some(out)
}

/// Reads `uXXXX`, or `uXXXX\uXXXX` for a surrogate pair.
fn unicode_escape(text: &str) -> Option<(char, &str)> {
    let first = hex4(text.get(1..5)?)?;
    if !(0xd800..0xe000).contains(&first) {
        return Some((char::from_u32(first)?, &text[5..]));
    }
    let second = hex4(text.get(5..)?.strip_prefix("\\u")?.get(..4)?)?;
    if first >= 0xdc00 || !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    Some((char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))?, &text[11..]))
}

fn hex4(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for good in [
            "{}",
            r#"{"a":1}"#,
            r#"{ "a" : [ 1 , -0.5e+3 , null ] , "b" : {"a":true} }"#,
            r#"{"\ud83d\ude00":"\u0000\/\b\f\n\r\t\"\\"}"#,
            r#"{"a":{"x":1},"b":{"x":1}}"#,
        ] {
            assert!(is_object(good, 8), "{good}");
            assert!(serde_json::from_str::<Value>(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "[]",
            "{} ",
            "{}{}",
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"n":{"a":1,"b":2,"a":3}}"#,
            r#"{"n":[[{"a":1,"a":1}]]}"#,
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":+1}"#,
            r#"{"a":NaN}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\udc00\ud800"}"#,
            r#"{"a":"\x41"}"#,
            r#"{"a":"\u+123"}"#,
            "{\"a\":\"\n\"}",
            "{\n\"a\":1}",
            r#"{"a":"unended}"#,
            r#"{"a":"unended\"#,
        ] {
            assert!(!is_object(bad, 8), "{bad:?}");
        }
        assert!(is_object(r#"{"a":[[1]]}"#, 3) && !is_object(r#"{"a":[[1]]}"#, 2));
        let many: Vec<String> = (0..20).map(|i| format!("\"k{}\":0", i % 19)).collect();
        assert!(!is_object(&format!("{{{}}}", many.join(",")), 8));
    }

    proptest! {
        #![proptest_config(crate::audit::tests::cases(256))]

        /// Whatever this reader accepts, `serde_json` accepts too and reads the same strings.
        #[test]
        fn nothing_is_accepted_that_is_not_json(text in r#"\{("[ab\\u01"]{0,6}":?(1|"[a\\nud80c"]{0,9}"|\[\]|\{\}),?){0,4}\}"#) {
            if let Some(found) = members(&text, 8) {
                let value: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(value.as_object().unwrap().len(), found.len());
                for (name, raw) in found {
                    let read = string(raw);
                    prop_assert_eq!(read.as_deref(), value[&*name].as_str());
                }
            }
        }

        #[test]
        fn every_string_survives(name in any::<String>(), value in any::<String>()) {
            let text = serde_json::json!({ &name: &value }).to_string();
            let found = members(&text, 8).unwrap();
            prop_assert_eq!(&*found[0].0, name.as_str());
            prop_assert_eq!(&*string(found[0].1).unwrap(), value.as_str());
        }
    }
}
