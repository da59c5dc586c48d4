//! A run that was asked for: awaited for its result, or streamed.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;

use crate::agent::UserAgent;
use crate::agent::execute::{Asked, execute};
use crate::agent::shared::IntoShared;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::identity::SessionId;
use crate::ids::RunId;
use crate::image::Image;
use crate::result::RunResult;
use crate::schema::OutputSchema;

/// Events that may wait for a slow reader before the run waits for it.
const EVENTS_AHEAD: usize = 128;

type RunFuture = Pin<Box<dyn Future<Output = Result<RunResult>> + Send>>;

/// A run that was asked for and not begun. Await it for its [`RunResult`]; dropping the future cancels the run.
#[must_use = "a run begins when it is awaited"]
pub struct Run {
    user: UserAgent,
    asked: Asked,
}

impl Run {
    pub(crate) fn new(user: UserAgent, input: Arc<str>) -> Self {
        let asked = Asked {
            input,
            images: Vec::new(),
            session: None,
            session_error: None,
            schema: None,
            output_retries: 1,
            metadata: BTreeMap::new(),
            resume: None,
        };
        Self { user, asked }
    }

    /// Continues (or begins) a conversation. Without it the run has a session of its own.
    ///
    /// A bad id is reported when the run is awaited; use [`Run::in_session`] with an id that is validated already.
    pub fn session(mut self, id: &str) -> Self {
        match SessionId::new(id) {
            Ok(session) => self.asked.session = Some(session),
            Err(error) => self.asked.session_error = Some(error),
        }
        self
    }

    /// Continues (or begins) a conversation.
    pub fn in_session(mut self, session: SessionId) -> Self {
        self.asked.session = Some(session);
        self
    }

    /// Shows the model an image with the input; at most 20 of them, of 20 MiB together. It is neither journaled nor remembered: a run that is
    /// resumed after a crash, and later runs of the session, know only that there was one.
    pub fn image(mut self, image: Image) -> Self {
        self.asked.images.push(image);
        self
    }

    /// Asks for an answer that meets a schema. An answer that does not is asked for again, once by default.
    pub fn output_schema(mut self, schema: impl IntoShared<dyn OutputSchema>) -> Self {
        self.asked.schema = Some(schema.into_shared());
        self
    }

    /// How often an answer that misses its schema is asked for again (1).
    pub fn output_retries(mut self, retries: u32) -> Self {
        self.asked.output_retries = retries;
        self
    }

    /// Attaches something for tools to read. It names nobody and grants nothing.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.asked.metadata.insert(key.into(), value.into());
        self
    }

    /// Goes on with a run that was cut off by a crash, from what its journal has.
    pub(crate) fn resuming(mut self, run: RunId, session: SessionId) -> Self {
        self.asked.resume = Some(run);
        self.asked.session = Some(session);
        self
    }
}

impl IntoFuture for Run {
    type Output = Result<RunResult>;
    type IntoFuture = RunFuture;

    fn into_future(self) -> RunFuture {
        Box::pin(execute(self.user.agent, self.user.owner, self.asked, None))
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({:?})", self.user)
    }
}

/// A run that was asked for as a stream. Await it for the [`EventStream`].
#[must_use = "a run begins when its stream is read"]
#[derive(Debug)]
pub struct StreamRun(Run);

impl StreamRun {
    pub(crate) fn new(run: Run) -> Self {
        Self(run)
    }

    /// Continues (or begins) a conversation. See [`Run::session`].
    pub fn session(self, id: &str) -> Self {
        Self(self.0.session(id))
    }

    /// Shows the model an image with the input. See [`Run::image`].
    pub fn image(self, image: Image) -> Self {
        Self(self.0.image(image))
    }

    /// Continues (or begins) a conversation.
    pub fn in_session(self, session: SessionId) -> Self {
        Self(self.0.in_session(session))
    }

    /// Asks for an answer that meets a schema. See [`Run::output_schema`].
    pub fn output_schema(self, schema: impl IntoShared<dyn OutputSchema>) -> Self {
        Self(self.0.output_schema(schema))
    }

    /// How often an answer that misses its schema is asked for again (1).
    pub fn output_retries(self, retries: u32) -> Self {
        Self(self.0.output_retries(retries))
    }

    /// Attaches something for tools to read. See [`Run::metadata`].
    pub fn metadata(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.metadata(key, value))
    }
}

impl IntoFuture for StreamRun {
    type Output = Result<EventStream>;
    type IntoFuture = std::future::Ready<Result<EventStream>>;

    fn into_future(mut self) -> Self::IntoFuture {
        if let Some(error) = self.0.asked.session_error.take() {
            return std::future::ready(Err(error));
        }
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let Run { user, asked } = self.0;
        let run: RunFuture = Box::pin(execute(user.agent, user.owner, asked, Some(sender)));
        std::future::ready(Ok(EventStream { run: Some(run), events, result: None }))
    }
}

/// The events of a run, ending in exactly one terminal event.
///
/// Reading drives the run: nothing happens while nobody reads, beyond what the buffer of 128 events takes. Dropping the
/// stream cancels the run; what was streamed until then is charged.
pub struct EventStream {
    run: Option<RunFuture>,
    events: mpsc::Receiver<Event>,
    result: Option<Result<RunResult>>,
}

impl EventStream {
    /// The next event; `None` after the terminal one.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Reads the rest of the stream and returns what the run ended with.
    ///
    /// # Errors
    ///
    /// Whatever the run failed with.
    pub async fn result(mut self) -> Result<RunResult> {
        while self.next().await.is_some() {}
        self.result.take().unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Internal, "the stream ended without a result; this is a defect"))
        })
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Poll::Ready(Some(event)) = self.events.poll_recv(cx) {
            return Poll::Ready(Some(event));
        }
        if let Some(run) = &mut self.run
            && let Poll::Ready(result) = run.as_mut().poll(cx)
        {
            self.result = Some(result);
            self.run = None;
        }
        if self.run.is_none() {
            // The run is over, so the buffer holds all there will ever be. Not `poll_recv`: it also answers "pending" when
            // the task has used up its share of the scheduler, and that must not pass for the end.
            return Poll::Ready(self.events.try_recv().ok());
        }
        self.events.poll_recv(cx)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventStream(running: {})", self.run.is_some())
    }
}
