//! Pulls an image of about 1 GB, made on the fly, from a registry on this machine, beside
//! decompressing it and `gzip -dc | tar -x`.
//!
//! `cargo run --release -p patchwright-images --example pull [MEGABYTES [LAYERS]]`; needs
//! docker-registry, gzip and tar.

#[path = "../tests/common/mod.rs"]
mod common;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::server::Server;
use common::tarball::Tarball;
use common::{Built, Form, TestImage, noise};
use patchwright_images::{Digest, ImageStore, PullOptions, Silent};
use serde_json::{Value, json};

/// Files as an environment has them: most small, text that compresses to about a third.
fn layer(megabytes: usize, seed: u64) -> Tarball {
    let words: Vec<String> = noise(4096, 99)
        .chunks(4)
        .map(|bytes| bytes.iter().map(|b| char::from(b'a' + b % 26)).collect())
        .collect();
    let mut tar = Tarball::new();
    let mut left = megabytes << 20;
    let mut picks = noise(megabytes << 18, seed).into_iter().cycle();
    for index in 0.. {
        let size = if index % 40 == 0 { 2 << 20 } else { 12 << 10 };
        let mut text = Vec::with_capacity(size + 8);
        while text.len() < size {
            let pick = usize::from(picks.next().unwrap_or(0)) << 2 | index & 3;
            text.extend(words[pick].as_bytes());
            text.push(if pick % 11 == 0 { b'\n' } else { b' ' });
        }
        tar = tar.file(&format!("d{}/f{index}", index % 97), &text);
        if left < size {
            return tar;
        }
        left -= size;
    }
    tar
}

/// Seconds of a processor that this process and the children it waited for have used.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // utime, stime, cutime and cstime, in hundredths of a second.
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(4).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// Runs it, and prints what it took.
fn measure<T>(
    what: &str,
    work: impl FnOnce() -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    let (start, before) = (Instant::now(), processor());
    let done = work()?;
    let (wall, used) = (start.elapsed().as_secs_f64(), processor() - before);
    println!("{what:45} {wall:6.2} s, {used:6.2} s of a processor");
    Ok(done)
}

fn shell(script: &str, blobs: &[PathBuf], out: &Path) -> Result<(), Box<dyn Error>> {
    for (index, blob) in blobs.iter().enumerate() {
        let dir = out.join(index.to_string());
        std::fs::create_dir_all(&dir)?;
        let status = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([blob.as_path(), dir.as_path()])
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(script.into());
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    let megabytes = numbers.first().copied().unwrap_or(1024);
    let num_layers = numbers.get(1).copied().unwrap_or(4).max(1);
    eprintln!("making {num_layers} layers of {} MB", megabytes / num_layers);
    let mut whole: Option<(Built, Vec<Value>, Vec<String>)> = None;
    let dir = tempfile::tempdir()?;
    let mut paths = Vec::new();
    for index in 0..num_layers {
        let one = TestImage::new([(layer(megabytes / num_layers, index as u64), Form::Gzip)]);
        let built = one.build();
        let manifest: Value = serde_json::from_slice(&built.manifest)?;
        let config: Value = serde_json::from_slice(&built.config)?;
        let path = dir.path().join(format!("{index}.tar.gz"));
        std::fs::write(&path, &built.blobs[0])?;
        paths.push(path);
        let (all, descriptors, diff_ids) = whole
            .get_or_insert_with(|| (Built { blobs: Vec::new(), ..built.clone() }, vec![], vec![]));
        all.blobs.extend(built.blobs);
        descriptors.push(manifest["layers"][0].clone());
        let diff_id = config.pointer("/rootfs/diff_ids/0").and_then(Value::as_str);
        diff_ids.push(diff_id.unwrap_or_default().to_owned());
    }
    let (mut image, descriptors, diff_ids) = whole.ok_or("no layers")?;
    let mut config: Value = serde_json::from_slice(&image.config)?;
    config["rootfs"]["diff_ids"] = json!(diff_ids);
    image.config = serde_json::to_vec(&config)?;
    let mut manifest: Value = serde_json::from_slice(&image.manifest)?;
    manifest["layers"] = json!(descriptors);
    let config_type = "application/vnd.oci.image.config.v1+json";
    manifest["config"] = common::descriptor(config_type, &image.config);
    image.manifest = serde_json::to_vec(&manifest)?;
    let server = Server::start();
    server.push("big", "v1", &image);
    println!("{} MB compressed, manifest {}", image.size() >> 20, Digest::of(&image.manifest));
    drop(std::mem::take(&mut image.blobs));

    for round in 1..=3 {
        println!("round {round}");
        let out = dir.path().join("tar");
        measure("gzip -dc", || shell("gzip -dc \"$1\" > /dev/null", &paths, &out))?;
        measure("gzip -dc | tar -x", || shell("gzip -dc \"$1\" | tar -x -C \"$2\"", &paths, &out))?;
        std::fs::remove_dir_all(&out)?;
        measure("our decompressor alone, one thread", || {
            for path in &paths {
                let file = std::io::BufReader::with_capacity(1 << 18, std::fs::File::open(path)?);
                let mut decoder = flate2::bufread::MultiGzDecoder::new(file);
                std::io::copy(&mut decoder, &mut std::io::sink())?;
            }
            Ok(())
        })?;
        for parallelism in [1, 4] {
            let store = tempfile::tempdir_in(dir.path())?;
            let images = ImageStore::open(store.path())?;
            let options =
                PullOptions { parallelism, docker_config: None, ..PullOptions::default() };
            measure(&format!("pull and unpack, layers at once: {parallelism}"), || {
                Ok(images.pull(&server.name("big:v1"), &options, &Silent)?)
            })?;
        }
    }
    Ok(())
}
