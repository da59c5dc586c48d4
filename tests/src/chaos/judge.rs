//! Brings three accounts together that know nothing of one another: what the provider billed, what workers noted, and
//! what the ledger says. Counts what does not agree.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use loomflow_core::{Error, EstimatedCharge, HoldId, Ledger, Result, Scope, Usage};
use serde::Serialize;

use super::witness::{Charged, Note};

/// Users that are asked about at a time.
const AT_ONCE: usize = 16;
/// Attempts at a question, because a server may just have come back.
const ATTEMPTS: u32 = 120;
/// How many findings are told in words.
const TOLD: usize = 8;

/// Prompt and generated tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "two numbers")]
pub(super) struct Tokens {
    /// Prompt tokens.
    pub(super) input: u64,
    /// Generated tokens.
    pub(super) output: u64,
}

impl Tokens {
    fn of(usage: &Usage) -> Self {
        Self { input: usage.input_tokens, output: usage.output_tokens }
    }

    fn add(&mut self, other: Self) {
        self.input += other.input;
        self.output += other.output;
    }

    /// Both together.
    pub(super) fn total(self) -> u64 {
        self.input + self.output
    }

    fn covers(self, other: Self) -> bool {
        self.input >= other.input && self.output >= other.output
    }
}

impl From<Charged> for Tokens {
    fn from(charged: Charged) -> Self {
        Self { input: charged.input, output: charged.output }
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.input, self.output)
    }
}

/// What became of a hold, as far as its worker could note it.
#[derive(Clone, Debug)]
struct Story {
    key: String,
    user: String,
    /// Its process came to its own end.
    lived: bool,
    closing: Option<Charged>,
    closed: Option<Charged>,
    failed: bool,
}

/// What the provider and the workers wrote.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    bills: HashMap<String, (String, Tokens)>,
    stories: HashMap<HoldId, Story>,
}

impl Evidence {
    /// Reads the provider's invoice.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub(super) fn invoice(&mut self, path: &Path) -> std::io::Result<()> {
        for line in std::fs::read_to_string(path)?.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [key, user, input, output] = fields[..] else {
                return Err(std::io::Error::other("the invoice has a line that is none"));
            };
            let number = |text: &str| text.parse::<u64>().map_err(std::io::Error::other);
            let bill = self.bills.entry(key.to_owned()).or_insert((user.to_owned(), Tokens::default()));
            bill.1.add(Tokens { input: number(input)?, output: number(output)? });
        }
        Ok(())
    }

    /// Reads one worker's notes.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(super) fn notes(&mut self, path: &Path) -> std::io::Result<()> {
        let text = std::fs::read_to_string(path)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let notes: Vec<Note> = text[..whole]
            .lines()
            .map(|line| serde_json::from_str(line).map_err(std::io::Error::other))
            .collect::<std::io::Result<_>>()?;
        let lived = notes.contains(&Note::End);
        for note in notes {
            match note {
                Note::Held { hold, key, user } => {
                    let story = Story { key, user, lived, closing: None, closed: None, failed: false };
                    self.stories.entry(hold).or_insert(story);
                }
                Note::Closing { hold, charged } => self.change(hold, |story| story.closing = Some(charged)),
                Note::Closed { hold, charged } => self.change(hold, |story| story.closed = Some(charged)),
                Note::Failed { hold } => self.change(hold, |story| story.failed = true),
                Note::End => {}
            }
        }
        Ok(())
    }

    fn change(&mut self, hold: HoldId, change: impl FnOnce(&mut Story)) {
        // A hold that nobody was granted is found by the bill it has, or has not.
        if let Some(story) = self.stories.get_mut(&hold) {
            change(story);
        }
    }

    fn bill(&self, key: &str) -> Option<Tokens> {
        self.bills.get(key).map(|(_, tokens)| *tokens)
    }

    /// All that was billed.
    pub(super) fn invoiced(&self) -> Tokens {
        self.bills.values().fold(Tokens::default(), |mut sum, (_, bill)| {
            sum.add(*bill);
            sum
        })
    }

    /// How many calls were billed.
    pub(super) fn calls(&self) -> u64 {
        self.bills.len() as u64
    }
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(clippy::exhaustive_structs, reason = "made and added up by the rooms beside it")]
pub struct Verdict {
    /// Calls that were billed and not charged, and users whose charges are less than their parts.
    pub lost: u64,
    /// Charges without a bill, and users whose charges are more than their parts.
    pub doubled: u64,
    /// Calls whose process lived that were not charged what they were billed.
    pub live_mismatches: u64,
    /// Estimates below the bill.
    pub undercharged: u64,
    /// Estimated charges that the ledger does not list.
    pub unlisted: u64,
    /// Users whose charges were not their bills after reconciliation, and holds that were reconciled twice.
    pub unreconciled: u64,
    /// Calls that are charged by estimate.
    pub estimated_calls: u64,
    /// Of these, those whose process died or could not close them.
    pub orphaned_calls: u64,
    /// Closes that failed, or were given up, in a process that lived.
    pub failed_closes: u64,
    /// Calls that were billed.
    pub billed_calls: u64,
    /// What was billed.
    pub invoiced_tokens: u64,
    /// What the ledger had charged before anything was reconciled.
    pub ledger_tokens: u64,
    /// What it had charged afterwards.
    pub reconciled_tokens: u64,
    /// The first findings in words.
    pub told: Vec<String>,
}

impl Verdict {
    /// How much does not agree.
    pub fn findings(&self) -> u64 {
        self.lost
            + self.doubled
            + self.live_mismatches
            + self.undercharged
            + self.unlisted
            + self.unreconciled
    }

    /// Adds another one.
    pub(super) fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.live_mismatches += other.live_mismatches;
        self.undercharged += other.undercharged;
        self.unlisted += other.unlisted;
        self.unreconciled += other.unreconciled;
        self.estimated_calls += other.estimated_calls;
        self.orphaned_calls += other.orphaned_calls;
        self.failed_closes += other.failed_closes;
        self.billed_calls += other.billed_calls;
        self.invoiced_tokens += other.invoiced_tokens;
        self.ledger_tokens += other.ledger_tokens;
        self.reconciled_tokens += other.reconciled_tokens;
        for told in other.told {
            self.tell(told);
        }
    }

    fn tell(&mut self, what: String) {
        if self.told.len() < TOLD {
            self.told.push(what);
        }
    }
}

/// Judges what everybody says. `scope` gives a user's scope. Everything is over by now, and no lease is open.
///
/// # Errors
///
/// When the ledger cannot be asked.
pub(super) async fn judge(
    ledger: &dyn Ledger,
    evidence: &Evidence,
    scope: impl Fn(&str) -> Result<Scope>,
) -> Result<Verdict> {
    let mut users: BTreeMap<&str, User<'_>> = BTreeMap::new();
    for (hold, story) in &evidence.stories {
        let bill = evidence.bill(&story.key);
        users.entry(&story.user).or_default().holds.push((*hold, story, bill));
    }
    let mut verdict = Verdict { billed_calls: evidence.calls(), ..Verdict::default() };
    let known: std::collections::HashSet<&str> =
        evidence.stories.values().map(|story| story.key.as_str()).collect();
    for (key, (user, bill)) in &evidence.bills {
        users.entry(user).or_default().billed.add(*bill);
        if !known.contains(key.as_str()) {
            verdict.lost += 1;
            verdict.tell(format!("{key} of {user} was billed {bill} and never held"));
        }
    }
    let users = users.into_iter().map(|(name, user)| scope(name).map(|scope| (name, scope, user)));
    let users: Vec<_> = users.collect::<Result<_>>()?;
    let mut judged = stream::iter(&users)
        .map(|(name, scope, user)| Box::pin(user.judge(ledger, name, scope)))
        .buffer_unordered(AT_ONCE);
    while let Some(one) = judged.try_next().await? {
        verdict.add(one);
    }
    verdict.invoiced_tokens = evidence.invoiced().total();
    if let Some((_, scope, _)) = users.first() {
        let total = asked(async || ledger.namespace_usage(scope).await).await?;
        let total = Tokens::of(&total.used);
        if total != evidence.invoiced() {
            verdict.unreconciled += 1;
            let bill = evidence.invoiced();
            verdict.tell(format!("all users together are charged {total}, and the invoice says {bill}"));
        }
    }
    Ok(verdict)
}

/// One user, as the invoice and the notes know them.
#[derive(Debug, Default)]
struct User<'e> {
    holds: Vec<(HoldId, &'e Story, Option<Tokens>)>,
    billed: Tokens,
}

impl User<'_> {
    async fn judge(&self, ledger: &dyn Ledger, name: &str, scope: &Scope) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let listed = asked(async || ledger.estimates(scope).await).await?;
        let listed: Vec<EstimatedCharge> =
            listed.into_iter().map(|owned| owned.open(scope)).collect::<Result<_>>()?;
        let by_hold: HashMap<HoldId, &EstimatedCharge> = listed.iter().map(|e| (e.hold, e)).collect();
        verdict.estimated_calls = listed.len() as u64;
        let mut expected = Tokens::default();
        for (hold, story, bill) in &self.holds {
            let listed = by_hold.get(hold).map(|estimate| Tokens::of(&estimate.charged));
            expected.add(verdict.of_hold(story, listed, *bill));
        }
        for estimate in &listed {
            if !self.holds.iter().any(|(hold, ..)| *hold == estimate.hold) {
                verdict.doubled += 1;
                verdict.tell(format!("{} of {name} is charged and was granted to nobody", estimate.hold));
            }
        }
        let used = self.used(ledger, scope).await?;
        verdict.ledger_tokens = used.total();
        let (less, more) = (!used.covers(expected), !expected.covers(used));
        verdict.lost += u64::from(less);
        verdict.doubled += u64::from(more);
        if less || more {
            verdict.tell(format!("{name} is charged {used}, and the parts of that are {expected}"));
        }
        self.reconcile(ledger, name, scope, &listed, &mut verdict).await?;
        Ok(verdict)
    }

    /// Puts the bill in the place of every estimate; then the ledger has to say what the invoice says.
    async fn reconcile(
        &self,
        ledger: &dyn Ledger,
        name: &str,
        scope: &Scope,
        listed: &[EstimatedCharge],
        verdict: &mut Verdict,
    ) -> Result<()> {
        for estimate in listed {
            let bill = self.holds.iter().find(|(hold, ..)| *hold == estimate.hold);
            let bill = bill.and_then(|(_, _, bill)| *bill).unwrap_or_default();
            let actual = Usage::new(bill.input, bill.output);
            let first = asked(async || ledger.reconcile(scope, estimate.hold, actual).await).await?;
            let again = asked(async || ledger.reconcile(scope, estimate.hold, actual).await).await?;
            if first.duplicate || !again.duplicate {
                verdict.unreconciled += 1;
                let (first, again) = (first.duplicate, again.duplicate);
                verdict.tell(format!(
                    "{}: reconciled twice, the answers say duplicate {first}, {again}",
                    estimate.hold
                ));
            }
        }
        let used = self.used(ledger, scope).await?;
        verdict.reconciled_tokens = used.total();
        if used != self.billed {
            verdict.unreconciled += 1;
            verdict.tell(format!(
                "{name} is charged {used} after reconciliation and was billed {}",
                self.billed
            ));
        }
        Ok(())
    }

    async fn used(&self, ledger: &dyn Ledger, scope: &Scope) -> Result<Tokens> {
        Ok(Tokens::of(&asked(async || ledger.usage(scope).await).await?.used))
    }
}

impl Verdict {
    /// Judges one hold, and says what of it has to be charged now.
    fn of_hold(&mut self, story: &Story, listed: Option<Tokens>, bill: Option<Tokens>) -> Tokens {
        let owed = bill.unwrap_or_default();
        if let Some(charged) = story.closed {
            let tokens = Tokens::from(charged);
            if tokens != owed {
                let count = if bill.is_none() { &mut self.doubled } else { &mut self.live_mismatches };
                *count += 1;
                self.tell(format!(
                    "{} of {} is charged {tokens} and was billed {owed}",
                    story.key, story.user
                ));
            }
            if charged.estimated && tokens != Tokens::default() && listed != Some(tokens) {
                self.unlisted += 1;
                self.tell(format!(
                    "{} of {} is an estimate of {tokens} and not listed as one",
                    story.key, story.user
                ));
            }
            return tokens;
        }
        // A close that began and of which nothing more is known was given up: the closer waits for a store only so long.
        let tried = story.failed || story.closing.is_some();
        self.failed_closes += u64::from(tried && story.lived);
        match (listed, story.closing) {
            (Some(charged), _) => {
                self.orphaned_calls += 1;
                if story.lived && !tried {
                    self.live_mismatches += 1;
                    self.tell(format!(
                        "{} of {} was never closed, and its process lived",
                        story.key, story.user
                    ));
                }
                if !charged.covers(owed) {
                    self.undercharged += 1;
                    self.tell(format!(
                        "{} of {} is estimated at {charged} and was billed {owed}",
                        story.key, story.user
                    ));
                }
                charged
            }
            // The close had begun: it happened, and nobody was there to hear of it.
            (None, Some(closing)) => closing.into(),
            (None, None) => {
                if bill.is_some() {
                    self.lost += 1;
                    self.tell(format!(
                        "{} of {} was billed {owed} and is not charged",
                        story.key, story.user
                    ));
                }
                Tokens::default()
            }
        }
    }
}

/// Asks until there is an answer: a server that was killed may have only just come back.
pub(super) async fn asked<T>(question: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut failed: Option<Error> = None;
    for _ in 0..ATTEMPTS {
        match question().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_retryable() => failed = Some(error),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Err(failed.expect("it is asked at least once"))
}
