//! The handler: posts a request, and reads a decision from the answer if there is a signed one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    ApprovalDecision, ApprovalHandler, ApprovalId, ApprovalRequest, Error, ErrorKind, Notified, Result,
    RunContext, Secret, UserId,
};
use loomflow_support_model::{Auth, HttpClient, Post};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::WebhookConfig;
use crate::signature::{IDEMPOTENCY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign, verify};

/// The most bytes of an answer that are read.
const MAX_ANSWER: usize = 256 << 10;
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Takes requests for approval to a webhook. See the crate's documentation.
#[derive(Clone)]
pub struct WebhookApprovals {
    client: HttpClient,
    secret: Arc<Secret<String>>,
    attempts: u32,
    backoff: Duration,
    tolerance: Duration,
}

/// A decision in an answer. Whatever else the answer has is nobody's business.
#[derive(Deserialize)]
struct Answer {
    approval_id: ApprovalId,
    #[serde(default)]
    by: Option<UserId>,
    #[serde(flatten)]
    decision: ApprovalDecision,
}

impl WebhookApprovals {
    /// A handler that posts to the webhook of `config`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a URL that is neither `https://` nor on this machine, that has a user, a query or a fragment,
    /// for a secret of less than 32 bytes, and for a certificate that cannot be read.
    pub fn new(config: &WebhookConfig) -> Result<Self> {
        Ok(Self {
            client: HttpClient::new("approval webhook", &config.client()?)?,
            secret: config.secret.clone(),
            attempts: config.attempts.max(1),
            backoff: config.backoff,
            tolerance: config.tolerance,
        })
    }

    /// Posts the body once, signed anew. `Err` says whether it may be tried again.
    async fn attempt(
        &self,
        ctx: &RunContext,
        id: ApprovalId,
        body: &[u8],
    ) -> std::result::Result<Notified, (Error, bool)> {
        let mut post =
            Post::new("", Auth::None, body.to_vec()).with_header(IDEMPOTENCY_HEADER, id.to_string());
        for (name, value) in sign(&self.secret, body, ctx.now()) {
            post = post.with_header(name, value);
        }
        let sent = self.client.post(ctx, post).await;
        let mut answer = sent.map_err(|error| {
            // Delivering a request again changes nothing, so that a lost answer is no reason not to.
            let again =
                error.is_retryable() || matches!(error.kind(), ErrorKind::Transport | ErrorKind::Timeout);
            (error, again)
        })?;
        let status = answer.status();
        if !(200..300).contains(&status) {
            let error = Error::new(ErrorKind::Transport, format!("the approval webhook answered {status}"));
            return Err((error, status == 429 || status >= 500));
        }
        let text = answer.read_all(MAX_ANSWER).await.map_err(|error| (error, false))?;
        let headers = [TIMESTAMP_HEADER, SIGNATURE_HEADER].map(|name| (name, answer.header(name)));
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.read(headers, id, &text, ctx).map_err(|error| (error, false))
    }

    /// What an answer says. One without a decision needs no signature: it says that the request arrived.
    fn read<'h>(
        &self,
        headers: impl IntoIterator<Item = (&'h str, &'h str)>,
        id: ApprovalId,
        text: &[u8],
        ctx: &RunContext,
    ) -> Result<Notified> {
        let decides =
            serde_json::from_slice::<Value>(text).is_ok_and(|value| value.get("decision").is_some());
        if !decides {
            return Ok(Notified::Pending);
        }
        verify(&self.secret, headers, text, ctx.now(), self.tolerance)?;
        let answer: Answer = serde_json::from_slice(text).map_err(|_| {
            // The cause would quote the answer.
            Error::new(ErrorKind::Transport, "the decision of the approval webhook cannot be read")
        })?;
        if answer.approval_id != id {
            let why = "the approval webhook answered with the decision of another request";
            return Err(Error::new(ErrorKind::Transport, why));
        }
        Ok(Notified::Decided { decision: answer.decision, by: answer.by })
    }
}

impl fmt::Debug for WebhookApprovals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookApprovals({} attempts)", self.attempts)
    }
}

#[async_trait]
impl ApprovalHandler for WebhookApprovals {
    async fn notify(&self, ctx: &RunContext, ask: &ApprovalRequest) -> Result<Notified> {
        let body = body(ctx, ask);
        let mut pause = self.backoff;
        let mut left = self.attempts;
        loop {
            left -= 1;
            match self.attempt(ctx, ask.id, body.as_bytes()).await {
                Ok(notified) => return Ok(notified),
                Err((_, true)) if left > 0 => {}
                Err((error, _)) => return Err(error),
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The request as an approver must see it: with the very arguments that would be executed.
fn body(ctx: &RunContext, ask: &ApprovalRequest) -> String {
    let body = json!({
        "type": "approval_request",
        "approval_id": ask.id,
        "namespace": ctx.scope().namespace(),
        "user_id": ctx.user_id(),
        "session_id": ctx.session_id(),
        "run_id": ask.run,
        "call_id": ask.call_id,
        "tool": ask.tool,
        "effect": ask.effect,
        "arguments": ask.arguments,
        "why": ask.why,
        "approvers": ask.approvers,
        "self_approval": ask.self_approval,
        "requested_at": ask.requested_at,
        "expires_at": ask.expires_at,
    });
    body.to_string()
}
