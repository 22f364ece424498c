//! Who asks: challenges, credentials, tokens. See the distribution project's token
//! specification and RFC 9110, 11.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Credentials;
use crate::error::ImageError;

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer(HashMap<String, String>),
}

/// Reads one `WWW-Authenticate` header; `None` for a scheme that is not known.
pub fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = HashMap::new();
    let mut rest = rest.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = if let Some(quoted) = after.strip_prefix('"') {
            quoted_string(quoted)?
        } else {
            let end = after.find(',').unwrap_or(after.len());
            (after[..end].trim().to_owned(), &after[end..])
        };
        parameters.insert(key.trim().to_ascii_lowercase(), value);
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some(Challenge::Bearer(parameters))
}

/// The text up to the closing quote, and what follows.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// The value of a basic `Authorization` header.
pub fn basic(credentials: &Credentials) -> String {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    format!("Basic {}", STANDARD.encode(pair))
}

/// What a token server answers.
#[derive(Deserialize)]
pub struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    /// The token, if there is one that can stand in a header.
    pub fn token(self) -> Option<String> {
        let usable =
            |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        self.token.filter(usable).or_else(|| self.access_token.filter(usable))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// User name and password, in base64.
    #[serde(rename = "auth")]
    encoded: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The credentials that Docker's configuration has for a registry.
///
/// # Errors
/// [`ImageError::Document`] for a file that cannot be read, or a helper that fails.
pub fn from_docker_config(path: &Path, registry: &str) -> Result<Option<Credentials>, ImageError> {
    let bad = |reason: String| ImageError::document(path.display().to_string(), reason);
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(error.to_string())),
    };
    let config: DockerConfig =
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let keys: Vec<&str> = if registry == "docker.io" {
        vec!["https://index.docker.io/v1/", "index.docker.io", "docker.io"]
    } else {
        vec![registry]
    };
    let helper = |key: &&str| config.cred_helpers.get(*key);
    if let Some(helper) = keys.iter().find_map(helper).or(config.creds_store.as_ref())
        && let Some(found) = ask_helper(helper, keys[0]).map_err(bad)?
    {
        return Ok(Some(found));
    }
    for (name, auth) in &config.auths {
        if keys.contains(&name.as_str()) || keys.contains(&host_of(name)) {
            return credentials(auth)
                .map_err(|reason| bad(format!("credentials of {name}: {reason}")));
        }
    }
    Ok(None)
}

/// Old entries are URLs.
fn host_of(name: &str) -> &str {
    let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://"));
    name.map_or("", |name| name.split('/').next().unwrap_or_default())
}

fn credentials(auth: &Auth) -> Result<Option<Credentials>, String> {
    if let (Some(username), Some(password)) = (&auth.username, &auth.password) {
        return Ok(Some(Credentials { username: username.clone(), password: password.clone() }));
    }
    let Some(encoded) = auth.encoded.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let bytes = STANDARD.decode(encoded.trim()).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (username, password) = text.split_once(':').ok_or("no colon in them")?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Credentials { username: username.to_owned(), password }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-HELPER get`. One that knows nothing of the registry fails, by its
/// protocol, and is not heeded.
fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(format!("{helper:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(registry.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Ok(None);
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{program} answered: {error}"))?;
    if answer.username == "<token>" {
        return Err(format!(
            "{program} has an identity token for {registry}, which is not \
             supported: log in with a user name and an access token"
        ));
    }
    Ok(Some(Credentials { username: answer.username, password: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::{Challenge, basic, challenge, from_docker_config};
    use crate::registry::Credentials;

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://a.b/token?x=1,2",service="a\"b", scope=pull"#;
        let Some(Challenge::Bearer(parameters)) = challenge(header) else { panic!("{header}") };
        assert_eq!(parameters["realm"], "https://a.b/token?x=1,2");
        assert_eq!(parameters["service"], "a\"b");
        assert_eq!(parameters["scope"], "pull");
        assert_eq!(challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(challenge("basic"), Some(Challenge::Basic));
        assert_eq!(challenge("Negotiate abc"), None);
        assert_eq!(challenge("Bearer realm=\"unclosed"), None);
    }

    #[test]
    fn docker_logins_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert_eq!(from_docker_config(&path, "ghcr.io").unwrap(), None);
        // u:p, v:q:r
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"},
            "ghcr.io": {"auth": "djpxOnI="}, "https://old.example/v2/": {"auth": "dTpw"},
            "bad.example": {"auth": "!"}, "empty.example": {}}, "other": 1}"#;
        std::fs::write(&path, text).unwrap();
        let found = |registry| from_docker_config(&path, registry).unwrap();
        let (u, p) = ("u".to_owned(), "p".to_owned());
        let up = Credentials { username: u, password: p };
        assert_eq!(found("docker.io"), Some(up.clone()));
        assert_eq!(found("old.example"), Some(up.clone()));
        assert_eq!(found("ghcr.io").unwrap().password, "q:r");
        assert_eq!(found("empty.example"), None);
        assert_eq!(found("none.example"), None);
        assert!(from_docker_config(&path, "bad.example").is_err());
        assert_eq!(basic(&up), "Basic dTpw");
        assert!(!format!("{up:?}").contains("\"p\""));
    }

    #[test]
    fn helpers_are_plain_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"credsStore": "../../bin/sh"}"#).unwrap();
        let error = from_docker_config(&path, "ghcr.io").unwrap_err().to_string();
        assert!(error.contains("credential helper"), "{error}");
    }
}
