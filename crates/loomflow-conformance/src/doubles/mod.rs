//! Test doubles for application authors: a clock to turn, a model to hold back, and a telemetry sink to look into.
//!
//! None of them is meant for production: they keep everything they see.

mod clock;
mod gate_model;
mod telemetry;

pub use clock::{FixedClock, ManualClock};
pub use gate_model::{GateModel, InvoiceLine};
pub use telemetry::{Metric, RecordingTelemetry};
