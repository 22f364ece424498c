//! Requests: authenticated, retried, bounded.

use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::auth::{self, Challenge, TokenAnswer};
use super::{Credentials, PullOptions};
use crate::digest::Digest;
use crate::documents::{Blob, MANIFEST_TYPES, MAX_MANIFEST, Manifest, choose, manifest};
use crate::error::ImageError;
use crate::progress::{Progress, PullEvent};
use crate::reference::{Reference, is_loopback};

/// Without a byte for so long, a connection is given up.
const SILENCE: Duration = Duration::from_mins(1);
const CONNECT: Duration = Duration::from_secs(20);
/// The first pause before another try; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Bytes of a token server's answer and of an error's text at most.
const MAX_ANSWER: u64 = 1 << 20;
const MAX_ERROR: u64 = 4 << 10;

/// One repository of one registry.
pub struct Registry<'a> {
    agent: Agent,
    reference: &'a Reference,
    options: &'a PullOptions,
    base: String,
    credentials: Option<Credentials>,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<String>>,
    progress: &'a dyn Progress,
}

/// Why one try failed.
enum Failure {
    /// Another try may do better; not before a while, if the server said so.
    Passing(String, Option<Duration>),
    Final(ImageError),
}

impl<'a> Registry<'a> {
    /// For the registry and repository of a reference.
    ///
    /// # Errors
    /// [`ImageError::Document`] when Docker's configuration cannot be read.
    pub fn new(
        reference: &'a Reference,
        options: &'a PullOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self, ImageError> {
        let is_plain = options.allow_http || reference.is_loopback();
        let credentials = match (&options.credentials, &options.docker_config) {
            (Some(credentials), _) => Some(credentials.clone()),
            (None, Some(path)) => auth::from_docker_config(path, reference.registry())?,
            (None, None) => None,
        };
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .https_only(!is_plain)
            // Blobs are elsewhere often: credentials are not for there.
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .max_redirects(5)
            .user_agent(concat!("patchwright/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        if reference.is_loopback() {
            config = config.proxy(None);
        }
        let scheme = if is_plain { "http" } else { "https" };
        Ok(Self {
            agent: config.build().into(),
            reference,
            options,
            base: format!("{scheme}://{}/v2/{}", reference.host(), reference.repository()),
            credentials,
            authorization: Mutex::new(None),
            progress,
        })
    }

    /// The manifest of the reference for the platform, with its digest.
    pub fn manifest(&self) -> Result<(Blob, Vec<Blob>), ImageError> {
        let what = self.reference.to_string();
        let mut version = self.reference.version();
        let mut wanted = self.reference.digest().map(|digest| (digest, None));
        // An index may lead to an index; no further.
        for _ in 0..3 {
            let bytes = self.manifest_bytes(&version, wanted)?;
            match manifest(&bytes, &what)? {
                Manifest::Image { config, layers } => return Ok((config, layers)),
                Manifest::Index(entries) => {
                    let (os, arch) = &self.options.platform;
                    let blob = choose(&entries, (os, arch), &what)?.blob;
                    version = blob.digest.to_string();
                    wanted = Some((blob.digest, Some(blob.size)));
                }
            }
        }
        Err(ImageError::document(what, "an index of indexes of indexes"))
    }

    fn manifest_bytes(
        &self,
        version: &str,
        wanted: Option<(Digest, Option<u64>)>,
    ) -> Result<Vec<u8>, ImageError> {
        let what = format!("{} (manifest)", self.reference);
        let path = format!("manifests/{version}");
        let mut told = None;
        let bytes = self.retried(&what, || {
            let response = self.request(&path, &MANIFEST_TYPES.join(", "), None, &what)?;
            told = response
                .headers()
                .get("docker-content-digest")
                .and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
            read_bounded(response, MAX_MANIFEST, &what)
        })?;
        let got = Digest::of(&bytes);
        if let Some((digest, size)) = wanted {
            let length = bytes.len() as u64;
            if size.is_some_and(|size| size != length) {
                return Err(ImageError::size(what, size.unwrap_or_default(), length));
            }
            if got != digest {
                return Err(ImageError::digest(what, digest, got));
            }
        } else if let Some(told) = told
            && told != got
        {
            return Err(ImageError::digest(what, told, got));
        }
        Ok(bytes)
    }

    /// A blob that is small, in memory; checked.
    pub fn small_blob(&self, blob: Blob) -> Result<Vec<u8>, ImageError> {
        let what = format!("{} (config)", self.reference);
        let path = format!("blobs/{}", blob.digest);
        let bytes = self.retried(&what, || {
            let response = self.request(&path, "*/*", None, &what)?;
            read_bounded(response, blob.size, &what)
        })?;
        if bytes.len() as u64 != blob.size {
            return Err(ImageError::size(what, blob.size, bytes.len() as u64));
        }
        let got = Digest::of(&bytes);
        if got == blob.digest { Ok(bytes) } else { Err(ImageError::digest(what, blob.digest, got)) }
    }

    /// A blob's bytes from a position on; whether they begin there, or at the blob's beginning.
    pub(super) fn open_blob(
        &self,
        blob: Blob,
        from: u64,
    ) -> Result<(impl Read + 'static, bool), ImageError> {
        let what = self.what(blob);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        self.retried(&what, || {
            let path = format!("blobs/{}", blob.digest);
            let response = self.request(&path, "*/*", range.as_deref(), &what)?;
            let is_rest = response.status() == StatusCode::PARTIAL_CONTENT;
            if is_rest && content_start(response.headers()) != Some(from) {
                let reason = "the registry sent another part than was asked for".to_owned();
                return Err(Failure::Final(ImageError::Registry { what: what.clone(), reason }));
            }
            let (_, body) = response.into_parts();
            Ok((body.into_with_config().limit(u64::MAX).reader(), is_rest))
        })
    }

    /// A layer's name in errors.
    pub(super) fn what(&self, blob: Blob) -> String {
        format!("{} (layer {})", self.reference, &blob.digest.hex()[..12])
    }

    pub(super) fn max_retries(&self) -> u32 {
        self.options.max_retries
    }

    /// Tries until it works, a try fails for good, or too many failed.
    fn retried<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, ImageError> {
        let mut failures = 0;
        loop {
            if self.progress.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason, after)) => {
                    failures += 1;
                    if failures > self.options.max_retries {
                        return Err(ImageError::Registry { what: what.to_owned(), reason });
                    }
                    self.pause(failures, after, &reason)?;
                }
            }
        }
    }

    /// Waits before another try, longer each time.
    pub(super) fn pause(
        &self,
        failures: u32,
        after: Option<Duration>,
        reason: &str,
    ) -> Result<(), ImageError> {
        let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10));
        let pause = after.unwrap_or(doubled).min(MAX_PAUSE);
        self.progress.event(&PullEvent::Retry { reason: reason.to_owned(), after: pause });
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.progress.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }

    /// One request, with another one after a challenge.
    fn request(
        &self,
        path: &str,
        accept: &str,
        range: Option<&str>,
        what: &str,
    ) -> Result<Response<Body>, Failure> {
        let url = format!("{}/{path}", self.base);
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let response = self.send(&url, accept, range, known.as_deref())?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return checked(response, what);
        }
        let Some(authorization) = self.answer(response.headers(), what)? else {
            return checked(response, what);
        };
        if known.as_deref() == Some(&authorization) {
            return checked(response, what);
        }
        let response = self.send(&url, accept, range, Some(&authorization))?;
        if response.status() != StatusCode::UNAUTHORIZED {
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(authorization);
        }
        checked(response, what)
    }

    fn send(
        &self,
        url: &str,
        accept: &str,
        range: Option<&str>,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url).header(header::ACCEPT, accept);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.call().map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &ureq::Error) -> Failure {
        let what = self.reference.to_string();
        let reason = match error {
            ureq::Error::RequireHttpsOnly(url) => format!(
                "{url} is not encrypted; allow it with --allow-http if the network is trusted"
            ),
            ureq::Error::HostNotFound => format!("no such host: {}", self.reference.host()),
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
                format!("{error}; a registry without encryption is spoken to with --allow-http")
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                error.to_string()
            }
            other => return Failure::Passing(other.to_string(), None),
        };
        Failure::Final(ImageError::Registry { what, reason })
    }

    /// The `Authorization` that answers a challenge; `None` where there is nothing to answer with.
    fn answer(&self, headers: &HeaderMap, what: &str) -> Result<Option<String>, Failure> {
        let challenges: Vec<Challenge> = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| auth::challenge(value.to_str().ok()?))
            .collect();
        for challenge in &challenges {
            if let Challenge::Bearer(parameters) = challenge {
                let mut known = parameters.clone();
                let Some(realm) = known.remove("realm") else { continue };
                return self.token(&realm, &known, what).map(Some);
            }
        }
        Ok(match (&self.credentials, challenges.contains(&Challenge::Basic)) {
            (Some(credentials), true) => Some(auth::basic(credentials)),
            _ => None,
        })
    }

    fn token(
        &self,
        realm: &str,
        parameters: &std::collections::HashMap<String, String>,
        what: &str,
    ) -> Result<String, Failure> {
        let refuse =
            |reason: String| Failure::Final(ImageError::Denied { what: what.to_owned(), reason });
        let host = realm
            .strip_prefix("http://")
            .map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        // Credentials and tokens are worth as much as what they open.
        if let Some(host) = host
            && (host.contains('@') || !(self.options.allow_http || is_loopback(host)))
        {
            return Err(refuse(format!("its token server {realm} is not encrypted")));
        }
        let mut request = self.agent.get(realm);
        if let Some(service) = parameters.get("service") {
            request = request.query("service", service);
        }
        let scope = format!("repository:{}:pull", self.reference.repository());
        request = request.query("scope", parameters.get("scope").unwrap_or(&scope));
        if let Some(credentials) = &self.credentials {
            request = request.query("account", &credentials.username);
            request = request.header(header::AUTHORIZATION, auth::basic(credentials));
        }
        let response = request.call().map_err(|error| self.failure(&error))?;
        let response = checked(response, what)?;
        let bytes = read_bounded(response, MAX_ANSWER, what)?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&bytes).ok();
        let token = answer.and_then(TokenAnswer::token);
        let token = token.ok_or_else(|| refuse(format!("{realm} gave no token")))?;
        Ok(format!("Bearer {token}"))
    }
}

/// The response, if it is what was asked for.
fn checked(response: Response<Body>, what: &str) -> Result<Response<Body>, Failure> {
    let status = response.status();
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
        return Ok(response);
    }
    let after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let what = what.to_owned();
    let reason = format!("HTTP {status}{}", said(response));
    Err(match status.as_u16() {
        401 | 403 => Failure::Final(ImageError::Denied { what, reason }),
        404 => Failure::Final(ImageError::NotFound { what }),
        408 | 425 | 429 | 500..=599 => Failure::Passing(reason, after),
        _ => Failure::Final(ImageError::Registry { what, reason }),
    })
}

/// The message of a registry's error document.
fn said(response: Response<Body>) -> String {
    let (_, body) = response.into_parts();
    let mut text = Vec::new();
    let _ = body.into_with_config().limit(MAX_ERROR).reader().read_to_end(&mut text);
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    match value.pointer("/errors/0/message").and_then(serde_json::Value::as_str) {
        Some(message) => {
            let clean: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
            format!(": {clean}")
        }
        None => String::new(),
    }
}

/// A whole body, in memory.
fn read_bounded(response: Response<Body>, max: u64, what: &str) -> Result<Vec<u8>, Failure> {
    let (_, body) = response.into_parts();
    let mut bytes = Vec::new();
    body.into_with_config()
        .limit(u64::MAX)
        .reader()
        .take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Passing(error.to_string(), None))?;
    if bytes.len() as u64 > max {
        let reason = format!("longer than {max} bytes");
        return Err(Failure::Final(ImageError::document(what, reason)));
    }
    Ok(bytes)
}

/// The first byte of a `Content-Range: bytes 10-20/30`.
fn content_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
