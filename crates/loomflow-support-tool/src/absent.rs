//! Whether an argument may be left out: its type is asked, so that an alias of `Option` counts as one.

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

/// The value of an argument that is not there: `None` for an `Option`, and none at all for everything else.
pub(crate) fn absent<T: DeserializeOwned>() -> Option<T> {
    T::deserialize(Absent).ok()
}

/// Nothing to read from; it behaves as serde's derive does for a missing field.
struct Absent;

impl<'de> Deserializer<'de> for Absent {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("missing"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_none()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    type Maybe = Option<u64>;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(transparent)]
    struct Wrapped(Maybe);

    #[derive(Debug, PartialEq, Default, Deserialize)]
    #[serde(default)]
    struct AllDefault {
        cents: u64,
    }

    #[test]
    fn an_option_may_be_left_out_under_any_name() {
        assert_eq!(absent::<Maybe>(), Some(None));
        assert_eq!(absent::<Wrapped>(), Some(Wrapped(None)));
    }

    #[test]
    fn nothing_else_may() {
        assert_eq!(absent::<u64>(), None);
        assert_eq!(absent::<String>(), None);
        assert_eq!(absent::<()>(), None);
        assert_eq!(absent::<Vec<u64>>(), None);
        assert_eq!(absent::<serde_json::Value>(), None);
        assert_eq!(absent::<AllDefault>(), None);
    }
}
