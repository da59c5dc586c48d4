//! Just enough of Rust's lexer: code without comments and string contents, and which of it is test code.

/// A source file, split.
#[derive(Debug)]
pub(super) struct Source {
    /// Code as one line of text: comments gone, string contents replaced by `x`, blanks only where two words meet.
    code: String,
    /// The line each byte of `code` came from, from 1.
    lines: Vec<usize>,
    /// Comments and documentation, by line.
    pub(super) comments: Vec<(usize, String)>,
    /// Byte ranges of `code` that are compiled for tests only.
    tests: Vec<(usize, usize)>,
}

impl Source {
    /// Splits `text`.
    pub(super) fn parse(text: &str) -> Self {
        let (masked, comments) = mask(text);
        let (code, lines) = compact(&masked);
        let tests = test_regions(&code);
        Self { code, lines, comments, tests }
    }

    /// Where `needle` (written without needless blanks) occurs as whole words: its line, and whether that is test code.
    pub(super) fn find<'s>(&'s self, needle: &'s str) -> impl Iterator<Item = (usize, bool)> + 's {
        self.code
            .match_indices(needle)
            .filter(|(at, _)| self.whole_words(*at, needle))
            .map(|(at, _)| (self.lines[at], self.tests.iter().any(|(from, to)| (*from..*to).contains(&at))))
    }

    /// The code around line `line`, for rules that need to look at the item.
    pub(super) fn line_of_code(&self, line: usize) -> String {
        self.code.bytes().zip(&self.lines).filter(|(_, l)| **l == line).map(|(b, _)| char::from(b)).collect()
    }

    /// Lines of the file that are not test code.
    pub(super) fn shipped_lines(&self, text: &str) -> usize {
        let test_lines: usize = self
            .tests
            .iter()
            .map(|(from, to)| self.lines[to.saturating_sub(1)].saturating_sub(self.lines[*from]) + 1)
            .sum();
        text.lines().count().saturating_sub(test_lines)
    }

    /// Names of modules that are declared for tests only and lie in files of their own.
    pub(super) fn test_modules(&self) -> Vec<&str> {
        self.tests
            .iter()
            .filter_map(|(from, to)| {
                let item = self.code[*from..*to].strip_suffix(';')?;
                let name = item.rsplit(' ').next()?;
                item.contains("mod ").then_some(name)
            })
            .collect()
    }

    fn whole_words(&self, at: usize, needle: &str) -> bool {
        let code = self.code.as_bytes();
        let end = at + needle.len();
        let joins = |a: u8, b: u8| is_word(a) && is_word(b);
        let before = at > 0 && joins(code[at - 1], code[at]);
        let after = end < code.len() && joins(code[end - 1], code[end]);
        !before && !after
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Replaces comments by blanks and string contents by `x` (blanks in them stay), line for line.
fn mask(text: &str) -> (String, Vec<(usize, String)>) {
    let chars: Vec<char> = text.chars().map(|c| if c.is_ascii() { c } else { 'x' }).collect();
    let real: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut comments = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < chars.len() {
        let end = token_end(&chars, at);
        let is_comment = chars[at] == '/' && end - at > 1;
        let is_text = !is_comment && end - at > 1;
        if is_comment {
            let whole: String = real[at..end].iter().collect();
            comments.extend(whole.lines().enumerate().map(|(i, part)| (line + i, part.to_owned())));
        }
        for (i, c) in chars[at..end].iter().enumerate() {
            let edge = is_text && (i == 0 || i + 1 == end - at || *c == '"');
            out.push(match c {
                '\n' => '\n',
                _ if is_comment => ' ',
                _ if !is_text || edge || c.is_whitespace() => *c,
                _ => 'x',
            });
            line += usize::from(*c == '\n');
        }
        at = end;
    }
    (out, comments)
}

/// The end of the comment or literal that begins at `at`; `at + 1` when it is neither.
fn token_end(chars: &[char], at: usize) -> usize {
    let next = |i: usize| chars.get(i).copied();
    match chars[at] {
        '/' if next(at + 1) == Some('/') => find(chars, at, |c| c[0] == '\n'),
        '/' if next(at + 1) == Some('*') => block_comment_end(chars, at),
        '"' => quoted_end(chars, at + 1, '"'),
        '\'' if next(at + 1) == Some('\\') => quoted_end(chars, at + 1, '\''),
        '\'' if next(at + 2) == Some('\'') => at + 3,
        'r' | 'b' | 'c' if at == 0 || !is_word_char(chars[at - 1]) => {
            raw_string_end(chars, at).unwrap_or(at + 1)
        }
        _ => at + 1,
    }
}

fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn find(chars: &[char], from: usize, stop: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|i| stop(&chars[*i..])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut i = at;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) if depth == 1 => return i + 2,
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    chars.len()
}

fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut i = from;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// The end of `r"..."`, `br#"..."#` and the like; `None` when it is a word.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let r = at + usize::from(chars[at] != 'r');
    if chars.get(r) != Some(&'r') {
        return None;
    }
    let hashes = chars[r + 1..].iter().take_while(|c| **c == '#').count();
    let open = r + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |c: &[char]| c[0] == '"' && c.len() > hashes && c[1..=hashes].iter().all(|c| *c == '#');
    Some((find(chars, open + 1, closes) + hashes + 1).min(chars.len()))
}

/// Takes blanks out, except one where two words would otherwise become one.
fn compact(masked: &str) -> (String, Vec<usize>) {
    let (mut code, mut lines) = (String::with_capacity(masked.len()), Vec::with_capacity(masked.len()));
    let (mut line, mut gap) = (1, false);
    for c in masked.chars() {
        line += usize::from(c == '\n');
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        if gap && is_word_char(c) && code.ends_with(is_word_char) {
            code.push(' ');
            lines.push(line);
        }
        gap = false;
        code.push(c);
        lines.push(line);
    }
    (code, lines)
}

/// The ranges of items under `#[cfg(test)]`.
fn test_regions(code: &str) -> Vec<(usize, usize)> {
    let mut regions: Vec<(usize, usize)> = Vec::new();
    let starts = ["#[cfg(test)]", "#[cfg(all(test,"];
    let mut found: Vec<usize> = starts.iter().flat_map(|s| code.match_indices(s).map(|(at, _)| at)).collect();
    found.sort_unstable();
    for at in found {
        if regions.last().is_none_or(|(_, end)| at >= *end) {
            regions.push((at, item_end(code.as_bytes(), at)));
        }
    }
    regions
}

/// The end of the item whose first attribute begins at `at`: its `;`, or the brace that closes its block.
fn item_end(code: &[u8], at: usize) -> usize {
    let (mut depth, mut i) = (0_usize, at);
    while i < code.len() {
        match code[i] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'}' if depth <= 1 => return i + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return i + 1,
            _ => {}
        }
        i += 1;
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(text: &str, needle: &str) -> Vec<(usize, bool)> {
        Source::parse(text).find(needle).collect()
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let text = "// todo!()\n/* todo!() /* todo!() */ */ /// todo!()\nlet s = \"todo!() \\\" todo!()\";\n\
                    let r = r#\"todo!() \" todo!()\"#; let c = '\"'; let e = '\\'';\ntodo!();\n";
        assert_eq!(hits(text, "todo!"), [(5, false)]);
    }

    #[test]
    fn lifetimes_and_raw_words_are_not_literals() {
        assert_eq!(hits("fn f<'a>(x: &'a str) { r#type(); dbg!(x) }", "dbg!"), [(1, false)]);
        assert_eq!(hits("let b = b\"dbg!(1)\"; let c = b'x'; dbg!(2)", "dbg!"), [(1, false)]);
    }

    #[test]
    fn words_are_whole() {
        assert!(hits("my_dbg!(1); dbgs", "dbg!").is_empty());
        assert_eq!(hits("use  danger ;\n x::\n danger :: y", "danger").len(), 2);
        assert!(hits("endanger::x; danger_zone", "danger").is_empty());
    }

    #[test]
    fn an_empty_string_keeps_its_shape_over_lines() {
        assert_eq!(hits("x\n.expect(\n\"\"\n)", ".expect(\"\")"), [(2, false)]);
        assert!(hits("x.expect(\"why\")", ".expect(\"\")").is_empty());
    }

    #[test]
    fn test_items_are_known_by_their_braces() {
        let text = "fn a() { danger }\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n fn b() { danger }\n}\nfn c() { danger }\n\
                    #[cfg(test)] use danger;\n#[cfg(any(test, feature = \"x\"))] use danger;";
        assert_eq!(
            hits(text, "danger"),
            [(1, false), (5, true), (7, false), (8, true), (9, false)],
            "only what ships without tests"
        );
    }

    #[test]
    fn test_modules_in_files_of_their_own_are_named() {
        let source =
            Source::parse("#[cfg(test)]\nmod tests;\n#[cfg(test)]\npub(crate) mod support;\nmod real;");
        assert_eq!(source.test_modules(), ["tests", "support"]);
    }

    #[test]
    fn shipped_lines_leave_the_tests_out() {
        let text = "//! x\nfn a() {}\n#[cfg(test)]\nmod tests {\n\n}\n";
        assert_eq!(Source::parse(text).shipped_lines(text), 2);
    }

    #[test]
    fn comments_keep_their_lines() {
        let source = Source::parse("fn a() {}\n/* one\n two */ // three\n");
        let lines: Vec<usize> = source.comments.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 3]);
    }
}
