//! What can be wrong with a message.

/// A message that cannot be read or written. The text says which part and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are no such message.
    #[error("{what} is not well formed: {reason}")]
    Malformed {
        /// The message or its part.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The message has more of something than this side takes.
    #[error("{what}: {found} is more than the limit of {limit}")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// How much there is (at least).
        found: u64,
        /// How much is taken.
        limit: u64,
    },
    /// The message asks for what this side cannot do.
    #[error("{0}")]
    Unsupported(String),
}

impl WireError {
    pub(crate) fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn check(what: &str, found: usize, limit: usize) -> Result<(), Self> {
        if found > limit {
            return Err(Self::TooLarge {
                what: what.to_owned(),
                found: found as u64,
                limit: limit as u64,
            });
        }
        Ok(())
    }
}
