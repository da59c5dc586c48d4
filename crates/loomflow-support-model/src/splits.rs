//! The laws of every decoder as functions that panic: what tests and fuzz targets of adapters are made of.
//!
//! However a body is split, its reply is the same; it ends with exactly one [`Delta::Done`] or with an error; what comes
//! out is bounded by what went in; and nothing panics.

use loomflow_core::{Delta, ErrorKind};

use crate::decode::Decode;
use crate::sse::EventReader;

/// What a decoder may put out for each byte of its input. A call's arguments come twice (in pieces, and whole), and what a
/// provider wants back is written as JSON once more.
const GROWTH: usize = 8;
/// And beyond that, whatever the input.
const FIXED: usize = 16 << 10;

/// A reply, with adjacent pieces of one kind put together.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Decoded {
    /// Every piece up to the end or the error.
    pub deltas: Vec<Delta>,
    /// What it failed with, and whether trying again may help.
    pub error: Option<(ErrorKind, bool)>,
}

/// Feeds a decoder as a connection does: piece by piece, not beyond the reply's own end, and nothing after an error.
#[must_use]
pub fn decode<'b>(mut decoder: impl Decode, pieces: impl IntoIterator<Item = &'b [u8]>) -> Decoded {
    let mut deltas = Vec::new();
    let mut pushed = Ok(());
    for piece in pieces {
        pushed = decoder.push(piece, &mut deltas);
        if pushed.is_err() || decoder.ended() {
            break;
        }
    }
    let error = pushed.and_then(|()| decoder.finish(&mut deltas)).err();
    Decoded { deltas: joined(deltas), error: error.map(|error| (error.kind(), error.is_retryable())) }
}

/// Checks every law on one body: whole, byte by byte, and cut at places that follow from the bytes themselves. Returns
/// the reply.
///
/// # Panics
///
/// When a law is broken.
pub fn check<D: Decode>(make: impl Fn() -> D, body: &[u8]) -> Decoded {
    let whole = decode(make(), [body]);
    well_formed(&whole, body.len());
    let bytes = decode(make(), body.chunks(1));
    assert!(bytes == whole, "byte by byte: {}", difference(&bytes, &whole));
    for cuts in cuts_of(body) {
        same_at(&make, body, &cuts, &whole);
    }
    whole
}

/// Checks that a body which is cut at `cuts` decodes to `whole`. Cuts beyond the body are taken as its end.
///
/// # Panics
///
/// When it does not.
pub fn same_at<D: Decode>(make: impl Fn() -> D, body: &[u8], cuts: &[usize], whole: &Decoded) {
    let split = decode(make(), pieces(body, cuts));
    assert!(split == *whole, "cut at {cuts:?}: {}", difference(&split, whole));
}

/// Checks that a stream's events are the same however it is split, and bounded by `max` and by the stream.
///
/// # Panics
///
/// When they are not.
pub fn check_events(stream: &[u8], max: usize) {
    let whole = events([stream], max);
    let bytes: usize = whole.iter().flatten().map(|(name, data)| name.len() + data.len()).sum();
    let named = whole.iter().filter(|event| event.is_ok()).count() * "message".len();
    assert!(bytes <= stream.len() + named, "{bytes} bytes of events out of {} bytes", stream.len());
    for (name, data) in whole.iter().flatten() {
        assert!(
            name.len() <= max.max("message".len()) && data.len() <= max,
            "an event is larger than {max} bytes"
        );
    }
    assert!(events(stream.chunks(1), max) == whole, "byte by byte: other events");
    for cuts in cuts_of(stream) {
        assert!(events(pieces(stream, &cuts), max) == whole, "cut at {cuts:?}: other events");
    }
}

type EventOrError = Result<(String, String), ErrorKind>;

fn events<'b>(pieces: impl IntoIterator<Item = &'b [u8]>, max: usize) -> Vec<EventOrError> {
    let (mut reader, mut events) = (EventReader::new(max), Vec::new());
    let mut pushed = Ok(());
    for piece in pieces {
        pushed = reader.push(piece, &mut |event| {
            events.push(Ok((event.name.to_owned(), event.data.to_owned())));
            Ok(())
        });
        if pushed.is_err() {
            break;
        }
    }
    let finished = pushed.and_then(|()| {
        reader.finish(&mut |event| {
            events.push(Ok((event.name.to_owned(), event.data.to_owned())));
            Ok(())
        })
    });
    events.extend(finished.err().map(|error| Err(error.kind())));
    events
}

fn joined(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut all: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (all.last_mut(), &delta) {
            (_, Delta::Text(more) | Delta::Reasoning(more) | Delta::Arguments(more)) if more.is_empty() => {}
            (Some(Delta::Text(text)), Delta::Text(more))
            | (Some(Delta::Reasoning(text)), Delta::Reasoning(more))
            | (Some(Delta::Arguments(text)), Delta::Arguments(more)) => {
                *text = [&**text, more].concat().into()
            }
            _ => all.push(delta),
        }
    }
    all
}

fn well_formed(reply: &Decoded, input: usize) {
    let done = |delta: &Delta| matches!(delta, Delta::Done(_));
    let ends = reply.deltas.iter().filter(|delta| done(delta)).count();
    match reply.error {
        None => {
            assert!(ends == 1 && reply.deltas.last().is_some_and(done), "{ends} ends, the last must be one")
        }
        Some(error) => assert!(ends == 0, "an end, and then {error:?}"),
    }
    let output: usize = reply.deltas.iter().map(size).sum();
    assert!(output <= FIXED + GROWTH * input, "{output} bytes of reply out of {input} bytes of body");
}

fn size(delta: &Delta) -> usize {
    match delta {
        Delta::Text(text) | Delta::Reasoning(text) | Delta::Arguments(text) | Delta::ProviderState(text) => {
            text.len()
        }
        Delta::ToolCall(call) => call.id.len() + call.name.len() + call.arguments.len(),
        Delta::Done(done) => done.request_id.as_ref().map_or(0, String::len),
        _ => 0,
    }
}

/// The pieces of `body` between the cuts, empty ones included.
fn pieces<'b>(body: &'b [u8], cuts: &[usize]) -> Vec<&'b [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(body.len())).collect();
    cuts.extend([0, body.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect()
}

/// Three ways to cut a body, from few places to many. The same body is always cut the same way, so that a failure comes
/// again.
fn cuts_of(body: &[u8]) -> [Vec<usize>; 3] {
    // FNV-1a, and then a linear congruential generator: nothing here has to be unpredictable.
    let mut random = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap_or_default() % limit.max(1)
    };
    [1, 3, body.len() / 16 + 2].map(|places| (0..places).map(|_| below(body.len() + 1)).collect())
}

/// Where two replies part, short enough to read.
fn difference(split: &Decoded, whole: &Decoded) -> String {
    let at = split.deltas.iter().zip(&whole.deltas).take_while(|(a, b)| a == b).count();
    let shown = |reply: &Decoded| {
        let mut text = format!("{:?}, error {:?}", reply.deltas.get(at), reply.error);
        if let Some((end, _)) = text.char_indices().nth(600) {
            text.truncate(end);
        }
        text
    };
    format!("piece {at} is {}; as a whole it is {}", shown(split), shown(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::broke_protocol;
    use loomflow_core::{Done, Error, Result, StopReason, ToolCall};
    use proptest::prelude::*;

    /// What is wrong with the decoder under test.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Flaw {
        None,
        /// Takes each push for a whole number of letters.
        ForgetsHalfLetters,
        /// Says more than it was told.
        Grows,
        EndsTwice,
        NeverEnds,
        /// Takes what stands behind the end for a part of the reply, where it comes in one piece with it.
        ReadsOn,
    }

    /// Reads lower-case letters as text, `!` as a call, `.` as the end, anything else as an error.
    #[derive(Debug)]
    struct Letters {
        flaw: Flaw,
        half: Vec<u8>,
        ended: bool,
    }

    impl Letters {
        fn with(flaw: Flaw) -> Self {
            Self { flaw, half: Vec::new(), ended: false }
        }
    }

    impl Decode for Letters {
        fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<()> {
            for byte in bytes {
                if self.ended && self.flaw != Flaw::ReadsOn {
                    return Ok(());
                }
                match byte {
                    b'a'..=b'z' if self.flaw == Flaw::Grows => {
                        out.push(Delta::Text("x".repeat(20_000).into()))
                    }
                    b'a'..=b'z' => out.push(Delta::Text((*byte as char).to_string().into())),
                    b'!' => out.push(Delta::ToolCall(ToolCall::new("1", "t", "{}"))),
                    b'.' => self.ended = true,
                    // The two halves of one letter.
                    0xc3 => self.half.push(*byte),
                    0xa9 if self.half.pop().is_some() => out.push(Delta::Text("é".into())),
                    _ => return Err(broke_protocol("not a letter")),
                }
            }
            if self.flaw == Flaw::ForgetsHalfLetters {
                self.half.clear();
            }
            Ok(())
        }

        fn ended(&self) -> bool {
            self.ended
        }

        fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
            if !self.ended && self.flaw != Flaw::NeverEnds {
                return Err(Error::new(ErrorKind::Truncated, "cut"));
            }
            let ends = match self.flaw {
                Flaw::EndsTwice => 2,
                Flaw::NeverEnds => 0,
                _ => 1,
            };
            out.extend((0..ends).map(|_| Delta::Done(Done::without_usage(StopReason::End))));
            Ok(())
        }
    }

    const BODY: &[u8] = "abc!défg!h.".as_bytes();

    #[test]
    fn a_good_decoder_passes_and_its_reply_is_joined() {
        let reply = check(|| Letters::with(Flaw::None), BODY);
        assert_eq!(reply.deltas.len(), 6);
        assert_eq!(reply.deltas[0], Delta::Text("abc".into()));
        assert_eq!(check(|| Letters::with(Flaw::None), b"ab").error, Some((ErrorKind::Truncated, false)));
        assert_eq!(check(|| Letters::with(Flaw::None), b"a?.").error, Some((ErrorKind::Transport, false)));
        check(|| Letters::with(Flaw::None), b"");
    }

    #[test]
    fn every_flaw_is_seen() {
        for (flaw, body) in [
            (Flaw::ForgetsHalfLetters, BODY),
            (Flaw::Grows, BODY),
            (Flaw::EndsTwice, BODY),
            (Flaw::NeverEnds, BODY),
            (Flaw::ReadsOn, b"a.b"),
        ] {
            let caught = std::panic::catch_unwind(|| check(|| Letters::with(flaw), body));
            assert!(caught.is_err(), "{flaw:?}");
        }
    }

    #[test]
    fn cuts_anywhere_lose_no_byte() {
        for cuts in [&[][..], &[0], &[3, 3, 1], &[400, 2]] {
            assert_eq!(pieces(BODY, cuts).concat(), BODY, "{cuts:?}");
        }
    }

    proptest! {
        #[test]
        fn the_event_reader_keeps_the_laws(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            text in "(data|event|id)?(:| |: |\u{feff}|é|x|\r|\n|\r\n|\n\n){0,40}",
            max in 0_usize..64,
        ) {
            check_events(&bytes, max);
            check_events(text.as_bytes(), max);
            check_events(&[text.as_bytes(), &bytes].concat(), max);
        }
    }
}
