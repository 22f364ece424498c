//! Answers in pieces: server-sent events, and how much of a text is safe to show.

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;

use crate::error::ApiError;
use crate::text::ModelText;

/// Events that wait for a slow reader at most; then drawing is noted but not shown until it reads.
const MAX_EVENTS: usize = 1024;

/// Where events of one answer go.
#[derive(Debug, Clone)]
pub(crate) struct Events(mpsc::Sender<String>);

impl Events {
    /// Sends a JSON value from a thread that may wait. Whether anybody still listens.
    pub(crate) fn send(&self, value: &serde_json::Value) -> bool {
        self.0.blocking_send(format!("data: {value}\n\n")).is_ok()
    }

    /// Sends a JSON value.
    pub(crate) async fn tell(&self, value: &serde_json::Value) {
        // A reader that went away misses nothing.
        let _ = self.0.send(format!("data: {value}\n\n")).await;
    }

    /// Ends the answer: with a failure, if there was one.
    pub(crate) async fn end(&self, result: Result<(), ApiError>) {
        if let Err(error) = result {
            self.tell(&error.body()).await;
        }
        let _ = self.0.send("data: [DONE]\n\n".to_owned()).await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// An answer and where its events go.
pub(crate) fn events() -> (Events, Response) {
    let (sender, receiver) = mpsc::channel(MAX_EVENTS);
    let stream = stream::unfold(receiver, |mut receiver| async move {
        let event: String = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), receiver))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (Events(sender), (headers, Body::from_stream(stream)).into_response())
}

/// The text of a completion while it grows.
#[derive(Debug)]
pub(crate) struct Growing {
    tokens: Vec<u32>,
    /// The bytes so far, where tokens have bytes of their own.
    bytes: Vec<u8>,
    shown: usize,
    stops: Vec<String>,
    /// Bytes that could begin a stop string.
    hold: usize,
}

impl Growing {
    pub(crate) fn new(stops: &[String]) -> Self {
        let hold = stops.iter().map(|stop| stop.len().saturating_sub(1)).max().unwrap_or(0);
        let stops = stops.to_vec();
        Self { tokens: Vec::new(), bytes: Vec::new(), shown: 0, stops, hold }
    }

    /// Adds a token; the text that can be shown now.
    pub(crate) fn push(&mut self, text: &ModelText, token: u32) -> String {
        let all = if let Some(bytes) = text.token_bytes() {
            self.bytes.extend(bytes.get(token as usize).into_iter().flatten());
            // The end of a character may still come.
            match std::str::from_utf8(&self.bytes) {
                Ok(said) => said.to_owned(),
                Err(error) if error.error_len().is_none() => {
                    String::from_utf8_lossy(&self.bytes[..error.valid_up_to()]).into_owned()
                }
                Err(_) => String::from_utf8_lossy(&self.bytes).into_owned(),
            }
        } else {
            self.tokens.push(token);
            text.visible(&self.tokens)
        };
        let stop = self.stops.iter().filter_map(|stop| all.find(&**stop)).min();
        let mut end = stop.unwrap_or_else(|| all.len().saturating_sub(self.hold));
        while !all.is_char_boundary(end) {
            end -= 1;
        }
        self.show(&all, end)
    }

    /// The rest of a finished text.
    pub(crate) fn finish(&mut self, whole: &str) -> String {
        self.show(whole, whole.len())
    }

    fn show(&mut self, all: &str, end: usize) -> String {
        if end <= self.shown || !all.is_char_boundary(self.shown) {
            return String::new();
        }
        let new = all[self.shown..end].to_owned();
        self.shown = end;
        new
    }
}
