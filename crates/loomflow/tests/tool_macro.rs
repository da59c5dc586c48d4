//! `#[tool]` from the outside: what it declares, what it makes of a model's arguments, and a run that uses it.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use loomflow::danger::{assume_scope, detached_context, permit};
use loomflow::prelude::*;
use loomflow::schemars::JsonSchema;
use loomflow::{Epoch, Identity, ToolCall, ToolStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An order's number, as it is written on the bill.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
struct OrderId(String);

/// Gives the money of an order back.
///
/// Asks the bank, which takes a while.
#[tool(effect = external, timeout = "5s", idempotent, name = "orders.refund")]
async fn refund(
    ctx: &RunContext,
    /// The order's number.
    order: OrderId,
    /// In cents; all of it when left out.
    amount: Option<u64>,
) -> Result<String> {
    if order.0 == "none" {
        return Err(Error::new(ErrorKind::NotFound, "there is no order \"none\""));
    }
    let who = ctx.user_id().map_or("nobody", UserId::as_str);
    let amount = amount.map_or("all".to_owned(), |cents| format!("{cents} cents"));
    tokio::task::yield_now().await;
    Ok(format!("{amount} of {} to {who}", order.0))
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Speed {
    Slow,
    Fast,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
struct Item {
    /// What it costs, in cents.
    price: u64,
    label: Option<String>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Target {
    Street { name: String, number: u32 },
    Box { number: u32 },
}

type Maybe<T> = Option<T>;

/// Ships things.
#[tool(effect = write)]
async fn ship(
    items: Vec<Item>,
    speed: Speed,
    r#type: Maybe<Cow<'static, str>>,
    /// Where to.
    target: Option<Target>,
) -> Json<Value> {
    Json(json!({"items": items, "speed": speed, "type": r#type, "target": target}))
}

/// Says the time.
#[tool(effect = read)]
async fn now() -> &'static str {
    "noon"
}

/// Looks, but not twice at the same.
#[tool(effect = read, idempotent = false)]
async fn draw(mut lots: NonZeroU64) -> ToolOutcome {
    lots = lots.saturating_add(1);
    ToolOutcome::Unknown(lots.to_string().into())
}

/// Does nothing, and has names that the macro uses, too.
#[tool(effect = destructive)]
async fn answer(_context: &RunContext, work: bool, call: bool, pass: bool, arguments: bool, context: bool) {
    assert!(work & call & pass & arguments & context);
}

/// Never ends.
#[tool(effect = external, timeout = "10ms")]
async fn hang(_ctx: &RunContext) {
    std::future::pending().await
}

/// Keeps what is needed across an await.
#[tool(effect = read)]
pub async fn elsewhere(ctx: &RunContext, text: String) -> std::result::Result<Arc<str>, String> {
    let session = ctx.session_id().clone();
    tokio::time::sleep(Duration::ZERO).await;
    if text.is_empty() { Err(format!("nothing to say in {session}")) } else { Ok(text.into()) }
}

mod written {
    //! Tools that other macros write, and where other crates' names mean something else.

    #![allow(dead_code, reason = "they are there to be in the way")]

    use loomflow::RunContext;

    mod loomflow_core {}
    mod std {}
    mod core {}
    struct Some;
    struct Option;
    struct Result;
    struct Tool;

    macro_rules! twin {
        ($name:ident, $context:ty, $argument:ident: $ty:ty) => {
            #[doc = concat!("Says ", stringify!($name), ".")]
            #[::loomflow::tool(effect = read)]
            pub(crate) async fn $name(_: $context, $argument: $ty) -> ::std::string::String {
                ::std::format!("{} {}", stringify!($name), $argument)
            }
        };
    }

    twin!(first, &RunContext, text: ::std::string::String);
    twin!(second, &::loomflow::RunContext, number: u8);
}

#[tokio::test]
async fn a_tool_may_be_written_by_a_macro_and_inside_a_function() {
    /// Says nothing.
    #[tool(effect = read)]
    async fn quiet() {}

    assert_eq!(called(&quiet, json!({})).await, ToolOutcome::ok("done"));
    assert_eq!(&*written::first.spec().description, "Says first.");
    assert_eq!(called(&written::first, json!({"text": "a"})).await, ToolOutcome::ok("first a"));
    assert_eq!(called(&written::second, json!({"number": 2})).await, ToolOutcome::ok("second 2"));
}

fn context() -> RunContext {
    let alice = Identity::User(UserId::new("alice").expect("a good id"));
    detached_context(assume_scope(Namespace::default(), alice, Epoch::ZERO))
}

async fn called(tool: &dyn Tool, arguments: Value) -> ToolOutcome {
    let call = ToolCall::new("call_1", tool.spec().name.clone(), arguments.to_string());
    tool.call(&context(), permit(call, arguments)).await
}

async fn refused(tool: &dyn Tool, arguments: Value) -> String {
    match called(tool, arguments.clone()).await {
        ToolOutcome::Error(text) => text.to_string(),
        other => panic!("{arguments} was taken: {other:?}"),
    }
}

#[test]
fn attribute_and_documentation_land_in_the_specification() {
    let spec = refund.spec();
    assert_eq!(&*spec.name, "orders.refund");
    assert_eq!(
        &*spec.description,
        "Gives the money of an order back.\n\nAsks the bank, which takes a while."
    );
    assert_eq!(spec.effect, Effect::External);
    assert_eq!(spec.timeout, Some(Duration::from_secs(5)));
    assert!(spec.idempotent);
}

#[test]
fn what_is_left_out_follows_the_effect_and_the_function() {
    assert_eq!(&*ship.spec().name, "ship");
    assert_eq!(ship.spec().timeout, None);
    assert!(!ship.spec().idempotent && !answer.spec().idempotent && !hang.spec().idempotent);
    assert!(now.spec().idempotent && !draw.spec().idempotent);
    assert_eq!(answer.spec().effect, Effect::Destructive);
    assert_eq!(ship.spec().effect, Effect::Write);
    assert_eq!(hang.spec().timeout, Some(Duration::from_millis(10)));
}

#[test]
fn the_schema_is_closed_inline_and_without_noise() {
    assert_eq!(
        *refund.spec().parameters,
        json!({
            "type": "object",
            "properties": {
                "order": {"type": "string", "description": "The order's number."},
                "amount": {"type": "integer", "minimum": 0, "description": "In cents; all of it when left out."},
            },
            "required": ["order"],
            "additionalProperties": false,
        })
    );
    assert_eq!(
        *ship.spec().parameters,
        json!({
            "type": "object",
            "properties": {
                "items": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "price": {"type": "integer", "minimum": 0, "description": "What it costs, in cents."},
                            "label": {"type": "string"},
                        },
                        "required": ["price"],
                    },
                },
                "speed": {"type": "string", "enum": ["slow", "fast"]},
                "type": {"type": "string"},
                "target": {
                    "description": "Where to.",
                    "oneOf": [
                        {
                            "type": "object",
                            "properties": {
                                "kind": {"type": "string", "const": "street"},
                                "name": {"type": "string"},
                                "number": {"type": "integer", "minimum": 0},
                            },
                            "required": ["kind", "name", "number"],
                        },
                        {
                            "type": "object",
                            "properties": {
                                "kind": {"type": "string", "const": "box"},
                                "number": {"type": "integer", "minimum": 0},
                            },
                            "required": ["kind", "number"],
                        },
                    ],
                },
            },
            "required": ["items", "speed"],
            "additionalProperties": false,
        })
    );
    assert_eq!(
        *now.spec().parameters,
        json!({"type": "object", "properties": {}, "additionalProperties": false})
    );
    assert_eq!(draw.spec().parameters["properties"]["lots"], json!({"type": "integer", "minimum": 1}));
}

#[tokio::test]
async fn arguments_arrive_and_the_context_knows_who_asks() {
    assert_eq!(
        called(&refund, json!({"order": "A1", "amount": 99})).await,
        ToolOutcome::ok("99 cents of A1 to alice")
    );
    for nothing in [json!({"order": "A1"}), json!({"order": "A1", "amount": null})] {
        assert_eq!(called(&refund, nothing).await, ToolOutcome::ok("all of A1 to alice"));
    }
    let parcel = json!({
        "items": [{"price": 5, "label": "book"}, {"price": 6, "label": null}],
        "speed": "fast",
        "type": "gift",
        "target": {"kind": "box", "number": 7},
    });
    assert_eq!(called(&ship, parcel.clone()).await, ToolOutcome::ok(parcel.to_string()));
    assert_eq!(called(&now, json!({})).await, ToolOutcome::ok("noon"));
    let all = json!({"work": true, "call": true, "pass": true, "arguments": true, "context": true});
    assert_eq!(called(&answer, all).await, ToolOutcome::ok("done"));
}

#[tokio::test]
async fn answers_and_errors_are_told() {
    assert_eq!(called(&draw, json!({"lots": 1})).await, ToolOutcome::Unknown("2".into()));
    assert_eq!(
        called(&refund, json!({"order": "none"})).await,
        ToolOutcome::error("there is no order \"none\"")
    );
    assert_eq!(called(&elsewhere, json!({"text": "hi"})).await, ToolOutcome::ok("hi"));
    assert!(matches!(called(&elsewhere, json!({"text": ""})).await, ToolOutcome::Error(_)));
}

#[tokio::test]
async fn the_function_can_be_called_directly() {
    let told = refund::call_direct(&context(), OrderId("A1".to_owned()), None).await.unwrap();
    assert_eq!(told, "all of A1 to alice");
    assert_eq!(now::call_direct().await, "noon");
}

#[tokio::test]
async fn everything_wrong_is_told_at_once() {
    assert_eq!(
        refused(&refund, json!({"ordr": "A1", "amount": "5", "zebra": 1})).await,
        "the arguments of orders.refund do not fit, and nothing was done:\n\
         - there is no argument `ordr`; did you mean `order`?\n\
         - there is no argument `zebra`\n\
         - `order` is missing: string\n\
         - `amount`: invalid type: string \"5\", expected u64\n\
         it takes: `order` (string, required), `amount` (integer, optional)"
    );
}

#[tokio::test]
async fn a_wrong_type_is_told_with_its_path() {
    let told = refused(&ship, json!({"items": [{"price": 1}, {"price": "x"}], "speed": "warp"})).await;
    assert_eq!(
        told,
        "the arguments of ship do not fit, and nothing was done:\n\
         - `items[1].price`: invalid type: string \"x\", expected u64\n\
         - `speed`: unknown variant `warp`, expected `slow` or `fast`\n\
         it takes: `items` (array of object, required), `speed` (one of \"slow\", \"fast\", required), \
         `type` (string, optional), `target` (object, optional)"
    );
    let told = refused(&ship, json!({"items": [{}], "speed": null})).await;
    assert!(told.contains("- `items[0]`: missing field `price`\n- `speed`: "), "{told}");
    for (lots, why) in
        [(json!(0), "nonzero"), (json!(-1), "`-1`"), (json!(1.5), "`1.5`"), (json!([]), "sequence")]
    {
        let told = refused(&draw, json!({"lots": lots})).await;
        assert!(told.contains("- `lots`: ") && told.contains(why), "{told}");
    }
    assert!(
        refused(&now, json!({"zone": "CET"}))
            .await
            .ends_with("- there is no argument `zone`\nit takes no arguments")
    );
}

#[tokio::test]
async fn what_is_not_an_object_is_told_once() {
    for odd in [json!([]), json!("order"), json!(null)] {
        assert_eq!(
            refused(&refund, odd).await,
            "the arguments of orders.refund do not fit, and nothing was done:\n\
             - the arguments are not a JSON object\n\
             it takes: `order` (string, required), `amount` (integer, optional)"
        );
    }
    assert!(refused(&now, json!([])).await.contains("not a JSON object"));
}

#[tokio::test]
async fn what_is_repeated_to_the_model_is_bounded() {
    let long = "\n".to_owned() + &"x".repeat(1_000_000);
    let told = refused(&refund, json!({"order": [], "amount": long.clone(), long.clone(): 1})).await;
    assert!(told.len() < 800, "{}", told.len());
    assert!(told.contains("…, expected u64"), "{told}");
    let many: serde_json::Map<String, Value> = (0..10_000).map(|n| (format!("k{n}"), json!(n))).collect();
    let told = refused(&refund, Value::Object(many)).await;
    assert!(told.len() < 2_000 && told.contains("and 9985 more problems"), "{told}");
}

#[tokio::test]
async fn a_run_uses_a_tool_and_the_model_can_put_its_mistake_right() {
    let alice = UserId::new("alice").unwrap();
    let model = Arc::new(
        ScriptedModel::new()
            .tool_call("c1", "orders.refund", r#"{"ordr":"A1"}"#)
            .tool_call("c2", "orders.refund", r#"{"order":"A1","amount":5}"#)
            .tool_call("c3", "hang", "{}")
            .reply("Done."),
    );
    let agent = Agent::builder("You help.")
        .model(model.clone())
        .permissions(StandardPermissions::bypass())
        .tool(refund)
        .tool(hang)
        .tool(now)
        .build()
        .unwrap();
    let result = agent.for_user(alice.clone()).run("Refund 5 cents of A1").await.unwrap();
    assert_eq!(result.status, RunStatus::Completed);
    let statuses: Vec<ToolStatus> = result.tool_calls.iter().map(|call| call.status).collect();
    assert_eq!(statuses, [ToolStatus::Error, ToolStatus::Ok, ToolStatus::Unknown]);

    let requests = model.requests_of(&alice);
    let offered: Vec<&str> = requests[0].tools.iter().map(|tool| &*tool.name).collect();
    assert_eq!(offered, ["hang", "now", "orders.refund"]);
    let told: Vec<String> =
        requests[1..].iter().map(|r| r.messages.last().unwrap().text.to_string()).collect();
    assert!(told[0].contains("there is no argument `ordr`; did you mean `order`?"), "{told:?}");
    assert_eq!(told[1], "5 cents of A1 to alice");
    assert!(told[2].contains("took longer than 10ms"), "{told:?}");
}
