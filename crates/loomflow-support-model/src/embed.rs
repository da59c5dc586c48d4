//! What embedders share: texts in batches, and vectors that are checked and in the order of their texts.

use std::sync::Arc;

use loomflow_core::{Embedded, Error, ErrorKind, Result, Usage};

use crate::decode::broke_protocol;
use crate::tokens::EstimateTokens;

/// Splits texts into the batches of a provider's requests, and puts the answers together again.
///
/// ```
/// # use loomflow_core::{Embedded, Result, Usage};
/// # use loomflow_support_model::EmbedBatches;
/// # fn ask(batch: &[std::sync::Arc<str>]) -> Result<Embedded> {
/// #     Ok(Embedded::new(vec![[1.0].into(); batch.len()], Some(Usage::new(3, 0))))
/// # }
/// let texts = ["one", "two", "three"].map(Into::into);
/// let mut batches = EmbedBatches::new(&texts, 2, 1_000);
/// while let Some(batch) = batches.next_batch() {
///     batches.add(ask(batch))?;
/// }
/// assert_eq!(batches.finish().usage, Some(Usage::new(6, 0)));
/// # Ok::<(), loomflow_core::Error>(())
/// ```
#[derive(Debug)]
pub struct EmbedBatches<'t> {
    texts: &'t [Arc<str>],
    max_texts: usize,
    max_tokens: u64,
    /// How many texts were handed out.
    handed: usize,
    vectors: Vec<Arc<[f32]>>,
    usage: Option<Usage>,
}

impl<'t> EmbedBatches<'t> {
    /// Batches of at most `max_texts` texts and, by estimate, `max_tokens` tokens. A text that has more of them by itself
    /// is a batch of its own.
    #[must_use]
    pub fn new(texts: &'t [Arc<str>], max_texts: usize, max_tokens: u64) -> Self {
        let vectors = Vec::with_capacity(texts.len());
        Self { texts, max_texts, max_tokens, handed: 0, vectors, usage: Some(Usage::default()) }
    }

    /// The next texts to ask for; `None` when all were.
    pub fn next_batch(&mut self) -> Option<&'t [Arc<str>]> {
        let rest = &self.texts[self.handed..];
        let mut tokens = 0_u64;
        let fits = |text: &&Arc<str>| {
            tokens = tokens.saturating_add(EstimateTokens::text(text));
            tokens <= self.max_tokens
        };
        let count = rest.iter().take(self.max_texts).take_while(fits).count().max(1).min(rest.len());
        self.handed += count;
        Some(&rest[..count]).filter(|batch| !batch.is_empty())
    }

    /// Takes the answer to the batch handed out last.
    ///
    /// # Errors
    ///
    /// The answer's error. Behind a batch that was billed it becomes one that charges, whatever its kind was: an order that
    /// was taken in part was taken.
    pub fn add(&mut self, answer: Result<Embedded>) -> Result<()> {
        let part = answer.map_err(|error| after(self.vectors.len(), self.texts.len(), error))?;
        self.vectors.extend(part.vectors);
        self.usage = match (self.usage, part.usage) {
            (Some(mut sum), Some(part)) => {
                sum += part;
                Some(sum)
            }
            // What one batch used is not known, so neither is the sum.
            _ => None,
        };
        Ok(())
    }

    /// The vectors of all texts, in their order, and what they used.
    #[must_use]
    pub fn finish(self) -> Embedded {
        Embedded::new(self.vectors, self.usage)
    }
}

/// The error of a later batch.
fn after(done: usize, of: usize, error: Error) -> Error {
    if done == 0 {
        return error;
    }
    let kind = match error.kind() {
        kind @ (ErrorKind::Timeout | ErrorKind::Transport | ErrorKind::Internal) => kind,
        _ => ErrorKind::Transport,
    };
    let message = format!("after {done} of {of} texts were embedded: {}", error.message());
    let wrapped = Error::new(kind, message).with_retryable(error.is_retryable());
    let wrapped = error.context().iter().fold(wrapped, |e, (name, value)| e.with_context(name, value));
    match error.retry_after() {
        Some(wait) => wrapped.with_retry_after(wait),
        None => wrapped,
    }
    .with_source(error)
}

/// The vectors of an answer in the order of their texts: one for each of `texts`, of `dimensions` finite components. A
/// vector without an index belongs to the text in its place.
///
/// # Errors
///
/// [`broke_protocol`] for anything else. It is an error that charges: the provider has done its work.
pub fn vectors_in_order(
    answer: Vec<(Option<u64>, Vec<f32>)>,
    texts: usize,
    dimensions: usize,
) -> Result<Vec<Arc<[f32]>>> {
    let count = answer.len();
    let mut places: Vec<Option<Arc<[f32]>>> = vec![None; texts];
    for (at, (index, vector)) in answer.into_iter().enumerate() {
        if vector.len() != dimensions {
            return Err(broke_protocol(format!(
                "a vector has {} components where {dimensions} are configured",
                vector.len()
            )));
        }
        if !vector.iter().all(|component| component.is_finite()) {
            return Err(broke_protocol("a vector has a component that is not a finite number"));
        }
        let place = index.map_or(Some(at), |index| usize::try_from(index).ok());
        let place = place.and_then(|place| places.get_mut(place)).filter(|place| place.is_none());
        let Some(place) = place else {
            return Err(broke_protocol(match index {
                Some(_) => "a vector's index names no text, or one that has a vector".to_owned(),
                None => format!("the answer has {count} vectors for {texts} texts"),
            }));
        };
        *place = Some(vector.into());
    }
    let vectors: Option<Vec<_>> = places.into_iter().collect();
    vectors.ok_or_else(|| broke_protocol(format!("the answer has {count} vectors for {texts} texts")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn texts(lengths: &[usize]) -> Vec<Arc<str>> {
        lengths.iter().map(|length| "abc".repeat(*length).into()).collect()
    }

    fn sizes(texts: &[Arc<str>], max_texts: usize, max_tokens: u64) -> Vec<usize> {
        let mut batches = EmbedBatches::new(texts, max_texts, max_tokens);
        std::iter::from_fn(|| batches.next_batch().map(<[_]>::len)).collect()
    }

    #[test]
    fn batches_are_bounded_both_ways_and_lose_nothing() {
        assert_eq!(sizes(&texts(&[1; 10]), 4, 100), [4, 4, 2]);
        assert_eq!(sizes(&texts(&[60, 40, 1, 99, 2]), 4, 100), [2, 2, 1]);
        assert_eq!(sizes(&texts(&[500, 1, 500, 500]), 4, 100), [1, 1, 1, 1], "one of any size goes");
        assert_eq!(sizes(&texts(&[1, 1]), 0, 0), [1, 1], "a bound of nothing still moves on");
        assert!(sizes(&[], 4, 100).is_empty());
    }

    fn part(vector: f32, tokens: Option<u64>) -> Embedded {
        Embedded::new(vec![[vector].into()], tokens.map(|tokens| Usage::new(tokens, 0)))
    }

    #[test]
    fn usage_is_the_sum_where_all_of_it_is_known() {
        let all = texts(&[1, 1]);
        for (second, expected) in [(Some(4), Some(Usage::new(7, 0))), (None, None)] {
            let mut batches = EmbedBatches::new(&all, 1, 9);
            batches.next_batch();
            batches.add(Ok(part(1.0, Some(3)))).unwrap();
            batches.next_batch();
            batches.add(Ok(part(2.0, second))).unwrap();
            let done = batches.finish();
            assert_eq!(done.usage, expected);
            assert_eq!(done.vectors, [[1.0].into(), [2.0].into()]);
        }
    }

    #[test]
    fn an_error_behind_a_billed_batch_charges() {
        let all = texts(&[1, 1]);
        for (kind, expected) in [
            (ErrorKind::RateLimited, ErrorKind::Transport),
            (ErrorKind::Auth, ErrorKind::Transport),
            (ErrorKind::Unreachable, ErrorKind::Transport),
            (ErrorKind::Timeout, ErrorKind::Timeout),
            (ErrorKind::Internal, ErrorKind::Internal),
        ] {
            let error = || {
                Error::new(kind, "no")
                    .with_retry_after(Duration::from_secs(3))
                    .with_context("request_id", "r")
            };
            let mut batches = EmbedBatches::new(&all, 1, 9);
            batches.next_batch();
            assert_eq!(batches.add(Err(error())).unwrap_err().kind(), kind, "nothing was billed yet");
            let mut batches = EmbedBatches::new(&all, 1, 9);
            batches.next_batch();
            batches.add(Ok(part(1.0, None))).unwrap();
            batches.next_batch();
            let late = batches.add(Err(error())).unwrap_err();
            assert_eq!((late.kind(), late.is_retryable()), (expected, error().is_retryable()));
            assert_eq!(late.retry_after(), Some(Duration::from_secs(3)));
            assert_eq!(late.context(), error().context());
            assert!(late.message().contains("after 1 of 2 texts"), "{late}");
        }
    }

    #[test]
    fn vectors_come_in_the_order_of_their_texts_or_not_at_all() {
        let read = |answer: &[(Option<u64>, &[f32])]| {
            vectors_in_order(answer.iter().map(|(index, vector)| (*index, vector.to_vec())).collect(), 2, 1)
        };
        let (one, two): (&[f32], &[f32]) = (&[1.0], &[2.0]);
        assert_eq!(read(&[(Some(1), two), (Some(0), one)]).unwrap(), [one.into(), two.into()]);
        assert_eq!(read(&[(None, one), (None, two)]).unwrap(), [one.into(), two.into()]);
        for bad in [
            &[(None, one)][..],
            &[(None, one), (None, one), (None, one)],
            &[(Some(0), one), (Some(0), two)],
            &[(Some(0), one), (Some(1), two), (Some(1), two)],
            &[(Some(0), one), (Some(40_000_000), two)],
            &[(Some(0), one), (Some(u64::MAX), two)],
            &[(None, one), (None, &[])],
            &[(None, one), (None, &[1.0, 2.0])],
            &[(None, one), (None, &[f32::INFINITY])],
            &[(None, one), (None, &[f32::NAN])],
        ] {
            assert_eq!(read(bad).unwrap_err().kind(), ErrorKind::Transport, "{bad:?}");
        }
    }
}
