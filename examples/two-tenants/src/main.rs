//! Two tenants, one shared agent, no key and no server: what each can and cannot see, spend and do.
//!
//! `cargo run -p two-tenants`. The model is a stand-in that answers from its prompt alone: it repeats whatever PIN it can find
//! there. If anything of Alice reached Bob's prompt, it would say so.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example that shows something has to print it")]

mod stand_in;
mod tools;

use std::sync::Arc;

use loomflow::prelude::*;
use loomflow::{AuditLog as _, AuditQuery, Notified, Price, UserAgent};
use stand_in::StandInModel;
use tools::refund;

#[tokio::main]
async fn main() -> Result<()> {
    let log = Arc::new(InMemoryAuditLog::new());
    let agent = Agent::builder("You are the support assistant of a small bank.")
        .model(StandInModel::new(Price::per_token(400_000, 1_600_000)))
        .memory(InMemoryMemory::new())
        .budget(StandardBudget::new(BudgetConfig::new().per_user_max_tokens(260).window(Window::Day))?)
        .permissions(
            PerUserPermissions::new(StandardPermissions::default())
                .policy(id("alice")?, StandardPermissions::bypass()),
        )
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) }))
        .approvers([id("alice")?])
        .audit_log(log.clone())
        .runtime(InProcRuntime::new())
        .tool(refund)
        .max_output_tokens(40)
        .build()?;
    let (alice, bob) = (agent.for_user(id("alice")?), agent.for_user(id("bob")?));

    title("What each can see: both use the session \"chat\"");
    talk("alice", &alice, "Hello, my pin is 4711").await?;
    talk("bob", &bob, "Hello, what is my pin?").await?;
    talk("alice", &alice, "What is my pin?").await?;

    title("What each can do: Alice is staff, Bob is not");
    talk("alice", &alice, "Please refund 20 cents").await?;
    bob_asks_for_a_refund(&alice, &bob).await?;
    println!("  refunds executed: {}", tools::executed());

    title("What each can spend: 260 tokens a day");
    loop {
        match bob.run("Hello again, and again, and again").session("chat").await {
            Ok(_) => continue,
            Err(error) => {
                println!("  bob    is refused: {error}");
                break;
            }
        }
    }
    for (name, tenant) in [("alice", &alice), ("bob", &bob)] {
        let usage = tenant.usage().await?;
        println!(
            "  {name:<6} used {:>3} of 260 tokens ({} USD), holds {}",
            usage.used.total_tokens(),
            usage.used.cost_usd,
            usage.held_tokens
        );
    }

    title("What is left after Bob says \"forget me\"");
    let receipt = bob.forget(Erase::everything()).await?;
    for line in &receipt.stores {
        let counts: Vec<String> =
            line.counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        let erased = if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") };
        println!("  {:<19} erased: {erased}", line.store);
        for why in &line.retained {
            println!("  {:<19} kept:   {why}", "");
        }
    }
    for (name, tenant) in [("alice", &alice), ("bob", &bob)] {
        let profile = tenant.memory().await?.profile().await?;
        println!("  {name:<6} is remembered by {} turns", profile.episodes);
    }

    title("What an operator can prove");
    agent.shutdown().await?;
    let whole = log.verify().await?;
    println!(
        "  audit log: {} entries, chain {}",
        whole.entries,
        if whole.is_valid() { "valid" } else { "BROKEN" }
    );
    for (name, tenant) in [("alice", &alice), ("bob", &bob)] {
        let entries = tenant.audit(&AuditQuery::first(1_000)).await?;
        let ended = entries.iter().filter(|entry| entry.event.action.is_terminal()).count();
        let began = entries.iter().filter(|entry| entry.event.action.as_str() == "run_started").count();
        println!(
            "  {name:<6} sees {:>2} entries, all their own: {began} runs began, {ended} ended",
            entries.len()
        );
    }
    Ok(())
}

/// Bob's refund needs approval. The run waits, Alice decides, the run goes on.
async fn bob_asks_for_a_refund(alice: &UserAgent, bob: &UserAgent) -> Result<()> {
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.run("Please refund 99 cents").session("chat").await }
    });
    let request = loop {
        if let Some(approval) = alice.approvals().await?.pop() {
            break approval.request;
        }
        tokio::task::yield_now().await;
    };
    println!("  bob    > Please refund 99 cents");
    println!("           waits: {} {} needs approval ({})", request.tool, request.arguments, request.why);
    match bob.decide(request.id, loomflow::ApprovalDecision::Approve).await {
        Err(error) => println!("           bob approves it himself: refused ({error})"),
        Ok(()) => println!("           bob approved his own request: this must not happen"),
    }
    alice.decide(request.id, loomflow::ApprovalDecision::Deny { reason: "99 is too much".into() }).await?;
    let result = waiting.await.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))??;
    println!("           alice declines; the agent says: {}", result.output);
    Ok(())
}

async fn talk(name: &str, tenant: &UserAgent, words: &str) -> Result<()> {
    let result = tenant.run(words).session("chat").await?;
    println!("  {name:<6} > {words}");
    println!("         < {}", result.output);
    Ok(())
}

fn id(name: &str) -> Result<UserId> {
    UserId::new(name)
}

fn title(text: &str) {
    println!("\n{text}\n{}", "-".repeat(text.chars().count()));
}
