//! What a write is checked for before a store is touched.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Embedding;

const MAX_BLOCK_NAME: usize = 128;
/// What every store that computes with vectors can hold.
const MAX_COMPONENTS: usize = 16_000;

/// Whether `name` can name a block.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] when it is empty, longer than 128 bytes, or has a control character.
pub fn check_block_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > MAX_BLOCK_NAME {
        format!("is {} bytes long; at most {MAX_BLOCK_NAME} are allowed", name.len())
    } else if name.chars().any(char::is_control) {
        "has a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::invalid_input(format!("the name of a block {why}")).with_operation("put_block"))
}

/// Whether a vector can be stored or searched with.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] when it has no components, more than 16,000, or one that is not a finite number.
pub fn check_embedding(embedding: Option<&Embedding>, operation: &'static str) -> Result<()> {
    let Some(Embedding { vector, .. }) = embedding else { return Ok(()) };
    let why = if vector.is_empty() {
        "has no components"
    } else if vector.len() > MAX_COMPONENTS {
        "has more than 16,000 components"
    } else if vector.iter().any(|x| !x.is_finite()) {
        "has a component that is not a finite number"
    } else {
        return Ok(());
    };
    Err(Error::invalid_input(format!("the vector {why}")).with_operation(operation))
}

/// The model and the length of a partition's vectors: those of the first that was stored in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what makes two vectors comparable")]
pub struct Space {
    /// The embedder's name.
    pub model: Arc<str>,
    /// How many components a vector has.
    pub dimensions: usize,
}

impl Space {
    /// The space that a vector lies in.
    #[must_use]
    pub fn of(embedding: &Embedding) -> Self {
        Self { model: embedding.model.clone(), dimensions: embedding.vector.len() }
    }

    /// Whether a vector may be stored in, or compared with those of, a partition whose vectors lie in `stored`.
    ///
    /// - No vector, or a partition without any, fits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming both, and what to do: a vector of another model would find nothing, silently.
    pub fn check(
        stored: Option<&Self>,
        embedding: Option<&Embedding>,
        operation: &'static str,
    ) -> Result<()> {
        let (Some(stored), Some(given)) = (stored, embedding) else { return Ok(()) };
        if stored.model == given.model && stored.dimensions == given.vector.len() {
            return Ok(());
        }
        let message = format!(
            "this user's memory has vectors of `{}` with {} components, and this one is of `{}` with {}: the two cannot be \
             compared. Configure the embedder that the memory was made with, or erase the user's memory before another \
             embedder is used",
            stored.model,
            stored.dimensions,
            given.model,
            given.vector.len()
        );
        Err(Error::new(ErrorKind::Config, message).with_operation(operation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_vectors_of_one_model_and_length_are_of_one_space() {
        let stored = Space { model: "m".into(), dimensions: 2 };
        let check = |model: &str, vector: &[f32]| {
            Space::check(Some(&stored), Some(&Embedding::new(model, vector)), "recall").map_err(|e| e.kind())
        };
        assert_eq!(check("m", &[1.0, 0.0]), Ok(()));
        assert_eq!(check("n", &[1.0, 0.0]), Err(ErrorKind::Config));
        assert_eq!(check("m", &[1.0, 0.0, 0.0]), Err(ErrorKind::Config));
        assert!(Space::check(None, Some(&Embedding::new("n", [1.0])), "recall").is_ok());
        assert!(Space::check(Some(&stored), None, "recall").is_ok());
    }

    #[test]
    fn vectors_that_cannot_be_compared_are_refused() {
        let check =
            |vector: Vec<f32>| check_embedding(Some(&Embedding::new("m", vector)), "remember").is_ok();
        assert!(check(vec![0.0]) && check(vec![1.0; 16_000]));
        for bad in [vec![], vec![1.0; 16_001], vec![1.0, f32::NAN], vec![f32::INFINITY]] {
            assert!(!check(bad));
        }
        assert!(check_embedding(None, "remember").is_ok());
    }

    #[test]
    fn names_of_blocks_are_short_and_printable() {
        assert!(check_block_name("persona").is_ok() && check_block_name(&"x".repeat(128)).is_ok());
        for bad in ["", "a\nb", "\u{0}", &"x".repeat(129)] {
            assert_eq!(check_block_name(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
    }
}
