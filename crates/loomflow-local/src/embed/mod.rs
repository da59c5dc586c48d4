//! In-process embed.
