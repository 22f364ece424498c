//! Images that tests build, a registry server to have them on, and a line to it that breaks.

#![allow(dead_code, clippy::allow_attributes, reason = "not every test file uses all of it")]

pub mod server;
pub mod tarball;
pub mod wire;

use patchwright_images::Digest;
use serde_json::{Value, json};

use tarball::Tarball;

/// How a layer is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Plain,
    Gzip,
    Zstd,
}

/// Documents in Docker's or in the OCI's dialect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    Docker,
    Oci,
}

/// An image in the making.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<(Tarball, Form)>,
    pub dialect: Dialect,
    pub architecture: String,
    pub run: Value,
}

/// An image as a registry has it.
#[derive(Clone)]
pub struct Built {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub media_type: &'static str,
    pub blobs: Vec<Vec<u8>>,
}

impl TestImage {
    pub fn new(layers: impl IntoIterator<Item = (Tarball, Form)>) -> Self {
        Self {
            layers: layers.into_iter().collect(),
            dialect: Dialect::Oci,
            architecture: "amd64".to_owned(),
            run: json!({"Env": ["PATH=/bin", "A=b=c"], "WorkingDir": "/testbed", "User": "root"}),
        }
    }

    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    pub fn build(&self) -> Built {
        let mut blobs = Vec::new();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, form) in &self.layers {
            let blob = match form {
                Form::Plain => tar.bytes(),
                Form::Gzip => tar.gzip(),
                Form::Zstd => tar.zstd(),
            };
            diff_ids.push(Digest::of(&tar.bytes()).to_string());
            let media_type = match (self.dialect, form) {
                (Dialect::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                (Dialect::Oci, Form::Plain) => "application/vnd.oci.image.layer.v1.tar",
                (Dialect::Oci, Form::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
                (Dialect::Oci, Form::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            };
            descriptors.push(descriptor(media_type, &blob));
            blobs.push(blob);
        }
        let config = json!({
            "architecture": self.architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": self.run, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let (media_type, config_type) = match self.dialect {
            Dialect::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
            Dialect::Oci => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": descriptor(config_type, &config), "layers": descriptors,
        });
        Built { config, manifest: serde_json::to_vec(&manifest).unwrap(), media_type, blobs }
    }
}

impl Built {
    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Bytes of all layers as stored.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.len() as u64).sum()
    }
}

pub fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len()})
}

/// An index of images by architecture.
pub fn index(images: &[(&str, &Built)]) -> Vec<u8> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(architecture, image)| {
            let mut value = descriptor(image.media_type, &image.manifest);
            value["platform"] = json!({"os": "linux", "architecture": architecture});
            value
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    serde_json::to_vec(
        &json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}),
    )
    .unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
