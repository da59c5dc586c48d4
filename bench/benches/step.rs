//! What the loop itself costs: the pure step function over a run with one tool call, without anything it talks to.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use loomflow_core::r#loop::{CallOutcome, LoopConfig, Reply, State, StepEvent, step};
use loomflow_core::{Message, StopReason, ToolCall, ToolStatus};

fn prompt(messages: usize) -> Vec<Message> {
    let said = (1..messages).map(|n| Message::user(format!("message {n} of a conversation")));
    std::iter::once(Message::system("you are an assistant")).chain(said).collect()
}

fn whole_run(state: State) -> State {
    let call = ToolCall::new("c1", "add", r#"{"a":1,"b":2}"#);
    let (state, asked) = step(state, StepEvent::Begin);
    drop(asked);
    let (state, asked) = step(state, StepEvent::Reply(Reply::new("", vec![call], StopReason::ToolUse)));
    drop(asked);
    let (state, asked) = step(state, StepEvent::Outcomes(vec![CallOutcome::new(ToolStatus::Ok, "3")]));
    drop(asked);
    step(state, StepEvent::Reply(Reply::new("ack", vec![], StopReason::End))).0
}

fn bench(c: &mut Criterion) {
    for messages in [2, 22] {
        let fresh = || State::new(LoopConfig::new(50), prompt(messages));
        c.bench_function(&format!("step/tool_run/{messages}_messages"), |b| {
            b.iter_batched(fresh, |state| whole_run(black_box(state)), BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
