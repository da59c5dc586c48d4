//! Test doubles for application and adapter authors: a clock to turn, a model to hold back, a telemetry sink, a ledger and an
//! audit log to look into, a secret store to turn over, a provider's server that does what a script says, and a network
//! between a client and a real server that fails.
//!
//! None of them is meant for production: they keep everything they see.

mod clock;
mod faulty_proxy;
mod gate_model;
mod peak_memory;
mod records;
mod scripted_server;
mod secrets;
mod telemetry;

pub use clock::{FixedClock, ManualClock};
pub use faulty_proxy::{Direction, FaultyProxy};
pub use gate_model::{GateModel, InvoiceLine};
pub use peak_memory::PeakMemory;
pub use records::{HoldRecord, RecordingAudit, RecordingLedger};
pub use scripted_server::{Action, Exchange, Head, Recorded, Script, ScriptedServer};
pub use secrets::TenantSecrets;
pub use telemetry::{Metric, RecordingTelemetry};
