//! A model that says what it was told: for a first run without a key.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream;
use loomflow_core::{
    AdmittedCall, Delta, Done, Model, ModelRequest, ModelStream, Price, Result, Role, RunContext, StopReason,
    Usage,
};

use crate::model::count_words;

/// Echoes the last thing the user said, word by word. A token is a word, and it costs nothing.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct EchoModel;

impl EchoModel {
    /// The model.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Model for EchoModel {
    fn name(&self) -> &str {
        "echo"
    }

    fn price(&self) -> Option<Price> {
        Some(Price::default())
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        count_words(request)
    }

    fn count_output(&self, text: &str) -> u64 {
        text.split_whitespace().count() as u64
    }

    async fn stream(&self, _ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let request = call.request();
        let input = count_words(request);
        let said = request.messages.iter().rev().find(|message| message.role == Role::User);
        let said = said.map(|message| message.text.clone()).unwrap_or_default();
        let most = usize::try_from(request.max_output_tokens).unwrap_or(usize::MAX);
        let mut deltas: Vec<Result<Delta>> = Vec::new();
        for word in said.split_inclusive(char::is_whitespace) {
            // A blank after a blank belongs to the word before it.
            match deltas.last_mut() {
                Some(Ok(Delta::Text(last))) if word.trim().is_empty() => {
                    *last = format!("{last}{word}").into()
                }
                _ => deltas.push(Ok(Delta::Text(Arc::from(word)))),
            }
        }
        let stop = if deltas.len() > most { StopReason::MaxTokens } else { StopReason::End };
        deltas.truncate(most);
        let usage = Usage::new(input, deltas.len() as u64);
        deltas.push(Ok(Delta::Done(Done::new(usage, stop))));
        Ok(Box::pin(stream::iter(deltas)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use loomflow_core::danger::{admit, assume_scope, detached_context};
    use loomflow_core::{Epoch, Identity, Message, Namespace};

    use super::*;

    async fn echo(messages: Vec<Message>, most: u64) -> (Vec<String>, Done) {
        let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
        let mut stream =
            EchoModel::new().stream(&ctx, admit(ModelRequest::new(messages, most))).await.unwrap();
        let mut words = Vec::new();
        while let Some(delta) = stream.next().await {
            match delta.unwrap() {
                Delta::Text(text) => words.push(text.to_string()),
                Delta::Done(done) => return (words, done),
                other => panic!("{other:?}"),
            }
        }
        panic!("the stream ended without its end")
    }

    #[tokio::test]
    async fn the_users_last_words_come_back() {
        let messages =
            vec![Message::system("be kind"), Message::user("no"), Message::user("hello  big world")];
        let (words, done) = echo(messages.clone(), 100).await;
        assert_eq!(words, ["hello  ", "big ", "world"]);
        assert_eq!((done.usage, done.stop), (Some(Usage::new(6, 3)), StopReason::End));
        let (words, done) = echo(messages, 2).await;
        assert_eq!((words.len(), done.stop), (2, StopReason::MaxTokens));
        assert_eq!(echo(vec![], 9).await.0.len(), 0);
    }
}
