//! The partitioned agent loop: a pure state machine, and the one driver that awaits for it.

mod assemble;
mod drive;
mod step;

pub(crate) use drive::{Outcome, Task, drive};
pub use step::{
    Action as StepAction, CallOutcome, Event as StepEvent, Finish, LoopConfig, Reply, State, step,
};
