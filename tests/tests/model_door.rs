//! What passes through the model door besides text: images, arguments in pieces, state that a provider wants back, names
//! on the wire, and what a failed call costs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use loomflow_core::{
    Action, Agent, BudgetConfig, Effect, Error, ErrorKind, EventKind, Image, RetryPolicy, Role, RunStatus,
    StopReason, ToolOutcome, Window, wire_name,
};
use loomflow_local::{HashEmbedder, InMemoryAuditLog, InMemoryMemory, StandardBudget, StandardPermissions};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{FnTool, entries, user};

fn tool(name: &str) -> FnTool {
    FnTool::new(name, Effect::Read, |_, arguments| async move { ToolOutcome::ok(arguments.to_string()) })
}

fn unlimited() -> Arc<StandardBudget> {
    Arc::new(StandardBudget::new(BudgetConfig::new().window(Window::Day)).unwrap())
}

#[tokio::test]
async fn an_image_reaches_the_model_and_neither_memory_nor_the_next_run() {
    let model = ModelDouble::saying("a cat");
    let agent = Agent::builder("Look.").model(model.clone()).memory(InMemoryMemory::new()).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let gif = Image::from_bytes(&b"GIF89a-secret-pixels"[..]).unwrap();
    alice.run("what is this?").image(gif.clone()).session("s").await.unwrap();
    alice.run("and now?").session("s").await.unwrap();
    let [first, second] = &model.requests()[..] else { panic!("two calls") };
    let asked = first.messages.last().unwrap();
    assert_eq!(asked.images(), [gif]);
    assert_eq!(&*asked.text, "what is this?\n[image: image/gif, 20 bytes]");
    assert!(second.messages.iter().all(|message| message.images().is_empty()));
    assert!(second.messages.iter().any(|message| message.text.contains("[image: image/gif")));
}

#[tokio::test]
async fn too_many_images_are_refused_before_anything_is_asked() {
    let model = ModelDouble::saying("no");
    let agent = Agent::builder("Look.").model(model.clone()).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let mut run = alice.run("what?");
    for _ in 0..21 {
        run = run.image(Image::from_bytes(&b"GIF89a"[..]).unwrap());
    }
    let error = run.await.unwrap_err();
    assert_eq!((error.kind(), model.calls()), (ErrorKind::InvalidInput, 0));
}

#[tokio::test]
async fn images_that_no_provider_takes_in_one_request_are_refused_before_anything_is_asked() {
    let model = ModelDouble::saying("no");
    let agent = Agent::builder("Look.").model(model.clone()).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let mut large = b"GIF89a".to_vec();
    large.resize(5 << 20, 0);
    let image = Image::from_bytes(large).unwrap();
    let show = |many: usize| (0..many).fold(alice.run("what?"), |run, _| run.image(image.clone()));
    let error = show(5).await.unwrap_err();
    assert_eq!((error.kind(), model.calls()), (ErrorKind::InvalidInput, 0));
    show(4).await.unwrap();
}

/// A reply that is cut off within the arguments of a call has cost what came of them, and a whole one is not counted twice.
#[tokio::test]
async fn arguments_in_pieces_are_charged_as_they_come_and_once() {
    for cut in [false, true] {
        let model = ModelDouble::new(move |_, number| {
            let mut steps: Vec<_> =
                ["{\"a\": ", "\"one ", "two ", "three\"}"].map(|p| Step::Piece(p.to_owned())).into();
            match (number, cut) {
                (0, true) => steps.push(Step::Cut),
                (0, false) => {
                    steps.push(Step::CallOfPieces("look", "{\"a\": \"one two three\"}".to_owned()));
                    steps.push(Step::DoneWithoutUsage);
                }
                _ => return Ok(say("done ")),
            }
            Ok(steps)
        });
        let agent = Agent::builder("p")
            .model(model.clone())
            .budget(unlimited())
            .permissions(StandardPermissions::bypass())
            .tool(tool("look"))
            .retry(RetryPolicy::none())
            .build()
            .unwrap();
        let alice = agent.for_user(user("alice"));
        let ended = alice.run("go").await;
        assert_eq!(ended.is_err(), cut);
        agent.shutdown().await.unwrap();
        let (input, output) = model.invoice();
        let report = agent.for_user(user("alice")).usage().await.unwrap();
        assert_eq!((report.used.input_tokens, report.used.output_tokens), (input, output), "cut: {cut}");
        assert_eq!(report.open_holds, 0);
    }
}

#[tokio::test]
async fn provider_state_comes_back_within_the_run_and_is_not_remembered() {
    let model = ModelDouble::new(|_, number| {
        let mut steps = vec![Step::State("{\"double\":\"signed\"}")];
        steps.extend(if number == 0 { call("look", "{}") } else { say("seen") });
        Ok(steps)
    });
    let agent = Agent::builder("p")
        .model(model.clone())
        .memory(InMemoryMemory::new())
        .permissions(StandardPermissions::bypass())
        .tool(tool("look"))
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    alice.run("go").session("s").await.unwrap();
    alice.run("again").session("s").await.unwrap();
    let requests = model.requests();
    let states = |at: usize| -> Vec<Option<&str>> {
        let said = requests[at].messages.iter().filter(|message| message.role == Role::Assistant);
        said.map(|message| message.provider_state.as_deref()).collect()
    };
    assert_eq!(states(1), [Some("{\"double\":\"signed\"}")]);
    assert!(states(2).iter().all(Option::is_none) && !states(2).is_empty(), "{:?}", states(2));
}

#[tokio::test]
async fn what_a_provider_refused_to_finish_is_not_acted_on() {
    let model = ModelDouble::new(|_, _| {
        let mut steps = call("look", "{}");
        steps.push(Step::Stop(StopReason::Refusal));
        Ok(steps)
    });
    let agent = Agent::builder("p")
        .model(model.clone())
        .permissions(StandardPermissions::bypass())
        .tool(FnTool::new("look", Effect::Read, |_, _| async { panic!("it must not run") }))
        .build()
        .unwrap();
    let ended = agent.for_user(user("alice")).run("go").await.unwrap();
    assert_eq!((ended.status, ended.reason.as_deref()), (RunStatus::Interrupted, Some("model_refusal")));
    assert_eq!(model.calls(), 1);
}

#[test]
fn tools_that_travel_under_one_name_are_refused_when_the_agent_is_built() {
    assert_eq!(wire_name("billing.refund"), "billing__refund");
    let build = |names: &[&str]| {
        let builder = Agent::builder("p").model(ModelDouble::saying("x"));
        names.iter().fold(builder, |builder, name| builder.tool(tool(name))).build()
    };
    assert!(build(&["billing.refund", "billing.pay"]).is_ok());
    for (names, said) in [
        (&["billing.refund", "billing__refund"][..], "billing__refund"),
        (&[&"x.".repeat(32)], "longer than 64"),
    ] {
        let error = build(names).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(said), "{error}");
    }
}

/// Before a stream began, only what nobody can know is charged; the provider's id of the request is on record.
#[tokio::test]
async fn a_call_that_was_never_taken_is_free_and_one_in_doubt_is_not() {
    for (kind, charged) in [
        (ErrorKind::Unreachable, false),
        (ErrorKind::Overloaded, false),
        (ErrorKind::Auth, false),
        (ErrorKind::Timeout, true),
        (ErrorKind::Transport, true),
    ] {
        let model =
            ModelDouble::new(move |_, _| Err(Error::new(kind, "no").with_context("request_id", "req_7")));
        let agent = Agent::builder("two words")
            .model(model.clone())
            .budget(unlimited())
            .audit_log(InMemoryAuditLog::new())
            .retry(RetryPolicy::none())
            .build()
            .unwrap();
        let alice = agent.for_user(user("alice"));
        assert_eq!(alice.run("and three more").await.unwrap_err().kind(), kind);
        let used = alice.usage().await.unwrap().used.input_tokens;
        assert_eq!(used, if charged { 5 } else { 0 }, "{kind:?}");
        let entries = entries(&alice).await;
        let call = entries.iter().find(|entry| entry.event.action == Action::ModelCall).unwrap();
        assert!(call.event.payload.get().contains("\"request_id\":\"req_7\""), "{:?}", call.event.payload);
    }
}

/// Vectors are ordered through the same door: reserved, settled and on record, each call.
#[tokio::test]
async fn embeddings_are_on_record_like_every_model_call() {
    let embedder = HashEmbedder::new();
    let agent = Agent::builder("p")
        .model(ModelDouble::saying("fine"))
        .memory(InMemoryMemory::new())
        .embedder(embedder)
        .budget(unlimited())
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    let ended = alice.run("one question").await.unwrap();
    let recorded = entries(&alice).await;
    let calls = recorded.iter().filter(|entry| entry.event.action == Action::ModelCall);
    let embeds = calls.filter(|entry| entry.event.payload.get().contains("\"operation\":\"embed\""));
    assert_eq!(embeds.count(), 2, "the question, and what is remembered of it");
    let used = alice.usage().await.unwrap().used;
    assert_eq!(
        used.input_tokens, ended.usage.input_tokens,
        "the last one is charged before the result is there"
    );
}

/// Reasoning that nobody sees is billed. Where its amount is never told, all that was granted counts; where it is, that.
#[tokio::test]
async fn silent_reasoning_whose_usage_never_comes_is_charged_as_granted() {
    for (end, charged) in [
        (Step::Cut, 50),
        (Step::DoneWithoutUsage, 50),
        (Step::Fail(Error::new(ErrorKind::Overloaded, "gone")), 50),
        (Step::Stop(StopReason::End), 2),
    ] {
        let end = parking_lot::Mutex::new(Some(end));
        let model = ModelDouble::reasoning_in_silence(move |_, _| {
            let mut steps = say("two words");
            steps.extend(end.lock().take());
            Ok(steps)
        });
        let agent = Agent::builder("p")
            .model(model)
            .budget(unlimited())
            .max_output_tokens(50)
            .retry(RetryPolicy::none())
            .build()
            .unwrap();
        let alice = agent.for_user(user("alice"));
        drop(alice.run("go").await);
        assert_eq!(alice.usage().await.unwrap().used.output_tokens, charged);
    }
}

/// The same for a caller who goes away.
#[tokio::test]
async fn silent_reasoning_of_a_run_that_was_dropped_is_charged_as_granted() {
    let model = ModelDouble::reasoning_in_silence(|_, _| {
        let mut steps = say("two words");
        steps.push(Step::Hang);
        Ok(steps)
    });
    let agent = Agent::builder("p")
        .model(model)
        .budget(unlimited())
        .audit_log(InMemoryAuditLog::new())
        .max_output_tokens(50)
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    let mut events = alice.stream("go").await.unwrap();
    while !matches!(events.next().await.unwrap().kind, EventKind::TextDelta { .. }) {}
    drop(events);
    agent.shutdown().await.unwrap();
    assert_eq!(alice.usage().await.unwrap().used.output_tokens, 50);
    let entries = entries(&alice).await;
    let call = entries.iter().find(|entry| entry.event.action == Action::ModelCall).unwrap();
    assert!(call.event.payload.get().contains("\"output_tokens\":50"), "{:?}", call.event.payload);
}
