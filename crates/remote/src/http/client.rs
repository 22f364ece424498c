//! One try of one request.

use std::io::Read;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::failure::{FailureKind, HttpFailure};
use super::interrupt::Interrupt;

/// Bytes of an error's text that are read, and characters that are shown.
const MAX_ERROR_BYTES: u64 = 64 << 10;
const MAX_ERROR_CHARS: usize = 300;
/// Idle connections are closed sooner than servers do it (uvicorn: 5 s), so that none dies under a
/// request.
const MAX_IDLE: Duration = Duration::from_secs(4);

/// A secret for `Authorization: Bearer …`. It cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(String);

impl BearerToken {
    /// Wraps a token; spaces and line ends around it are cut off.
    pub fn new(token: &str) -> Self {
        Self(token.trim().to_owned())
    }
}

impl std::fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BearerToken(…)")
    }
}

/// How a server is spoken to.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// `http://host:port` or `https://host/prefix`; paths are appended.
    pub base_url: String,
    /// Sent with every request, to this server only.
    pub token: Option<BearerToken>,
    /// Bound of making a connection.
    pub connect_timeout: Duration,
    /// Bound of one try, from the first byte sent to the last received, unless the call has its own.
    pub timeout: Duration,
    /// Bytes of an answer at most, unless the call has its own bound.
    pub max_answer_bytes: u64,
    /// Connections that are kept for later requests.
    pub max_idle_connections: usize,
    /// Ends the client's requests when it is set.
    pub interrupt: Interrupt,
}

impl HttpOptions {
    /// Defaults for a base URL: 10 s to connect, 10 minutes for an answer of at most 256 MiB.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            token: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_mins(10),
            max_answer_bytes: 256 << 20,
            max_idle_connections: 256,
            interrupt: Interrupt::new(),
        }
    }
}

/// Settings of one call that differ from the client's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    /// Bound of the try.
    pub timeout: Option<Duration>,
    /// Bytes of the answer at most.
    pub max_answer_bytes: Option<u64>,
    /// More headers, name and value.
    pub headers: &'a [(&'a str, &'a str)],
    /// `Content-Type` of the body; JSON unless said.
    pub content_type: Option<&'a str>,
}

/// A success: status 2xx, whole body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

/// A client of one server, for many threads at once.
#[derive(Debug, Clone)]
pub struct HttpClient {
    agent: Agent,
    options: HttpOptions,
    base: String,
    authorization: Option<header::HeaderValue>,
}

impl HttpClient {
    /// A client; nothing is sent yet. An unencrypted URL is taken with a token too: engines listen
    /// on loopback or inside a cluster.
    ///
    /// # Errors
    /// [`FailureKind::BadRequest`] for a URL that is none or is neither http nor https, and for a
    /// token that no header can hold.
    pub fn new(options: HttpOptions) -> Result<Self, HttpFailure> {
        let bad = |reason: &str| {
            HttpFailure::new(
                FailureKind::BadRequest,
                format!("server {}", options.base_url),
                reason,
            )
        };
        let base = options.base_url.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().map_err(|_| bad("is not a URL; write http://HOST:PORT"))?;
        let host = uri.host().unwrap_or_default().to_owned();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || host.is_empty() {
            return Err(bad("is not a URL; write http://HOST:PORT"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(HttpFailure::new(
                FailureKind::BadRequest,
                format!("server {host}"),
                "the URL holds a password; name a variable with the token instead",
            ));
        }
        let authorization = match &options.token {
            None => None,
            Some(BearerToken(token)) => {
                let mut value = header::HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| bad("its token has characters that no header can hold"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("patchwright/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(options.connect_timeout))
            .max_idle_connections(options.max_idle_connections)
            .max_idle_connections_per_host(options.max_idle_connections)
            .max_idle_age(MAX_IDLE);
        if is_loopback(&host) {
            config = config.proxy(None);
        }
        let agent: Agent = config.build().into();
        options.interrupt.watch(&agent);
        Ok(Self { agent, options, base, authorization })
    }

    /// The server's URL, without a slash at its end.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Sends a value as JSON and reads the answer as JSON.
    ///
    /// # Errors
    /// [`HttpFailure`]; [`FailureKind::Garbage`] for an answer of another shape.
    pub fn post_json<T: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        path: &str,
        value: &T,
        call: &Call,
    ) -> Result<R, HttpFailure> {
        let what = self.what(&Method::POST, path);
        let body = serde_json::to_vec(value).map_err(|error| {
            HttpFailure::new(FailureKind::BadRequest, what.clone(), error.to_string())
        })?;
        let answer = self.send(Method::POST, path, Some(&body), call)?;
        read_json(&what, &answer.body)
    }

    /// Reads an answer as JSON.
    ///
    /// # Errors
    /// As [`HttpClient::post_json`].
    pub fn get_json<R: DeserializeOwned>(&self, path: &str, call: &Call) -> Result<R, HttpFailure> {
        let answer = self.send(Method::GET, path, None, call)?;
        read_json(&self.what(&Method::GET, path), &answer.body)
    }

    /// One try of one request; a whole answer of status 2xx, or a classed failure.
    ///
    /// # Errors
    /// [`HttpFailure`].
    pub fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&[u8]>,
        call: &Call,
    ) -> Result<Answer, HttpFailure> {
        let what = self.what(&method, path);
        let answer = self.once(method, path, body, call);
        // How a request looks that was ended from another thread depends on how far it was.
        answer.map_err(|failure| {
            if self.options.interrupt.is_set() { HttpFailure::cancelled(what) } else { failure }
        })
    }

    fn once(
        &self,
        method: Method,
        path: &str,
        body: Option<&[u8]>,
        call: &Call,
    ) -> Result<Answer, HttpFailure> {
        let what = self.what(&method, path);
        let timeout = call.timeout.unwrap_or(self.options.timeout);
        let bad = |error: &dyn std::fmt::Display| {
            HttpFailure::new(FailureKind::BadRequest, what.clone(), error.to_string())
        };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            let content_type = call.content_type.unwrap_or("application/json");
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        // A request with an empty body has a length of 0; one without has none.
        let agent = &self.agent;
        let response = if let Some(bytes) = body {
            let request = request.body(bytes).map_err(|error| bad(&error))?;
            agent.run(agent.configure_request(request).timeout_global(Some(timeout)).build())
        } else {
            let request = request.body(()).map_err(|error| bad(&error))?;
            agent.run(agent.configure_request(request).timeout_global(Some(timeout)).build())
        };
        let response = response.map_err(|error| classed(&what, &error, timeout))?;
        if !response.status().is_success() {
            return Err(refused(&what, response));
        }
        let max = call.max_answer_bytes.unwrap_or(self.options.max_answer_bytes);
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = read_bounded(&what, response, max, timeout)?;
        Ok(Answer { status, headers, body })
    }

    /// The switch that ends this client's requests.
    pub fn interrupt(&self) -> &Interrupt {
        &self.options.interrupt
    }

    fn what(&self, method: &Method, path: &str) -> String {
        format!("{method} {}{path}", self.base)
    }
}

/// Reads JSON; anything else is [`FailureKind::Garbage`].
fn read_json<R: DeserializeOwned>(what: &str, body: &[u8]) -> Result<R, HttpFailure> {
    serde_json::from_slice(body).map_err(|error| {
        let shown = shown(body);
        HttpFailure::garbage(
            what,
            format!("the answer is not what was agreed on: {error}: {shown}"),
        )
    })
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The class of a failure that is no answer.
fn classed(what: &str, error: &ureq::Error, timeout: Duration) -> HttpFailure {
    use std::io::ErrorKind;
    use ureq::{Error, Timeout};
    let kind = match error {
        Error::Timeout(Timeout::Connect | Timeout::Resolve)
        | Error::HostNotFound
        | Error::ConnectionFailed
        | Error::Tls(_)
        | Error::Rustls(_) => FailureKind::Connect,
        Error::Timeout(_) => FailureKind::Timeout,
        Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::AddrNotAvailable
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => FailureKind::Connect,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => FailureKind::Timeout,
            _ => FailureKind::Dropped,
        },
        Error::Protocol(_) => FailureKind::Dropped,
        Error::LargeResponseHeader(..) => FailureKind::TooLarge,
        _ => FailureKind::BadRequest,
    };
    let reason = match kind {
        FailureKind::Timeout => format!("no whole answer within {} s", timeout.as_secs_f64()),
        FailureKind::Connect => format!("no connection ({error}); is the server running there?"),
        FailureKind::Dropped => format!("the connection broke off ({error})"),
        _ => error.to_string(),
    };
    HttpFailure::new(kind, what, reason)
}

/// The failure of an answer that is no success.
fn refused(what: &str, response: Response<Body>) -> HttpFailure {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => FailureKind::Busy { retry_after },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => {
            FailureKind::Busy { retry_after }
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => FailureKind::Server(status.as_u16()),
        status if status.is_server_error() => FailureKind::Server(status.as_u16()),
        status => FailureKind::Refused(status.as_u16()),
    };
    let mut text = Vec::new();
    let (_, body) = response.into_parts();
    // Whatever came of the text is better than nothing.
    let _ = body
        .into_with_config()
        .limit(u64::MAX)
        .reader()
        .take(MAX_ERROR_BYTES)
        .read_to_end(&mut text);
    let said = said(&text);
    let mend = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; is the token right?",
        _ => "",
    };
    let colon = if said.is_empty() { "" } else { ": " };
    HttpFailure::new(kind, what, format!("HTTP {status}{colon}{said}{mend}"))
}

/// The message in an error's body: `error.message`, `message`, `detail` or `error` of JSON, or the
/// body itself.
fn said(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    ["/error/message", "/message", "/detail", "/error"]
        .iter()
        .find_map(|path| {
            let value = value.pointer(path)?;
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (!value.is_null()).then(|| shown(text.as_bytes()))
        })
        .unwrap_or_else(|| shown(body))
}

/// The beginning of a text from outside, fit for one line.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR_CHARS * 4)]);
    let mut clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR_CHARS).collect();
    clean.truncate(clean.trim_end().len());
    clean
}

/// A whole body, in memory.
fn read_bounded(
    what: &str,
    response: Response<Body>,
    max: u64,
    timeout: Duration,
) -> Result<Vec<u8>, HttpFailure> {
    let (_, body) = response.into_parts();
    let mut bytes = Vec::new();
    let read = body
        .into_with_config()
        .limit(u64::MAX)
        .reader()
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes);
    if let Err(error) = read {
        let error = ureq::Error::from(error);
        let failure = classed(what, &error, timeout);
        // The connection was there: whatever went wrong, the answer was cut short.
        let kind = match failure.kind {
            FailureKind::Timeout => FailureKind::Timeout,
            _ => FailureKind::Dropped,
        };
        let reason = format!("{} after {} bytes of the answer", failure.reason, bytes.len());
        return Err(HttpFailure { kind, reason, ..failure });
    }
    if bytes.len() as u64 > max {
        let reason = format!("the answer is longer than {max} bytes");
        return Err(HttpFailure::new(FailureKind::TooLarge, what, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{BearerToken, HttpClient, HttpOptions, said, shown};
    use crate::http::FailureKind;

    #[test]
    fn urls_are_checked_and_tokens_never_shown() {
        for wrong in ["", "localhost:8000", "ftp://host", "http://", "http://u:secret@host"] {
            let error = HttpClient::new(HttpOptions::new(wrong)).unwrap_err();
            assert_eq!(error.kind, FailureKind::BadRequest, "{wrong}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let token = Some(BearerToken::new(" hunter2\n"));
        let options = HttpOptions { token, ..HttpOptions::new("http://127.0.0.1:1/") };
        let client = HttpClient::new(options).unwrap();
        assert_eq!(client.base_url(), "http://127.0.0.1:1");
        assert!(!format!("{client:?}").contains("hunter2"));
    }

    #[test]
    fn what_a_server_says_is_one_line() {
        assert_eq!(said(br#"{"error":{"message":"no such model","code":404}}"#), "no such model");
        assert_eq!(said(br#"{"detail":[{"msg":"bad"}]}"#), r#"[{"msg":"bad"}]"#);
        assert_eq!(said(b"oops\nnext"), "oops next");
        assert_eq!(said(b""), "");
        assert_eq!(shown(&[b'x'; 5000]).len(), 300);
    }
}
