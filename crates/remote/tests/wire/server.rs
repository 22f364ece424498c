//! A small HTTP/1.1 server on loopback whose answers a test decides, faults included.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST`.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Headers as they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Request {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What the server does.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Status and JSON.
    Json(u16, Value),
    /// Status, one header, text.
    Text(u16, Option<(&'static str, &'static str)>, String),
    /// Content type and body.
    Bytes(&'static str, Vec<u8>),
    /// Closes the connection without a byte.
    Drop,
    /// Promises the whole JSON, sends half of it, closes.
    Half(Value),
    /// Sends these bytes and closes: no HTTP.
    Raw(&'static [u8]),
    /// Waits, then answers.
    Slow(Duration, Box<Reply>),
}

type Handler = dyn FnMut(&Request) -> Reply + Send;

/// The server; it stops when it is dropped.
pub struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers each request by `handler`, one at a time.
    pub fn new(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Mutex<Box<Handler>>> = Arc::new(Mutex::new(Box::new(handler)));
        let shared = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.1.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let (handler, seen) = (Arc::clone(&handler), Arc::clone(&shared.0));
                std::thread::spawn(move || serve(&stream, &handler, &seen));
            }
        });
        Self { url, seen, stop, thread: Some(thread) }
    }

    /// Gives these replies in order, then the last one for ever.
    pub fn replaying(replies: Vec<Reply>) -> Self {
        let mut next = 0;
        Self::new(move |_| {
            next += 1;
            replies[(next - 1).min(replies.len() - 1)].clone()
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, handler: &Mutex<Box<Handler>>, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let reply = handler.lock().unwrap_or_else(PoisonError::into_inner)(&request);
        if !answer(stream, reply) {
            return;
        }
    }
}

/// Whether the connection goes on.
fn answer(mut stream: &TcpStream, reply: Reply) -> bool {
    let head = |status: u16, header: &str, length: usize| {
        format!("HTTP/1.1 {status} X\r\n{header}content-length: {length}\r\n\r\n")
    };
    match reply {
        Reply::Json(status, value) => {
            let body = value.to_string();
            let text = head(status, "content-type: application/json\r\n", body.len()) + &body;
            stream.write_all(text.as_bytes()).is_ok()
        }
        Reply::Text(status, header, body) => {
            let header = header.map(|(name, value)| format!("{name}: {value}\r\n"));
            let text = head(status, &header.unwrap_or_default(), body.len()) + &body;
            stream.write_all(text.as_bytes()).is_ok()
        }
        Reply::Bytes(content_type, body) => {
            let header = format!("content-type: {content_type}\r\n");
            let mut bytes = head(200, &header, body.len()).into_bytes();
            bytes.extend(body);
            stream.write_all(&bytes).is_ok()
        }
        Reply::Drop => false,
        Reply::Half(value) => {
            let body = value.to_string();
            let text = head(200, "", body.len()) + &body[..body.len() / 2];
            let _ = stream.write_all(text.as_bytes());
            false
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(bytes);
            false
        }
        Reply::Slow(pause, reply) => {
            std::thread::sleep(pause);
            answer(stream, *reply)
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(Some(0), |(_, value)| value.parse().ok())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}
