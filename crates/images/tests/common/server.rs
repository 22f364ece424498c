//! Debian's `docker-registry` on a port of this machine, and pushing to it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use patchwright_images::Digest;

use super::Built;

/// Who may use a registry.
#[derive(Clone, Copy)]
pub enum Access<'a> {
    Everybody,
    /// One line of htpasswd.
    Basic(&'a str),
    /// Whoever has a token of this server.
    Token(&'a TokenServer),
}

/// A registry server; ends when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
    dir: Arc<tempfile::TempDir>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    pub fn start() -> Self {
        Self::with(Access::Everybody, Arc::new(tempfile::tempdir().unwrap()))
    }

    /// The same images, other rules.
    pub fn again(&self, access: Access<'_>) -> Self {
        Self::with(access, Arc::clone(&self.dir))
    }

    fn with(access: Access<'_>, dir: Arc<tempfile::TempDir>) -> Self {
        for _ in 0..5 {
            // Somebody may take the port between.
            if let Some((child, port)) = try_start(&access, dir.path()) {
                return Self { child, port, dir };
            }
        }
        panic!("docker-registry does not start; apt-get install docker-registry");
    }

    /// Such as `127.0.0.1:4000/name:tag`.
    pub fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    /// Pushes an image under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) {
        for blob in image.blobs.iter().chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, tag, image.media_type, &image.manifest);
    }

    fn push_blob(&self, repository: &str, blob: &[u8]) {
        let url = format!("http://127.0.0.1:{}/v2/{repository}/blobs/uploads/", self.port);
        let agent = agent();
        let response = agent.post(&url).send_empty().unwrap();
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let digest = Digest::of(blob).to_string();
        agent.put(&location).query("digest", &digest).send(blob).unwrap();
    }

    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let url = format!("http://127.0.0.1:{}/v2/{repository}/manifests/{tag}", self.port);
        agent().put(&url).header("content-type", media_type).send(bytes).unwrap();
    }

    /// The file that a blob is in.
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).build().into()
}

fn try_start(access: &Access<'_>, dir: &Path) -> Option<(Child, u16)> {
    let port = free_port();
    let auth = match access {
        Access::Everybody => String::new(),
        Access::Basic(line) => {
            let path = dir.join("htpasswd");
            fs::write(&path, line).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display())
        }
        Access::Token(server) => format!(
            "auth:\n  token:\n    realm: http://127.0.0.1:{}/token\n    service: test\n    \
             issuer: tests\n    rootcertbundle: {}\n",
            server.port,
            server.dir.path().join("cert.pem").display()
        ),
    };
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: \
         {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
        dir.join("storage").display()
    );
    let path = dir.join(format!("config-{port}.yml"));
    fs::write(&path, config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child =
        child.expect("these tests need docker-registry: apt-get install docker-registry");
    let end = Instant::now() + Duration::from_mins(1);
    while Instant::now() < end {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some((child, port));
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Gives tokens that a registry with its certificate takes, to one user or to everybody.
pub struct TokenServer {
    pub port: u16,
    dir: tempfile::TempDir,
    /// Tokens given.
    pub given: Arc<AtomicUsize>,
}

impl TokenServer {
    /// `user` is `name:password`; without it, everybody gets a token.
    pub fn start(user: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        openssl(
            dir.path(),
            "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=tests",
        );
        openssl(dir.path(), "x509 -in cert.pem -outform DER -out cert.der");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let given = Arc::new(AtomicUsize::new(0));
        let wanted = user.map(|user| format!("Basic {}", STANDARD.encode(user)));
        let (counter, path) = (Arc::clone(&given), dir.path().to_owned());
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, wanted.as_deref(), &path, &counter);
            }
        });
        Self { port, dir, given }
    }
}

fn answer(
    mut stream: TcpStream,
    wanted: Option<&str>,
    dir: &Path,
    given: &AtomicUsize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut target = String::new();
    reader.read_line(&mut target)?;
    let mut authorization = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            authorization = Some(value.trim().to_owned());
        }
    }
    let (status, body) = if wanted.is_some() && authorization.as_deref() != wanted {
        ("401 Unauthorized", "{}".to_owned())
    } else {
        given.fetch_add(1, Ordering::SeqCst);
        let scope = target.split("scope=").nth(1).unwrap_or_default();
        let scope = scope.split(['&', ' ']).next().unwrap_or_default();
        let scope = scope.replace("%3A", ":").replace("%2F", "/");
        let name = scope.split(':').nth(1).unwrap_or_default();
        ("200 OK", format!("{{\"token\": \"{}\"}}", token(dir, name)))
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn token(dir: &Path, repository: &str) -> String {
    let certificate = STANDARD.encode(fs::read(dir.join("cert.der")).unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "x5c": [certificate]});
    let claims = serde_json::json!({
        "iss": "tests", "sub": "u", "aud": "test", "exp": now + 600, "nbf": now - 60, "iat": now,
        "jti": "1", "access": [{"type": "repository", "name": repository, "actions": ["pull"]}],
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = openssl_with(dir, "dgst -sha256 -sign key.pem", signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn openssl(dir: &Path, arguments: &str) {
    openssl_with(dir, arguments, b"");
}

fn openssl_with(dir: &Path, arguments: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need openssl");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success(), "openssl {arguments}");
    output
}
