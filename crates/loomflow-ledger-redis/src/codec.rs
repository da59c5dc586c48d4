//! What the scripts are told, and what they answer.

use std::time::Duration;

use loomflow_core::rules::quota::{Ask, Totals, micros};
use loomflow_core::{
    Cap, Entity, Error, ErrorKind, EstimatedCharge, HoldId, HoldKey, NanoUsd, Owner, Result, RunId, Settled,
    Timestamp, Usage, Warning,
};
use redis::{FromRedisValue as _, Value};

use crate::config::MAX_COUNT;

/// More generated tokens than any call makes; more are never granted.
const MAX_OUTPUT: u64 = 1 << 40;
/// More than any lease or run lasts: a hundred years.
const MAX_MICROS: u64 = 100 * 366 * 86_400 * 1_000_000;
/// The dearest token whose cost the scripts count exactly: nine dollars each.
const MAX_RATE: u64 = 9_000_000_000_000;

/// The arguments of a script.
#[derive(Debug, Default)]
pub(crate) struct Args(pub(crate) Vec<Vec<u8>>);

impl Args {
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.push(bytes.to_vec());
        self
    }

    pub(crate) fn number(&mut self, n: u64) -> &mut Self {
        self.0.push(n.to_string().into_bytes());
        self
    }

    /// A length of time, a hundred years at the most.
    pub(crate) fn micros(&mut self, d: Duration) -> &mut Self {
        self.number(micros(d).min(MAX_MICROS))
    }

    pub(crate) fn hold(&mut self, id: HoldId) -> &mut Self {
        self.bytes(&id.as_u128().to_be_bytes())
    }

    pub(crate) fn run(&mut self, run: RunId) -> &mut Self {
        self.text(&format!("{:032x}", run.as_u128()))
    }

    /// What was used; what is beyond every count stops at the largest.
    pub(crate) fn totals(&mut self, used: &Totals) -> &mut Self {
        for n in numbers(used) {
            self.number(n.min(MAX_COUNT));
        }
        self
    }

    pub(crate) fn flag(&mut self, set: bool) -> &mut Self {
        self.text(if set { "1" } else { "" })
    }

    /// The amounts and the price of a hold.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<&mut Self> {
        if ask.input > MAX_COUNT {
            return Err(beyond(format!("a hold of {} prompt tokens", ask.input)));
        }
        self.number(ask.input).number(ask.output.min(MAX_OUTPUT)).number(ask.min_output.min(MAX_OUTPUT));
        self.number(ask.wall.min(MAX_MICROS)).number(ask.min_wall.min(MAX_MICROS));
        let Some(price) = ask.price else {
            return Ok(self.text(if ask.needs_price { "?" } else { "" }).number(0).number(0));
        };
        let price = price.at(ask.input);
        if price.output > MAX_RATE {
            return Err(beyond(format!("a price of {} pico-dollars for each generated token", price.output)));
        }
        let dearest = price.input.max(price.cached_input).max(price.cache_write);
        let pico = u128::from(ask.input) * u128::from(dearest);
        let nano = u64::try_from(pico / 1_000).ok().filter(|nano| *nano < MAX_COUNT);
        let nano = nano.ok_or_else(|| beyond(format!("what {} prompt tokens may cost", ask.input)))?;
        Ok(self.number(nano).number((pico % 1_000) as u64).number(price.output))
    }

    /// Whose it is, for the name beside a counter.
    pub(crate) fn name(&mut self, owner: &Owner, epoch: u64) -> &mut Self {
        let user = owner.user_id().map_or("", |id| id.as_str());
        self.text(owner.namespace().as_str()).text(user).text(&format!("{epoch:020}"))
    }
}

/// In the order of the counters.
fn numbers(used: &Totals) -> [u64; 8] {
    let usage = &used.usage;
    [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.cost_usd.0,
        used.wall,
        used.estimated,
    ]
}

fn usage_of(n: &[u64]) -> Option<Usage> {
    let [input, cached, write, output, reasoning, cost, ..] = *n else { return None };
    let usage = Usage::new(input, output).with_cache(cached, write).with_reasoning(reasoning);
    Some(usage.with_cost(NanoUsd(cost)))
}

/// A moment as the scripts take it.
pub(crate) fn moment(at: Timestamp) -> Result<String> {
    let micros = at.as_micros();
    if micros.unsigned_abs() > MAX_COUNT - 2 * MAX_MICROS {
        let message = format!("the clock says {at}, which is beyond what Redis counts exactly");
        return Err(Error::new(ErrorKind::Internal, message));
    }
    Ok(micros.to_string())
}

fn beyond(what: String) -> Error {
    Error::invalid_input(format!(
        "{what} is beyond what Redis counts exactly: a number of its scripts is exact up to 9,007,199,254,740,991"
    ))
}

/// The error of a hold that would carry a counter beyond what is counted exactly.
pub(crate) fn overflow() -> Error {
    Error::new(
        ErrorKind::Capacity,
        "with this hold a counter could pass 9,007,199,254,740,991, beyond which Redis does not count exactly: ask for fewer \
         tokens, or set a cap or a window",
    )
}

/// An answer that no script of ours gives.
pub(crate) fn unreadable() -> Error {
    Error::new(
        ErrorKind::Internal,
        "Redis answered with something that is not a ledger's: another program uses its keys",
    )
}

/// An answer: whether more holds are due, what it is, and its parts.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) more: bool,
    pub(crate) word: String,
    parts: std::vec::IntoIter<Value>,
}

impl Reply {
    pub(crate) fn read(values: Vec<Value>) -> Result<Self> {
        let mut parts = values.into_iter();
        let (Some(Value::Int(more)), Some(word)) = (parts.next(), parts.next()) else {
            return Err(unreadable());
        };
        Ok(Self { more: more == 1, word: String::from_redis_value(word).map_err(|_| unreadable())?, parts })
    }

    /// Whether nothing that anybody asked for was written.
    pub(crate) fn is_look(&self) -> bool {
        !matches!(&*self.word, "held" | "done" | "settled" | "known")
    }

    pub(crate) fn number(&mut self) -> Result<u64> {
        match self.parts.next() {
            Some(Value::Int(n)) => u64::try_from(n).map_err(|_| unreadable()),
            _ => Err(unreadable()),
        }
    }

    pub(crate) fn signed(&mut self) -> Result<Option<i64>> {
        match self.parts.next() {
            Some(Value::Int(n)) => Ok(Some(n)),
            Some(Value::BulkString(empty)) if empty.is_empty() => Ok(None),
            _ => Err(unreadable()),
        }
    }

    pub(crate) fn text(&mut self) -> Result<String> {
        let value = self.parts.next().ok_or_else(unreadable)?;
        String::from_redis_value(value).map_err(|_| unreadable())
    }

    pub(crate) fn hold(&mut self) -> Result<HoldId> {
        self.parts.next().as_ref().and_then(id_of).map(HoldId::from_u128).ok_or_else(unreadable)
    }

    /// Whose it is; `None` where no name is kept.
    pub(crate) fn owner(&mut self) -> Result<Option<Owner>> {
        let (namespace, user) = (self.text()?, self.text()?);
        if namespace.is_empty() {
            return Ok(None);
        }
        Owner::from_columns(&namespace, Some(&*user).filter(|user| !user.is_empty())).map(Some)
    }

    fn list(&mut self) -> Result<Vec<Value>> {
        match self.parts.next() {
            Some(Value::Array(list)) => Ok(list),
            None => Ok(Vec::new()),
            _ => Err(unreadable()),
        }
    }

    pub(crate) fn entity(&mut self) -> Result<Entity> {
        entity(&self.text()?)
    }

    pub(crate) fn cap(&mut self) -> Result<Cap> {
        cap(self.number()?)
    }

    pub(crate) fn warnings(&mut self) -> Result<Vec<Warning>> {
        let mut out = Vec::new();
        for one in self.list()? {
            let (who, which, limit, used): (String, u64, u64, u64) =
                redis::from_redis_value(one).map_err(|_| unreadable())?;
            out.push(Warning::new(entity(&who)?, cap(which)?, limit, used));
        }
        Ok(out)
    }

    pub(crate) fn settled(&mut self) -> Result<Settled> {
        let mut settled = Settled::default();
        (settled.duplicate, settled.excess_tokens) = (self.number()? == 1, self.number()?);
        settled.warnings = self.warnings()?;
        Ok(settled)
    }

    pub(crate) fn estimates(&mut self) -> Result<Vec<EstimatedCharge>> {
        self.list()?.into_iter().map(|one| estimate(one).ok_or_else(unreadable)).collect()
    }

    /// What a counter used, and what it holds.
    pub(crate) fn counter(&mut self) -> Result<Counter> {
        let mut n = [0; 13];
        for slot in &mut n {
            *slot = self.number()?;
        }
        let usage = usage_of(&n).ok_or_else(unreadable)?;
        Ok(Counter { usage, wall: n[6], estimated: n[7], held: [n[8], n[9], n[10], n[11]], open: n[12] })
    }
}

/// A counter as a script tells it.
#[derive(Debug)]
pub(crate) struct Counter {
    pub(crate) usage: Usage,
    pub(crate) wall: u64,
    pub(crate) estimated: u64,
    /// Input, output, cost and wall clock.
    held: [u64; 4],
    pub(crate) open: u64,
}

impl Counter {
    pub(crate) fn held_tokens(&self) -> u64 {
        self.held[0].saturating_add(self.held[1])
    }

    /// What of a cap is used, and what is held.
    pub(crate) fn numbers(&self, cap: Cap) -> (u64, u64) {
        let [input, output, cost, wall] = self.held;
        match cap {
            Cap::Tokens => (self.usage.total_tokens(), self.held_tokens()),
            Cap::InputTokens => (self.usage.input_tokens, input),
            Cap::OutputTokens => (self.usage.output_tokens, output),
            Cap::Cost => (self.usage.cost_usd.0, cost),
            _ => (self.wall, wall),
        }
    }
}

fn estimate(value: Value) -> Option<EstimatedCharge> {
    let Value::Array(parts) = value else { return None };
    let (id, run) = (id_of(parts.first()?)?, run_of(parts.get(1)?)?);
    let rest = parts.get(2..)?.iter();
    let rest: Vec<u64> = rest
        .map(|v| if let Value::Int(n) = v { u64::try_from(*n).ok() } else { None })
        .collect::<Option<_>>()?;
    let key = HoldKey::new(RunId::from_u128(run), u32::try_from(*rest.first()?).ok()?);
    let expired = *rest.get(1)? == 1;
    Some(EstimatedCharge::new(HoldId::from_u128(id), key, usage_of(rest.get(2..)?)?, expired))
}

fn id_of(value: &Value) -> Option<u128> {
    let Value::BulkString(bytes) = value else { return None };
    Some(u128::from_be_bytes(bytes.as_slice().try_into().ok()?))
}

fn run_of(value: &Value) -> Option<u128> {
    let Value::BulkString(bytes) = value else { return None };
    u128::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok()
}

fn entity(letter: &str) -> Result<Entity> {
    Ok(match letter {
        "g" => Entity::Global,
        "u" => Entity::User,
        "r" => Entity::Run,
        _ => return Err(unreadable()),
    })
}

/// The letter and the number that scripts know an entity and a cap by.
pub(crate) fn letter(entity: Entity) -> char {
    match entity {
        Entity::Global => 'g',
        Entity::User => 'u',
        _ => 'r',
    }
}

pub(crate) fn cap_number(cap: Cap) -> u64 {
    match cap {
        Cap::Tokens => 1,
        Cap::InputTokens => 2,
        Cap::OutputTokens => 3,
        Cap::Cost => 4,
        _ => 5,
    }
}

fn cap(number: u64) -> Result<Cap> {
    Ok(match number {
        1 => Cap::Tokens,
        2 => Cap::InputTokens,
        3 => Cap::OutputTokens,
        4 => Cap::Cost,
        5 => Cap::WallClock,
        _ => return Err(unreadable()),
    })
}
