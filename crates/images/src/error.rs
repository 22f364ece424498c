//! What can go wrong with images, in words for whoever asked for one.

use std::io;
use std::path::Path;

use crate::digest::Digest;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text is no image reference.
    #[error(
        "{text:?} is no image reference: {reason}; expected [HOST[:PORT]/]NAME[:TAG][@sha256:…]"
    )]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry has no such image, or hides it from who asks.
    #[error("{what}: not found in the registry")]
    NotFound {
        /// The image or blob, with its registry.
        what: String,
    },
    /// The registry wants (other) credentials.
    #[error(
        "{what}: access denied ({reason}); give credentials with `docker login`, or \
         --username and --password-stdin of `patchwright images pull`"
    )]
    Denied {
        /// The image or blob, with its registry.
        what: String,
        /// What the registry said.
        reason: String,
    },
    /// The registry could not be reached or does not speak the protocol.
    #[error("{what}: {reason}")]
    Registry {
        /// What was asked for.
        what: String,
        /// What came instead.
        reason: String,
    },
    /// Content is not what its digest or size says.
    #[error("{what}: {property} is {got}, not {expected}: it is corrupt or was tampered with")]
    Mismatch {
        /// The blob, manifest or layer.
        what: String,
        /// `digest` or `size`.
        property: &'static str,
        /// What was promised.
        expected: String,
        /// What came.
        got: String,
    },
    /// A manifest, index or config that cannot be used.
    #[error("{what}: {reason}")]
    Document {
        /// Which one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive that cannot be used.
    #[error("{path}: {reason}")]
    Archive {
        /// The file or directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer's tar is malformed, hostile or out of bounds.
    #[error("layer: {entry:?}: {reason}")]
    Layer {
        /// Path of the entry, or empty.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such image in the store.
    #[error("{reference}: no such image here; `patchwright images list` shows what there is")]
    Unknown {
        /// What was asked for.
        reference: String,
    },
    /// The image is being used by a living process.
    #[error("{reference}: in use by a living process; end it first")]
    InUse {
        /// What was asked for.
        reference: String,
    },
    /// It was asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// An operation of the host failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: io::Error,
    },
}

impl ImageError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::from_io(source, context)
    }

    /// What a reader of ours failed with, which comes wrapped, or an error of the host.
    pub(crate) fn from_io(source: io::Error, context: impl Into<String>) -> Self {
        match source.downcast::<Self>() {
            Ok(error) => error,
            Err(source) => Self::Io { context: context.into(), source },
        }
    }

    /// Wrapped, for a `Read` of ours to fail with.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { context: path.display().to_string(), source }
    }

    pub(crate) fn document(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Document { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn digest(what: impl Into<String>, expected: Digest, got: Digest) -> Self {
        Self::Mismatch {
            what: what.into(),
            property: "digest",
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    pub(crate) fn size(what: impl Into<String>, expected: u64, got: u64) -> Self {
        Self::Mismatch {
            what: what.into(),
            property: "size",
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}
