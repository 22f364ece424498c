//! Bearer tokens: where they come from and how they are compared.

use std::net::SocketAddr;
use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::ServeError;

/// Bytes of a token file at most.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Characters of a token at least.
const MIN_TOKEN_CHARS: usize = 16;

/// A secret that requests must bear. Only its digest is kept, and that is what is compared, in
/// time that does not depend on where two tokens differ.
#[derive(Clone)]
pub struct BearerToken {
    digest: [u8; 32],
}

impl std::fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BearerToken(..)")
    }
}

impl BearerToken {
    /// A token as it stands.
    ///
    /// # Errors
    /// [`ServeError::Token`] when it is too short to be one, or holds what a header cannot.
    pub fn new(token: &str) -> Result<Self, ServeError> {
        if token.len() < MIN_TOKEN_CHARS || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ServeError::Token(format!(
                "a token has at least {MIN_TOKEN_CHARS} characters of ASCII without spaces; make \
                 one with: openssl rand -hex 32"
            )));
        }
        Ok(Self { digest: Sha256::digest(token.as_bytes()).into() })
    }

    /// The token in a file, without the white space around it.
    ///
    /// # Errors
    /// [`ServeError::Token`] when the file cannot be read or holds no token.
    pub fn from_file(path: &Path) -> Result<Self, ServeError> {
        let name = path.display();
        let fail = |error: &dyn std::fmt::Display| {
            ServeError::Token(format!("token file {name}: {error}"))
        };
        let length = std::fs::metadata(path).map_err(|e| fail(&e))?.len();
        if length > MAX_TOKEN_BYTES {
            return Err(fail(&format!("has {length} bytes, a token at most {MAX_TOKEN_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
        Self::new(text.trim()).map_err(|e| fail(&e))
    }

    /// Whether an `Authorization` header, or a bare key, bears this token.
    pub fn matches(&self, header: &str) -> bool {
        let given = header
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or(header, |(_, token)| token.trim());
        let digest: [u8; 32] = Sha256::digest(given.as_bytes()).into();
        digest.ct_eq(&self.digest).into()
    }
}

/// Refuses to serve others than this machine without a token.
///
/// # Errors
/// [`ServeError::Token`] saying how to mend it.
pub(crate) fn check_exposure(
    address: SocketAddr,
    token: Option<&BearerToken>,
) -> Result<(), ServeError> {
    if token.is_some() || address.ip().is_loopback() {
        return Ok(());
    }
    Err(ServeError::Token(format!(
        "{address} is open to other machines: give a token (--token-file FILE or PATCHWRIGHT_TOKEN), \
         or bind to 127.0.0.1"
    )))
}

#[cfg(test)]
mod tests {
    use super::{BearerToken, check_exposure};

    const SECRET: &str = "0123456789abcdef0123";

    #[test]
    fn a_token_matches_itself_only() {
        let token = BearerToken::new(SECRET).unwrap();
        assert!(token.matches(&format!("Bearer {SECRET}")));
        assert!(token.matches(&format!("bearer {SECRET}")));
        assert!(token.matches(SECRET));
        for wrong in ["", "Bearer ", "Bearer 0123456789abcdef012", "Basic 0123456789abcdef0123"] {
            assert!(!token.matches(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "BearerToken(..)");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in ["", "short", "with a space in it, long"] {
            assert!(BearerToken::new(bad).is_err(), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(BearerToken::from_file(&path).unwrap_err().to_string().contains("token file"));
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        assert!(BearerToken::from_file(&path).unwrap().matches(SECRET));
    }

    #[test]
    fn other_machines_need_a_token() {
        let token = BearerToken::new(SECRET).unwrap();
        for (address, has_token, allowed) in [
            ("127.0.0.1:1", false, true),
            ("[::1]:1", false, true),
            ("0.0.0.0:1", false, false),
            ("192.168.1.2:1", false, false),
            ("0.0.0.0:1", true, true),
        ] {
            let result = check_exposure(address.parse().unwrap(), has_token.then_some(&token));
            assert_eq!(result.is_ok(), allowed, "{address}");
        }
    }
}
