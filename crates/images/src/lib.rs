//! Container images without a daemon.
//!
//! [`ImageStore`] is the face: it pulls by [`Reference`] from registries that speak the OCI
//! distribution protocol, loads `docker save` and OCI-layout archives, and keeps what it got as
//! unpacked layers, one directory a layer, named by the digest of the layer's tar (its diff-id).
//! Layers are stacked by whoever mounts them: [`Image::root`] is what a sandbox takes.
//!
//! ```text
//! DIR/layers/sha256/<diff-id>/    a whole, verified layer, whiteouts in overlayfs form
//! DIR/layers/sha256/<diff-id>.json  what it weighs
//! DIR/staging/<diff-id>/          a layer in the making: <blob>.partial, <blob>, root/
//! DIR/images/<image id>.json      config and layers; its lock is the lease of who uses the image
//! DIR/references.json             names of images
//! DIR/locks/                      index, and one of 256 for each layer in the making
//! ```
//!
//! Nothing in `layers/` was ever partial: a layer is checked and then renamed into place. So a
//! process that was killed leaves at most a staging directory, which the next pull goes on with.
//! (A power failure is another matter: data is not forced to the disk.)
//!
//! All that comes from outside is taken for hostile: manifests and configs are bounded, every
//! digest and size is checked, and layers are unpacked by [`unpack`](crate) without following a
//! link out of the layer, without devices, and within bounds.

mod archive;
mod config;
mod digest;
mod documents;
mod error;
mod image;
mod layer;
mod progress;
mod reference;
mod registry;
mod store;
mod tar_entries;
mod unpack;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::ImageError;
pub use image::Image;
pub use progress::{Progress, PullEvent, Silent};
pub use reference::Reference;
pub use registry::{Credentials, PullOptions};
pub use store::{GcReport, ImageStore, ImageSummary, LoadOptions, default_dir};
pub use unpack::{LayerInfo, UnpackLimits};

#[cfg(test)]
#[path = "../tests/common/tarball.rs"]
mod tarball;
