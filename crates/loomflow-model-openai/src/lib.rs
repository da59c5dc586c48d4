//! The adapter to OpenAI.
