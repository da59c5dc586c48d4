//! A reader of event streams (`text/event-stream`, WHATWG HTML §9.2.6) with a bound on every event.
//!
//! Lines end with LF, CRLF or CR, wherever the bytes were split. Each byte is looked at once, and what is buffered is at
//! most one line and one event.

use loomflow_core::Result;

use crate::decode::broke_protocol;

/// One event of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event<'a> {
    /// Its name; `message` when the stream gave none.
    pub name: &'a str,
    /// Its data lines, joined by line feeds.
    pub data: &'a str,
}

/// Reads events out of bytes that arrive in any portions.
#[derive(Debug)]
pub struct EventReader {
    max: usize,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    name: String,
    data: String,
    has_data: bool,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// Bytes of a byte order mark at the very beginning that were seen.
    started: bool,
}

impl EventReader {
    /// A reader that refuses an event, and a line, of more than `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            line: Vec::new(),
            name: String::new(),
            data: String::new(),
            has_data: false,
            after_cr: false,
            started: false,
        }
    }

    /// Takes the next bytes and hands each event that they complete to `on`.
    ///
    /// # Errors
    ///
    /// [`broke_protocol`] for an event that is too large or not UTF-8, and whatever `on` fails with.
    pub fn push(&mut self, mut bytes: &[u8], on: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                return self.keep(bytes);
            };
            self.after_cr = bytes[end] == b'\r';
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.line.is_empty() {
                // Refused as it would be in portions: how the bytes arrive decides nothing.
                self.within(line.len())?;
                self.take_line(line, on)?;
            } else {
                self.keep(line)?;
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, on)?;
                // Its room is used again, unless one large event made it large.
                if line.capacity() <= 16 << 10 {
                    self.line = line;
                    self.line.clear();
                }
            }
        }
        Ok(())
    }

    /// The stream is over. An event whose lines are all there, and only its closing blank line is not, is handed on;
    /// a line without its end is not.
    ///
    /// # Errors
    ///
    /// Whatever `on` fails with.
    pub fn finish(&mut self, on: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        self.line.clear();
        self.dispatch(on)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<()> {
        self.within(self.line.len() + bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn within(&self, bytes: usize) -> Result<()> {
        if bytes <= self.max {
            return Ok(());
        }
        Err(broke_protocol(format!("an event of the reply is larger than {} bytes", self.max)))
    }

    fn take_line(&mut self, line: &[u8], on: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        let mut line = line;
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(on);
        }
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => {
                self.within(self.data.len() + 1 + value.len())?;
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(utf8(value)?);
            }
            b"event" => {
                self.within(value.len())?;
                self.name.clear();
                self.name.push_str(utf8(value)?);
            }
            // Comments, ids, retry times and fields to come.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, on: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        let handed = if self.has_data {
            let name = if self.name.is_empty() { "message" } else { &self.name };
            on(Event { name, data: &self.data })
        } else {
            Ok(())
        };
        self.has_data = false;
        self.name.clear();
        self.data.clear();
        self.data.shrink_to(16 << 10);
        handed
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    // The standard says to replace what is not UTF-8; a tool's arguments must not be altered in silence.
    std::str::from_utf8(bytes).map_err(|_| broke_protocol("an event of the reply is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Events = Vec<(String, String)>;

    fn read(pieces: &[&[u8]], max: usize) -> Result<Events> {
        let (mut reader, mut events) = (EventReader::new(max), Events::new());
        let mut on = |event: Event<'_>| {
            events.push((event.name.to_owned(), event.data.to_owned()));
            Ok(())
        };
        for piece in pieces {
            reader.push(piece, &mut on)?;
        }
        reader.finish(&mut on)?;
        Ok(events)
    }

    fn one(name: &str, data: &str) -> (String, String) {
        (name.to_owned(), data.to_owned())
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        let stream = "\u{feff}: comment\nevent: a\ndata: 1\ndata:2\ndata\nid: 7\n\ndata:  x\r\rdata: y\r\n\r\nevent: lost\n\n\ndata: last\n";
        let expected =
            vec![one("a", "1\n2\n"), one("message", " x"), one("message", "y"), one("message", "last")];
        assert_eq!(read(&[stream.as_bytes()], 100).unwrap(), expected);
    }

    #[test]
    fn every_split_reads_the_same() {
        let stream =
            "event: é\r\ndata: {\"a\":\"日本\"}\r\n\r\ndata: 2\n\n:c\rdata: 3\r\revent: x\r\ndata: 4\r\n"
                .as_bytes();
        let whole = read(&[stream], 100).unwrap();
        assert_eq!(whole.len(), 4);
        for a in 0..=stream.len() {
            for b in a..=stream.len() {
                let split = read(&[&stream[..a], &stream[a..b], &stream[b..]], 100).unwrap();
                assert_eq!(split, whole, "split at {a} and {b}");
            }
        }
    }

    #[test]
    fn a_line_without_its_end_is_not_an_event() {
        assert!(read(&[b"data: 1"], 100).unwrap().is_empty());
        assert_eq!(read(&[b"data: 1\ndata: 2"], 100).unwrap(), [one("message", "1")]);
    }

    #[test]
    fn events_and_lines_are_bounded() {
        assert!(read(&[b"data: 12345\n\n"], 16).is_ok());
        let long = format!("data: {}\n\n", "x".repeat(40));
        assert!(read(&[long.as_bytes()], 16).unwrap_err().message().contains("larger than 16 bytes"));
        let comment = format!(": {}\ndata: 1\n\n", "x".repeat(40));
        assert!(read(&[comment.as_bytes()], 16).is_err(), "a long line that is no data, whole");
        assert!(
            read(&[&comment.as_bytes()[..20], &comment.as_bytes()[20..]], 16).is_err(),
            "and in portions"
        );
        let pieces: Vec<&[u8]> = std::iter::repeat_n(&b"xxxx"[..], 10).collect();
        assert!(read(&pieces, 16).is_err(), "a line that never ends");
        let lines: Vec<&[u8]> = std::iter::repeat_n(&b"data: xxxx\n"[..], 10).collect();
        assert!(read(&lines, 16).is_err(), "an event that never ends");
    }

    #[test]
    fn what_is_not_utf8_is_refused() {
        assert!(read(&[b"data: \xff\n\n"], 100).is_err());
        assert!(read(&[b": \xff\n\ndata: 1\n\n"], 100).is_ok(), "a comment may be anything");
    }

    /// The standard's algorithm over the whole text at once.
    fn naive(text: &str) -> Events {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let (complete, _) = text.rsplit_once('\n').unwrap_or_default();
        let (mut events, mut name, mut data) = (Events::new(), String::new(), None::<String>);
        let lines = complete.split('\n').chain([""]);
        for line in lines {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    events.push((if name.is_empty() { "message".to_owned() } else { name.clone() }, data));
                }
                name.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => data = Some(data.map_or(value.to_owned(), |d| d + "\n" + value)),
                "event" => value.clone_into(&mut name),
                _ => {}
            }
        }
        events
    }

    proptest! {
        #[test]
        fn any_bytes_at_any_split_read_as_the_naive_reader_reads_them(
            lines in prop::collection::vec("(data|event|id|)(:| |: |)[a-z: é]{0,6}(\n|\r|\r\n|\n\n|\r\n\r\n)", 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let text = lines.concat();
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(read(&pieces, 1_000).unwrap(), naive(&text));
        }
    }
}
