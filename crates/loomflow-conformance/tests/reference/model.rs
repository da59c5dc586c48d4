//! A small adapter over a bare connection, without a pool, and the defects that can be put into it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use loomflow_conformance::models::Setup;
use loomflow_core::{
    AdmittedCall, Delta, Done, Error, ErrorKind, Message, Model, ModelCapabilities, ModelRequest,
    ModelStream, Result, RunContext, SecretRef, StopReason, Timestamp, ToolCall, Usage, wire_name,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Bug;

const MAX_HEAD: usize = 32 << 10;
const MAX_EVENT: usize = 1 << 20;
const MAX_BODY: usize = 8 << 20;
const MAX_STREAM: usize = 64 << 20;
const MAX_CALLS: usize = 128;

#[derive(Debug)]
pub(crate) struct ToyModel {
    bug: Bug,
    base_url: String,
    key: SecretRef,
    headers: Duration,
    idle: Duration,
    plain: bool,
    kept: Arc<Mutex<Option<String>>>,
}

impl ToyModel {
    pub(crate) fn new(bug: Bug, setup: &Setup) -> Self {
        Self {
            bug,
            base_url: setup.base_url.clone(),
            key: setup.key.clone(),
            headers: setup.headers_timeout,
            idle: setup.idle_timeout,
            plain: setup.plain,
            kept: Arc::default(),
        }
    }

    fn body(&self, request: &ModelRequest) -> Value {
        let name = |name: &str| match self.bug {
            Bug::NameWithDot => name.to_owned(),
            _ => wire_name(name).into_owned(),
        };
        let call = |c: &ToolCall| json!({"id": c.id, "name": name(&c.name), "arguments": c.arguments});
        let message = |m: &Message| {
            let calls: Vec<Value> = m.calls().iter().map(call).collect();
            json!({"role": format!("{:?}", m.role), "text": m.text, "calls": calls, "for": m.tool_call_id})
        };
        let most = if self.bug == Bug::ClampForgotten { 4_096 } else { request.max_output_tokens };
        json!({
            "messages": request.messages.iter().map(message).collect::<Vec<_>>(),
            "tools": request.tools.iter().map(|t| json!({"name": name(&t.name), "schema": *t.parameters})).collect::<Vec<_>>(),
            "schema": request.output_schema.as_deref().filter(|_| self.bug != Bug::SchemaForgotten),
            "max_tokens": most,
            "plain": self.plain,
        })
    }

    async fn key(&self, ctx: &RunContext) -> Result<String> {
        let resolved = ctx.secret(&self.key).await;
        let resolved =
            if self.bug == Bug::StoreIsProvider { resolved } else { resolved.map_err(nothing_was_sent) };
        let mut key = resolved?.expose().clone();
        if self.bug == Bug::KeyIsKept {
            key = self.kept.lock().unwrap().get_or_insert(key).clone();
        }
        if self.bug == Bug::KeyOfWhoeverWasLast {
            *self.kept.lock().unwrap() = Some(key);
            tokio::time::sleep(Duration::from_millis(3)).await;
            key = self.kept.lock().unwrap().clone().unwrap();
        }
        let bad = key.is_empty() && self.bug != Bug::EmptyKeySent
            || key.chars().any(char::is_control) && self.bug != Bug::KeyInjects;
        if bad { Err(Error::new(ErrorKind::Config, "the key cannot be sent")) } else { Ok(key) }
    }

    /// Sends the request and waits for the head of the answer.
    async fn ask(&self, address: &str, key: &str, body: &Value) -> Result<Answer> {
        let host = address.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let stream = TcpStream::connect(host).await.map_err(|_| match self.bug {
            Bug::RefusedIsTransport => Error::new(ErrorKind::Transport, "not connected"),
            _ => Error::new(ErrorKind::Unreachable, "nobody listens"),
        })?;
        let mut answer = Answer::new(self.bug, stream, self.idle, key);
        let body = body.to_string();
        let request = format!(
            "POST /chat HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if self.bug == Bug::HeadersTimeoutPerRead {
            answer.per_read = Some(self.headers);
        }
        let asking = async {
            answer
                .stream
                .write_all(request.as_bytes())
                .await
                .map_err(|_| transport("the connection broke"))?;
            answer.read_head().await
        };
        if matches!(self.bug, Bug::NoHeadersTimeout | Bug::HeadersTimeoutPerRead) {
            asking.await?;
        } else {
            let late = |_| Error::new(ErrorKind::Timeout, "no head came");
            timeout(self.headers, asking).await.map_err(late)??;
        }
        answer.per_read = None;
        Ok(answer)
    }

    /// The refusal that a status is.
    async fn refused(&self, answer: &mut Answer, now: Timestamp) -> Error {
        let most = if self.bug == Bug::UnboundedErrorBody { usize::MAX } else { 64 << 10 };
        let body = answer.read_up_to(most).await.unwrap_or_default();
        let status = answer.status;
        let kind = match status {
            _ if self.bug == Bug::EveryStatusIsOverloaded => ErrorKind::Overloaded,
            401 | 403 => ErrorKind::Auth,
            413 => ErrorKind::ContextTooLong,
            429 => ErrorKind::RateLimited,
            504 => ErrorKind::Timeout,
            408 | 409 | 500.. => ErrorKind::Overloaded,
            _ => ErrorKind::BadRequest,
        };
        let said = serde_json::from_slice::<Value>(&body).ok();
        let said = said.and_then(|body| body["error"]["message"].as_str().map(str::to_owned));
        let message = match (said, self.bug) {
            (Some(said), _) => answer.shown(&said),
            (None, Bug::PageInMessage) => String::from_utf8_lossy(&body).into_owned(),
            (None, _) => format!("the server answered with status {status}"),
        };
        let mut error = answer.tell(Error::new(kind, message).with_retryable(matches!(
            kind,
            ErrorKind::Overloaded | ErrorKind::RateLimited | ErrorKind::Timeout
        )));
        if let Some(wait) = self.retry_after(answer, now) {
            error = error.with_retry_after(wait);
        }
        error
    }

    fn retry_after(&self, answer: &Answer, now: Timestamp) -> Option<Duration> {
        let digits =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
        if self.bug == Bug::RetryAfterIgnored {
            return None;
        }
        if let Some(ms) = answer.header("retry-after-ms").and_then(digits) {
            return Some(Duration::from_millis(ms.into()));
        }
        let text = answer.header("retry-after")?.trim();
        if self.bug == Bug::RetryAfterPanics
            && let Ok(seconds) = text.parse::<f64>()
        {
            return Some(Duration::from_secs_f64(seconds));
        }
        digits(text).map(|s| Duration::from_secs(s.into())).or_else(|| {
            let parts: Vec<&str> = text.split([' ', ':']).collect();
            let [_, day, month, year, hour, minute, second, "GMT"] = parts[..] else { return None };
            let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month = months.iter().position(|m| *m == month)? as u8 + 1;
            let number = |text: &str| text.parse::<u64>().ok();
            let seconds = number(hour)? * 3_600 + number(minute)? * 60 + number(second)?;
            let date = Timestamp::from_date(year.parse().ok()?, month, day.parse().ok()?)?;
            Some(date.saturating_add(Duration::from_secs(seconds)).saturating_since(now))
        })
    }
}

#[async_trait]
impl Model for ToyModel {
    fn name(&self) -> &str {
        "toy"
    }

    fn capabilities(&self) -> ModelCapabilities {
        ModelCapabilities::default().with_structured_output(true)
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        let text: usize = request.messages.iter().map(|m| m.text.len()).sum();
        if self.bug == Bug::PromptUndercounted { 1 } else { text as u64 / 2 + 8 }
    }

    fn count_output(&self, text: &str) -> u64 {
        if self.bug == Bug::OutputUncounted { 0 } else { text.len().div_ceil(2) as u64 }
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let request = call.into_request();
        let (key, body) = (self.key(ctx).await?, self.body(&request));
        let asked = self.ask(&self.base_url, &key, &body).await;
        let mut answer = match asked {
            Err(error) if self.bug == Bug::CutIsFree && error.kind() == ErrorKind::Transport => {
                return Err(Error::new(ErrorKind::Overloaded, "the connection broke"));
            }
            Err(_) if self.bug == Bug::RetriesAlone => self.ask(&self.base_url, &key, &body).await?,
            other => other?,
        };
        if let (Bug::FollowsRedirects, Some(to)) = (self.bug, answer.header("location").map(str::to_owned)) {
            let to = if to.starts_with("http") { to } else { self.base_url.clone() };
            answer = self.ask(&to, &key, &body).await?;
        }
        if !(200..300).contains(&answer.status) {
            return Err(self.refused(&mut answer, ctx.now()).await);
        }
        let media = answer.header("content-type").unwrap_or_default().to_owned();
        if media.starts_with("text/html") {
            return Err(answer.tell(transport("a page, and not an answer")));
        }
        let tools: Vec<Arc<str>> = request.tools.iter().map(|tool| tool.name.clone()).collect();
        let mut reply = Reply::new(self.bug, answer, tools);
        if media.starts_with("application/json") {
            return reply.plain().await.map(|deltas| Box::pin(stream::iter(deltas.into_iter().map(Ok))) as _);
        }
        if self.bug == Bug::GoesOnAlone {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Some(delta) = reply.next().await {
                    let _nobody_reads = sender.send(delta);
                }
            });
            return Ok(Box::pin(stream::unfold(receiver, |mut r| async { r.recv().await.map(|d| (d, r)) })));
        }
        Ok(Box::pin(stream::unfold(reply, |mut r| async { r.next().await.map(|d| (d, r)) })))
    }
}

fn transport(what: &str) -> Error {
    Error::new(ErrorKind::Transport, what)
}

enum Framing {
    Length(usize),
    Chunked,
    Close,
}

/// An answer whose body is read as it comes.
struct Answer {
    bug: Bug,
    stream: TcpStream,
    idle: Duration,
    per_read: Option<Duration>,
    key: String,
    status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
    ahead: Vec<u8>,
}

impl Answer {
    fn new(bug: Bug, stream: TcpStream, idle: Duration, key: &str) -> Self {
        let (headers, framing, ahead) = (Vec::new(), Framing::Close, Vec::new());
        Self { bug, stream, idle, per_read: None, key: key.to_owned(), status: 0, headers, framing, ahead }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    async fn more(&mut self) -> Result<bool> {
        let reading = self.stream.read_buf(&mut self.ahead);
        let read = match self.per_read {
            Some(limit) => {
                timeout(limit, reading).await.map_err(|_| Error::new(ErrorKind::Timeout, "silence"))?
            }
            None => reading.await,
        };
        read.map(|n| n > 0).map_err(|_| transport("the connection broke"))
    }

    async fn read_head(&mut self) -> Result<()> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            let too_long = self.ahead.len() > MAX_HEAD && self.bug != Bug::UnboundedHead;
            if too_long || self.ahead.len() > 70 << 20 || !self.more().await? {
                return Err(transport("no head that can be read came"));
            }
            if self.bug == Bug::UnboundedHead {
                // Looking for the end anew each time would take longer than the memory lasts.
                while self.ahead.len() < 70 << 20 && self.more().await? {}
            }
        };
        let head = String::from_utf8_lossy(&self.ahead[..end]).into_owned();
        self.ahead.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status =
            lines.next().and_then(|l| l.strip_prefix("HTTP/1.1 ")).and_then(|l| l.get(..3)?.parse().ok());
        self.status = status.ok_or_else(|| transport("that is not HTTP"))?;
        let headers = lines.filter_map(|l| l.split_once(':'));
        self.headers = headers.map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
        if self.header("transfer-encoding") == Some("chunked") {
            self.framing = Framing::Chunked;
        } else if let Some(length) = self.header("content-length").and_then(|v| v.parse().ok()) {
            self.framing = Framing::Length(length);
        }
        Ok(())
    }

    /// The next piece of the body; `None` at its end.
    async fn piece(&mut self) -> Result<Option<Vec<u8>>> {
        if self.bug == Bug::NoIdleTimeout {
            return self.read_piece().await;
        }
        let idle = self.idle;
        timeout(idle, self.read_piece())
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, "the body stalled"))?
    }

    async fn read_piece(&mut self) -> Result<Option<Vec<u8>>> {
        let cut = || Err(transport("the body was cut off"));
        match self.framing {
            Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.ahead.is_empty() && !self.more().await? {
                    return cut();
                }
                let take = left.min(self.ahead.len());
                self.framing = Framing::Length(left - take);
                Ok(Some(self.ahead.drain(..take).collect()))
            }
            Framing::Close => {
                if self.ahead.is_empty() && !self.more().await? {
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.ahead)))
            }
            Framing::Chunked => {
                let line = loop {
                    if let Some(at) = self.ahead.windows(2).position(|w| w == b"\r\n") {
                        break at;
                    }
                    if self.ahead.len() > 100 || !self.more().await? {
                        return cut();
                    }
                };
                let size = std::str::from_utf8(&self.ahead[..line])
                    .ok()
                    .and_then(|s| usize::from_str_radix(s, 16).ok());
                let size = size.ok_or_else(|| transport("that is no chunk"))?;
                while self.ahead.len() < line + 2 + size + 2 {
                    if !self.more().await? {
                        return cut();
                    }
                }
                let chunk: Vec<u8> =
                    self.ahead.drain(..line + 2 + size + 2).skip(line + 2).take(size).collect();
                Ok((size > 0).then_some(chunk))
            }
        }
    }

    async fn read_up_to(&mut self, most: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while body.len() < most
            && let Some(piece) = self.piece().await?
        {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// The provider's words as an error may carry them.
    fn shown(&self, said: &str) -> String {
        let scrub = |text: &str| text.replace(&self.key, "***");
        let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(500).collect::<String>();
        match self.bug {
            Bug::EchoesKey => cut(said),
            Bug::CutsBeforeScrub => scrub(&cut(said)),
            _ => cut(&scrub(said)),
        }
    }

    fn tell(&self, error: Error) -> Error {
        match self.request_id() {
            Some(id) => error.with_context("request_id", id),
            None => error,
        }
    }

    fn request_id(&self) -> Option<String> {
        let id = self.header("x-request-id")?;
        match self.bug {
            Bug::RequestIdLost => None,
            Bug::RequestIdUnscrubbed => Some(id.to_owned()),
            _ => Some(self.shown(id)),
        }
    }
}

#[derive(Default)]
struct Slot {
    id: String,
    name: String,
    arguments: String,
}

/// A reply as it is decoded.
struct Reply {
    bug: Bug,
    answer: Answer,
    tools: Vec<Arc<str>>,
    line: Vec<u8>,
    name: String,
    data: String,
    bytes: usize,
    slots: Vec<Slot>,
    usage: Option<Usage>,
    stop: Option<StopReason>,
    ready: std::collections::VecDeque<Delta>,
    over: bool,
    error: Option<Error>,
}

impl Reply {
    fn new(bug: Bug, answer: Answer, tools: Vec<Arc<str>>) -> Self {
        Self {
            bug,
            answer,
            tools,
            line: Vec::new(),
            name: String::new(),
            data: String::new(),
            bytes: 0,
            slots: Vec::new(),
            usage: None,
            stop: None,
            ready: std::collections::VecDeque::new(),
            over: false,
            error: None,
        }
    }

    async fn next(&mut self) -> Option<Result<Delta>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Some(Ok(delta));
            }
            if self.over {
                return self.error.take().map(Err);
            }
            if let Err(error) = self.advance().await {
                self.over = true;
                self.error = Some(self.answer.tell(error));
                if self.bug == Bug::ErrorOvertakes {
                    self.ready.clear();
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<()> {
        match self.answer.piece().await? {
            Some(piece) => self.push(&piece)?,
            None if self.bug == Bug::EofIsEnd => self.stop = Some(StopReason::End),
            None => return Err(Error::new(ErrorKind::Truncated, "the stream has no end")),
        }
        if self.stop.is_some() {
            self.over = true;
            self.end();
        }
        Ok(())
    }

    fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes += piece.len();
        if self.bytes > MAX_STREAM {
            return Err(transport("the reply is too large").with_retryable(false));
        }
        if self.bug == Bug::CrlfIsTwo {
            let piece = String::from_utf8_lossy(piece).replace("\r\n", "\n").replace('\r', "\n");
            return self.lines(piece.as_bytes());
        }
        if self.bug == Bug::PieceLost {
            let piece = String::from_utf8_lossy(piece).replace('\u{fffd}', "");
            return self.lines(piece.as_bytes());
        }
        self.lines(piece)
    }

    fn lines(&mut self, piece: &[u8]) -> Result<()> {
        for part in piece.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > MAX_EVENT && self.bug != Bug::UnboundedEvent {
                return Err(transport("an event is too large").with_retryable(false));
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.take_line(line)?;
            }
        }
        Ok(())
    }

    fn take_line(&mut self, line: Vec<u8>) -> Result<()> {
        let line = match String::from_utf8(line) {
            Ok(line) => line,
            Err(e) if self.bug == Bug::LossyText => String::from_utf8_lossy(e.as_bytes()).into_owned(),
            Err(_) => return Err(transport("that is not UTF-8").with_retryable(false)),
        };
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            return self.event(&name, &data);
        }
        if let Some(name) = line.strip_prefix("event: ") {
            name.clone_into(&mut self.name);
        }
        if let Some(data) = line.strip_prefix("data: ") {
            self.data.push_str(data);
        }
        Ok(())
    }

    fn event(&mut self, name: &str, data: &str) -> Result<()> {
        if !["text", "call", "arguments", "usage", "stop", "error"].contains(&name) {
            return Ok(());
        }
        let data: Value =
            serde_json::from_str(data).map_err(|_| transport("that is not JSON").with_retryable(false))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match name {
            "text" => self.ready.push_back(Delta::Text(text(&data).into())),
            "call" => {
                if self.slots.len() >= MAX_CALLS {
                    return Err(transport("too many calls").with_retryable(false));
                }
                let (id, name) = (text(&data["id"]), text(&data["name"]));
                let known = self.slots.iter_mut().find(|slot| slot.id == id && self.bug == Bug::IdsMerge);
                match known {
                    Some(slot) => slot.name = name,
                    None => self.slots.push(Slot { id, name, arguments: String::new() }),
                }
            }
            "arguments" => {
                let piece = text(&data["piece"]);
                let slot = self.slots.last_mut().ok_or_else(|| transport("arguments of no call"))?;
                slot.arguments.push_str(&piece);
                if slot.arguments.len() > MAX_EVENT {
                    return Err(transport("the arguments are too long").with_retryable(false));
                }
                if self.bug != Bug::ArgumentsUncounted {
                    self.ready.push_back(Delta::Arguments(piece.into()));
                }
            }
            "usage" => self.usage = Some(usage(&data)),
            "error" if self.bug == Bug::ErrorEventIgnored => self.stop = Some(StopReason::End),
            "error" => return Err(Error::new(ErrorKind::Overloaded, self.answer.shown(&text(&data)))),
            _ => self.stop = Some(stop(self.bug, &data)),
        }
        Ok(())
    }

    fn end(&mut self) {
        for slot in std::mem::take(&mut self.slots) {
            self.call(slot);
        }
        let stop = self.stop.clone().unwrap_or(StopReason::End);
        let usage = self.usage.or_else(|| (self.bug == Bug::NoUsageIsZero).then(Usage::default));
        let done = match usage {
            Some(usage) => Done::new(usage, stop),
            None => Done::without_usage(stop),
        };
        self.ready.push_back(Delta::Done(match self.answer.request_id() {
            Some(id) => done.with_request_id(id),
            None => done,
        }));
    }

    fn call(&mut self, mut slot: Slot) {
        if self.bug == Bug::BadArgumentsAreEmpty && serde_json::from_str::<Value>(&slot.arguments).is_err() {
            slot.arguments = "{}".to_owned();
        }
        let tool = self.tools.iter().find(|tool| wire_name(tool) == slot.name);
        let name = tool.map_or_else(|| slot.name.clone().into(), Arc::clone);
        self.ready.push_back(Delta::ToolCall(ToolCall::new(slot.id, name, slot.arguments)));
    }

    async fn plain(mut self) -> Result<Vec<Delta>> {
        let most = if self.bug == Bug::UnboundedBody { usize::MAX } else { MAX_BODY };
        let body = self.answer.read_up_to(most).await.map_err(|error| self.answer.tell(error))?;
        let no_answer = |what| self.answer.tell(transport(what).with_retryable(false));
        let body: Value = serde_json::from_slice(&body).map_err(|_| no_answer("that is no reply"))?;
        if let Some(said) = body["error"]["message"].as_str().filter(|_| self.bug != Bug::ErrorIsAnswer) {
            return Err(self.answer.tell(Error::new(ErrorKind::Overloaded, self.answer.shown(said))));
        }
        if body.get("stop").is_none() && self.bug != Bug::ErrorIsAnswer {
            return Err(no_answer("that is no reply"));
        }
        self.ready.push_back(Delta::Text(body["text"].as_str().unwrap_or_default().into()));
        for call in body["calls"].as_array().into_iter().flatten() {
            let text = |name: &str| call[name].as_str().unwrap_or_default().to_owned();
            self.call(Slot { id: text("id"), name: text("name"), arguments: text("arguments") });
        }
        self.usage = body.get("usage").filter(|usage| usage.is_object()).map(usage);
        self.stop = Some(stop(self.bug, &body["stop"]));
        self.end();
        Ok(self.ready.into())
    }
}

fn usage(counts: &Value) -> Usage {
    let count = |name: &str| counts[name].as_u64().unwrap_or_default();
    Usage::new(count("input"), count("output")).with_cache(count("cached"), 0)
}

fn stop(bug: Bug, stop: &Value) -> StopReason {
    match stop.as_str() {
        _ if bug == Bug::LimitIsEnd => StopReason::End,
        Some("limit") => StopReason::MaxTokens,
        Some("refused") => StopReason::Refusal,
        _ => StopReason::End,
    }
}

/// The provider has no order where not even the key was there.
fn nothing_was_sent(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => error,
        _ => Error::new(ErrorKind::Unreachable, "no key")
            .with_retryable(error.is_retryable())
            .with_source(error),
    }
}
