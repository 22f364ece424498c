//! Arguments of `patchwright images`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `patchwright images`.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// List the images that are here
    List(ImagesListArgs),
    /// Get an image from its registry
    Pull(ImagesPullArgs),
    /// Get the images of an archive
    Load(ImagesLoadArgs),
    /// Remove an image, or one of its names
    Rm(ImagesRemoveArgs),
    /// Remove layers that no image needs, and images that were not used for long
    Gc(ImagesGcArgs),
}

/// Where images are kept.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Directory of the images [default: ~/.cache/patchwright/images, by XDG_CACHE_HOME]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Prints the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `patchwright images list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright images list\n  \
    patchwright images list --json")]
pub struct ImagesListArgs {
    /// Where they are kept.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `patchwright images pull`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright images pull debian:12\n  \
    patchwright images pull ghcr.io/org/name@sha256:DIGEST\n  \
    patchwright images pull localhost:5000/testbed:v1\n  \
    pass registry | patchwright images pull example.com/a/b --username me --password-stdin\n\n\
    Names have Docker's defaults. Without --username, the credentials of `docker login` are used.\n\
    A pull that was interrupted goes on where it stopped.")]
pub struct ImagesPullArgs {
    /// Such as debian:12, 127.0.0.1:5000/name:tag or name@sha256:…; several are pulled one after the other
    #[arg(value_name = "REFERENCE", required = true)]
    pub references: Vec<String>,
    /// Operating system and architecture [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// User name at the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    pub username: Option<String>,
    /// Reads the password, or a token, from standard input
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// Speaks to the registry without encryption; on this machine that needs no leave
    #[arg(long)]
    pub allow_http: bool,
    /// Layers at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub jobs: usize,
    /// Where they are kept.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `patchwright images load`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    docker save org/name:tag > image.tar && patchwright images load image.tar\n  \
    patchwright images load oci-layout/ --tag org/name:tag")]
pub struct ImagesLoadArgs {
    /// A tar of `docker save`, plain or compressed, or an OCI layout, a directory or a tar
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Names the image, in place of the names in the archive
    #[arg(long, value_name = "REFERENCE")]
    pub tag: Option<String>,
    /// Operating system and architecture, where there are several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Where they are kept.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `patchwright images rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright images rm debian:12\n  \
    patchwright images rm 3f57d9401f8d\n\n\
    An id removes all names. What a living process uses is not removed.")]
pub struct ImagesRemoveArgs {
    /// Names or ids
    #[arg(value_name = "REFERENCE", required = true)]
    pub references: Vec<String>,
    /// Where they are kept.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `patchwright images gc`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright images gc\n  \
    patchwright images gc --keep-bytes 20G\n\n\
    Without --keep-bytes, only what belongs to no image goes: layers, and interrupted downloads.\n\
    What a living process uses stays, whatever the bound.")]
pub struct ImagesGcArgs {
    /// Removes images, those used longest ago first, until the rest has at most so many bytes; K,
    /// M, G and T stand for powers of 1024
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub keep_bytes: Option<u64>,
    /// Where they are kept.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `1024`, `20G`.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.trim_end_matches(['B', 'b']).trim_end_matches(['i', 'I']) {
        text if text.ends_with(['k', 'K']) => (&text[..text.len() - 1], 10),
        text if text.ends_with(['m', 'M']) => (&text[..text.len() - 1], 20),
        text if text.ends_with(['g', 'G']) => (&text[..text.len() - 1], 30),
        text if text.ends_with(['t', 'T']) => (&text[..text.len() - 1], 40),
        text => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number such as 20G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too many bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("1024", 1024),
            ("2k", 2048),
            ("20G", 20 << 30),
            ("1MiB", 1 << 20),
            ("3T", 3 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "G", "-1", "1.5G", "99999999999T", "1 X"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
