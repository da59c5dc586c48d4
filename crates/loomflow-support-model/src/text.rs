//! Words of a provider, made fit for an error message.

/// The most characters of a provider's words that an error carries.
pub const MAX_PROVIDER_TEXT: usize = 500;

/// What a provider said, fit for an error: at most [`MAX_PROVIDER_TEXT`] characters, without control characters, and
/// with runs of white space as one blank.
#[must_use]
pub fn provider_text(text: &str) -> String {
    plain(text, MAX_PROVIDER_TEXT)
}

/// At most `max` characters of `text` on one line, without control characters.
pub(crate) fn plain(text: &str, max: usize) -> String {
    let (mut out, mut length, mut blank) = (String::new(), 0, false);
    for character in text.chars() {
        if character.is_whitespace() || character.is_control() || is_format(character) {
            blank = length > 0;
            continue;
        }
        if length >= max {
            out.push('…');
            break;
        }
        if std::mem::take(&mut blank) {
            out.push(' ');
            length += 1;
        }
        out.push(character);
        length += 1;
    }
    out
}

/// Characters that are not shown but turn or hide the text around them.
fn is_format(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_one_short_visible_line() {
        assert_eq!(provider_text(" a\r\n\tb\u{1b}[31m\u{202e}c "), "a b [31m c");
        let long = provider_text(&"é".repeat(2_000));
        assert_eq!(long.chars().count(), MAX_PROVIDER_TEXT + 1);
        assert!(long.ends_with('…'));
        assert_eq!(provider_text(""), "");
    }
}
