//! Replies that are as they should be: what was said, called and used arrives, and what was asked for reaches the wire.

use std::sync::Arc;

use loomflow_core::{Error, OutputSchema, Result, RunResult, RunStatus, StopReason, Usage};
use serde_json::{Value, json};

use super::bench::{Bench, Options, asking, must_be_reported};
use super::bodies::{REQUEST_ID, answer, has_plain, long, refusal, short};
use super::{Harness, WireCall, WireReply};
use crate::Outcome::{self, Passed};
use crate::fixture::Must as _;

/// Text in many pieces arrives whole, and the provider's usage is charged to the token; plain as streamed.
pub async fn text_arrives_as_it_was_said(h: &Harness) -> Outcome {
    let usage = Usage::new(1_234, 77).with_cache(200, 0);
    let mut reply = long().with_usage(Some(usage)).with_stop(StopReason::End);
    reply.calls.clear();
    let said = reply.text.concat();
    for plain in [false, true] {
        if plain && !has_plain(h.wire()) {
            continue;
        }
        let (wire, reply) = (h.shared(), reply.clone());
        let options = if plain { Options::plain() } else { Options::default() };
        let bench = Bench::with(h, options, move |_, _| answer(&*wire, &reply, plain)).await;
        let result = bench.run("u", 0).await.must("a reply of text");
        assert_eq!((&*result.output, result.status), (&*said, RunStatus::Completed), "plain: {plain}");
        bench.must_have_paid("u", usage, "a reply of text");
        let on_record = bench.calls_on_record("u");
        assert_eq!(on_record.len(), 1, "one call, one record: {on_record:?}");
        assert_eq!(on_record[0]["estimated"], Value::Null, "the provider reported the usage: {on_record:?}");
    }
    Passed
}

/// Two calls of one turn run with their own arguments, and their outcomes reach the provider; plain as streamed.
pub async fn parallel_calls_keep_their_arguments(h: &Harness) -> Outcome {
    let mut results = Vec::new();
    for plain in [false, true] {
        if plain && !has_plain(h.wire()) {
            continue;
        }
        let (bench, result) = two_turns(h, plain, long()).await;
        let result = result.must("a turn with two calls");
        let mut noted = bench.note.calls();
        noted.sort();
        let expected = [
            ("add".to_owned(), "call_b".to_owned(), r#"{"n":22,"what":"a\"bé日"}"#.to_owned()),
            ("wire.note".to_owned(), "call_a".to_owned(), r#"{"n":1,"what":"falcon"}"#.to_owned()),
        ];
        assert_eq!(noted.len(), expected.len(), "each call runs once: {noted:?}");
        for (noted, expected) in noted.iter().zip(&expected) {
            let arguments = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
            assert_eq!((&noted.0, &noted.1), (&expected.0, &expected.1), "a call changed its tool or its id");
            assert_eq!(arguments(&noted.2), arguments(&expected.2), "a call changed its arguments");
        }
        let requests = bench.server.requests();
        assert_eq!(requests.len(), 2, "a turn with calls and a turn with the answer");
        for told in ["noted by wire.note", "noted by add", "call_a", "call_b"] {
            assert!(requests[1].contains(told), "{told:?} did not reach the provider: {:?}", requests[1]);
        }
        let holds = bench.holds("u");
        assert_eq!(holds.len(), 2, "each turn is a hold of its own: {holds:?}");
        must_be_reported(&holds[0], Usage::new(120, 64).with_cache(20, 0), "the turn with calls");
        must_be_reported(&holds[1], Usage::new(21, 9), "the turn with the answer");
        results.push((result.output, result.tool_calls, result.usage, result.status));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "plain and streamed differ: {results:?}");
    Passed
}

/// A tool whose name has a dot travels under its wire name, and a call of that runs the tool.
pub async fn a_dotted_tool_travels_under_its_wire_name(h: &Harness) -> Outcome {
    let reply = WireReply::saying([""; 0]).with_call(WireCall::new("c1", "wire__note", [r#"{"what":"x"}"#]));
    let (bench, result) = two_turns(h, false, reply).await;
    let result = result.must("a call of a dotted tool");
    assert_eq!(result.tool_calls.iter().map(|call| &*call.name).collect::<Vec<_>>(), ["wire.note"]);
    for request in bench.server.requests() {
        let body = request.text();
        assert!(body.contains("\"wire__note\""), "the wire name is not on the wire: {body}");
        assert!(!body.contains("\"wire.note\""), "providers take no dots in names: {body}");
    }
    Passed
}

/// The schema of a structured answer is on the wire, and the answer is parsed.
pub async fn a_schema_reaches_the_wire(h: &Harness) -> Outcome {
    let wire = h.shared();
    let reply = WireReply::saying([r#"{"falcon_"#, r#"height":4"#, "2}"]);
    let bench = Bench::open(h, move |_, _| answer(&*wire, &reply, false)).await;
    let schema: Arc<dyn OutputSchema> = Arc::new(Height::new());
    let run = async { bench.tenant("u").run(asking(0)).output_schema(schema).await };
    let result = bench.ends(run).await.must("a structured answer");
    assert_eq!(result.parsed, Some(json!({"falcon_height": 42})));
    let requests = bench.server.requests();
    assert_eq!(requests.len(), 1, "the answer met its schema, so it is asked for once");
    assert!(requests[0].contains("falcon_height"), "the schema is not on the wire: {:?}", requests[0]);
    Passed
}

/// What the ledger granted is what the request allows: a clamp that stays at home caps nothing.
pub async fn the_granted_output_reaches_the_wire(h: &Harness) -> Outcome {
    let (wire, reply) = (h.shared(), short());
    let options = Options { grant: Some(1_717), ..Options::default() };
    let bench = Bench::with(h, options, move |_, _| answer(&*wire, &reply, false)).await;
    bench.run("u", 0).await.must("a reply under a small grant");
    let asked = h.wire().max_output_tokens(&bench.server.requests()[0]);
    assert_eq!(asked, Some(1_717), "the most tokens of the request are those of the hold");
    Passed
}

/// Without the provider's usage the prompt and what arrived are charged, and the record says that it is an estimate.
pub async fn missing_usage_is_estimated_and_marked(h: &Harness) -> Outcome {
    for plain in [false, true] {
        if plain && !has_plain(h.wire()) {
            continue;
        }
        let (wire, reply) = (h.shared(), long().with_usage(None));
        let reply = WireReply { calls: Vec::new(), stop: StopReason::End, ..reply };
        let said = reply.text.concat();
        let options = if plain { Options::plain() } else { Options::default() };
        let bench = Bench::with(h, options, move |_, _| answer(&*wire, &reply, plain)).await;
        let result = bench.run("u", 0).await.must("a reply without usage");
        assert_eq!(&*result.output, said);
        bench.must_have_paid_for("u", &said, "a reply without usage");
        let on_record = bench.calls_on_record("u");
        assert_eq!(on_record[0]["estimated"], json!(true), "the record must say so: {on_record:?}");
    }
    Passed
}

/// Two calls under one id run both, each with its own arguments, and are told apart from then on.
pub async fn call_ids_that_repeat_stay_two_calls(h: &Harness) -> Outcome {
    let reply = WireReply::saying([""; 0])
        .with_call(WireCall::new("same", "add", [r#"{"what":"#, r#""one"}"#]))
        .with_call(WireCall::new("same", "wire__note", [r#"{"what":"#, r#""two"}"#]));
    let (bench, result) = two_turns(h, false, reply).await;
    let result = result.must("a turn whose calls share an id");
    let mut noted: Vec<_> =
        bench.note.calls().into_iter().map(|(tool, _, arguments)| (tool, arguments)).collect();
    noted.sort();
    let expected = [("add", r#"{"what":"one"}"#), ("wire.note", r#"{"what":"two"}"#)]
        .map(|(t, a)| (t.to_owned(), a.to_owned()));
    assert_eq!(noted, expected, "each call runs once, with its own arguments");
    let ids: Vec<_> = result.tool_calls.iter().map(|call| call.id.clone()).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1], "the calls are not told apart: {ids:?}");
    Passed
}

/// Where the tokens run out within a call, half of its arguments, or none of them, run nothing; the call before it is whole.
pub async fn a_call_that_is_cut_off_runs_no_tool(h: &Harness) -> Outcome {
    for cut in [vec![], vec![r#"{"what":"#, r#""ha"#]] {
        let reply = WireReply::saying(["Wait. "])
            .with_call(WireCall::new("c1", "add", cut.clone()))
            .with_stop(StopReason::MaxTokens);
        let (bench, result) = two_turns(h, false, reply).await;
        result.must("a run whose model ran out of tokens within a call");
        assert!(bench.note.calls().is_empty(), "{cut:?} ran as {:?}", bench.note.calls());
    }
    Passed
}

/// Arguments that are not JSON, or no object, run nothing; the model is told why and may go on.
pub async fn arguments_that_are_not_json_run_no_tool(h: &Harness) -> Outcome {
    for (pieces, why) in [
        (vec![r#"{"what": "#, "falc"], "not valid JSON"),
        (vec![r#"{"what":"a"}"#, r#"{"what":"b"}"#], "not valid JSON"),
        (vec!["[1, ", "2]"], "not a JSON object"),
    ] {
        let reply = WireReply::saying(["Wait. "]).with_call(WireCall::new("c1", "add", pieces.clone()));
        let (bench, result) = two_turns(h, false, reply).await;
        let result = result.must("a run whose model corrects itself");
        assert_eq!(bench.note.calls(), [], "a tool ran with arguments that nobody sent: {pieces:?}");
        assert_eq!(&*result.output, short().text.concat());
        let told = &bench.server.requests()[1];
        assert!(told.contains(why), "the model is not told that its arguments are {why}: {told:?}");
    }
    Passed
}

/// An answer that its token limit cut short does not pass for complete.
pub async fn an_answer_cut_short_by_its_limit_is_no_success(h: &Harness) -> Outcome {
    stops(h, StopReason::MaxTokens, "max_output_tokens").await
}

/// A provider that refuses the content is reported as such.
pub async fn a_refusal_is_no_success(h: &Harness) -> Outcome {
    stops(h, StopReason::Refusal, "model_refusal").await
}

async fn stops(h: &Harness, stop: StopReason, reason: &str) -> Outcome {
    let (wire, reply) = (h.shared(), short().with_stop(stop));
    let bench = Bench::open(h, move |_, _| answer(&*wire, &reply, false)).await;
    let result = bench.run("u", 0).await.must("a reply that was stopped");
    assert_eq!((result.status, result.reason.as_deref()), (RunStatus::Interrupted, Some(reason)));
    bench.must_have_paid("u", Usage::new(21, 9), "a reply that was stopped");
    Passed
}

/// The provider's id of a request is in the record of the call: of one that worked, and of one that did not.
pub async fn the_request_id_is_on_record(h: &Harness) -> Outcome {
    let wire = h.shared();
    let bench = Bench::open(h, move |_, n| match n {
        0 => answer(&*wire, &short(), false),
        _ => refusal(&*wire, 400, "no"),
    })
    .await;
    bench.run("good", 0).await.must("a reply with a request id");
    let failed = bench.run("bad", 1).await;
    assert!(failed.is_err(), "a 400 is an error: {failed:?}");
    for who in ["good", "bad"] {
        let on_record = bench.calls_on_record(who);
        assert_eq!(on_record[0]["request_id"], json!(REQUEST_ID), "{who}: {on_record:?}");
    }
    Passed
}

/// A run whose first reply is `reply` and whose second is the short one.
async fn two_turns(h: &Harness, plain: bool, reply: WireReply) -> (Bench, Result<RunResult, Error>) {
    let wire = h.shared();
    let options = if plain { Options::plain() } else { Options::default() };
    let bench = Bench::with(h, options, move |_, n| {
        let reply = if n == 0 { reply.clone() } else { short() };
        answer(&*wire, &reply, plain)
    })
    .await;
    let result = bench.run("u", 0).await;
    (bench, result)
}

/// A schema that nobody else has.
#[derive(Debug)]
struct Height(Arc<Value>);

impl Height {
    fn new() -> Self {
        let integer = json!({"type": "integer"});
        Self(Arc::new(json!({
            "type": "object",
            "properties": {"falcon_height": integer},
            "required": ["falcon_height"],
            "additionalProperties": false,
        })))
    }
}

impl OutputSchema for Height {
    fn schema(&self) -> &Arc<Value> {
        &self.0
    }

    fn validate(&self, value: &Value) -> Result<(), Vec<String>> {
        let fits = value.get("falcon_height").is_some_and(Value::is_i64);
        if fits { Ok(()) } else { Err(vec!["falcon_height is missing".to_owned()]) }
    }
}
