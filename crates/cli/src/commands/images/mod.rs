//! `patchwright images`: container images without a daemon.

mod progress;

use std::fmt::Write as _;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use patchwright_images::{
    Credentials, GcReport, Image, ImageError, ImageStore, ImageSummary, LoadOptions, PullOptions,
    default_dir,
};
use serde::Serialize;

use crate::args::{
    ImagesCommand, ImagesGcArgs, ImagesListArgs, ImagesLoadArgs, ImagesPullArgs, ImagesRemoveArgs,
    StoreArgs,
};
use crate::error::CliError;
use crate::{numbers, output, signals, table};

pub use progress::PullProgress;

/// Bytes of a password at most.
const MAX_PASSWORD: u64 = 64 << 10;

/// Does what was asked.
pub fn dispatch(command: &ImagesCommand) -> Result<ExitCode, CliError> {
    match command {
        ImagesCommand::List(args) => list(args),
        ImagesCommand::Pull(args) => pull(args),
        ImagesCommand::Load(args) => load(args),
        ImagesCommand::Rm(args) => remove(args),
        ImagesCommand::Gc(args) => gc(args),
    }
}

/// Opens the store of a directory, or the user's.
pub fn open_store(dir: Option<&std::path::Path>) -> Result<ImageStore, CliError> {
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => default_dir().ok_or_else(|| {
            CliError::usage("no home directory to keep images in: name one with --store DIR")
        })?,
    };
    Ok(ImageStore::open(dir)?)
}

#[derive(Serialize)]
struct List<'a> {
    schema_version: u32,
    images: &'a [ImageSummary],
}

fn list(args: &ImagesListArgs) -> Result<ExitCode, CliError> {
    let images = open_store(args.store.store.as_deref())?.list()?;
    if args.store.json {
        output::json(&List { schema_version: 1, images: &images })?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = images.iter().flat_map(|image| {
        let names = match image.references.as_slice() {
            [] => vec!["<none>".to_owned()],
            names => names.to_vec(),
        };
        names.into_iter().map(|name| {
            let state = match (image.complete, image.in_use) {
                (true, true) => "in use",
                (true, false) => "",
                (false, true) => "being pulled",
                (false, false) => "incomplete",
            };
            let id = image.id.hex();
            vec![
                name,
                id[..12].to_owned(),
                image.num_layers.to_string(),
                size(image.bytes),
                ago(image.last_used),
                state.to_owned(),
            ]
        })
    });
    let header = ["Image", "Id", "Layers", "Size", "Used", ""];
    output::data(&table::table(&header, &[2, 3, 4], rows))?;
    Ok(ExitCode::SUCCESS)
}

/// What `--json` says of an image that came in.
#[derive(Serialize)]
struct Loaded {
    reference: String,
    id: String,
    layers: Vec<String>,
    bytes: u64,
}

#[derive(Serialize)]
struct AllLoaded {
    schema_version: u32,
    images: Vec<Loaded>,
}

fn show(images: &[Image], args: &StoreArgs) -> Result<(), CliError> {
    if !args.json {
        return images.iter().try_for_each(|image| {
            let (id, layers) = (image.id().hex(), image.layers().len());
            let line = format!(
                "{}  {}  {layers} layers  {}\n",
                image.reference(),
                &id[..12],
                size(image.bytes())
            );
            output::data(&line)
        });
    }
    let loaded = |image: &Image| Loaded {
        reference: image.reference().to_owned(),
        id: image.id().to_string(),
        layers: image.layers().iter().map(|layer| layer.display().to_string()).collect(),
        bytes: image.bytes(),
    };
    let images = images.iter().map(loaded).collect();
    output::json(&AllLoaded { schema_version: 1, images })
}

fn pull(args: &ImagesPullArgs) -> Result<ExitCode, CliError> {
    let mut options = PullOptions {
        allow_http: args.allow_http,
        parallelism: args.jobs.clamp(1, 64),
        ..PullOptions::default()
    };
    if let Some(username) = &args.username {
        let username = username.clone();
        options.credentials = Some(Credentials { username, password: password()? });
    }
    if let Some(platform) = &args.platform {
        options.platform = platform_of(platform)?;
    }
    let store = open_store(args.store.store.as_deref())?;
    let images: Vec<Image> = with_progress(|progress| {
        args.references.iter().map(|name| store.pull(name, &options, progress)).collect()
    })?;
    show(&images, &args.store)?;
    Ok(ExitCode::SUCCESS)
}

fn load(args: &ImagesLoadArgs) -> Result<ExitCode, CliError> {
    let mut options = LoadOptions { reference: args.tag.clone(), ..LoadOptions::default() };
    if let Some(platform) = &args.platform {
        options.platform = platform_of(platform)?;
    }
    if !args.path.exists() {
        return Err(CliError::usage(format!("{}: no such file", args.path.display())));
    }
    let store = open_store(args.store.store.as_deref())?;
    let images = with_progress(|progress| store.load(&args.path, &options, progress))?;
    show(&images, &args.store)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows progress meanwhile, and stops on Ctrl-C.
fn with_progress<T>(
    work: impl FnOnce(&PullProgress) -> Result<T, ImageError>,
) -> Result<T, CliError> {
    let progress = Arc::new(PullProgress::to_stderr());
    let token = {
        let progress = Arc::clone(&progress);
        signals::cancel_token(move || progress.say("Stopping; the next pull goes on from here."))?
    };
    progress.stop_with(token);
    let done = work(&progress);
    progress.finish();
    Ok(done?)
}

#[derive(Serialize)]
struct Removed<'a> {
    schema_version: u32,
    #[serde(flatten)]
    report: &'a GcReport,
}

fn tell(report: &GcReport, json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&Removed { schema_version: 1, report });
    }
    let mut text = format!(
        "removed {} images, {} layers, {} interrupted downloads: {} freed; {} kept",
        report.removed_images.len(),
        report.removed_layers,
        report.removed_downloads,
        size(report.freed_bytes),
        size(report.kept_bytes),
    );
    if report.in_use > 0 {
        let _ = write!(text, ", {} images in use", report.in_use);
    }
    output::data(&(text + "\n"))
}

fn remove(args: &ImagesRemoveArgs) -> Result<ExitCode, CliError> {
    let store = open_store(args.store.store.as_deref())?;
    let mut all = GcReport::default();
    for reference in &args.references {
        let report = store.remove(reference)?;
        all.removed_images.extend(report.removed_images);
        all.removed_layers += report.removed_layers;
        all.removed_downloads += report.removed_downloads;
        all.freed_bytes += report.freed_bytes;
        (all.kept_bytes, all.in_use) = (report.kept_bytes, report.in_use);
    }
    tell(&all, args.store.json)?;
    Ok(ExitCode::SUCCESS)
}

fn gc(args: &ImagesGcArgs) -> Result<ExitCode, CliError> {
    let report = open_store(args.store.store.as_deref())?.gc(args.keep_bytes)?;
    tell(&report, args.store.json)?;
    Ok(ExitCode::SUCCESS)
}

fn platform_of(text: &str) -> Result<(String, String), CliError> {
    match text.split_once('/') {
        Some((os, arch)) if !os.is_empty() && !arch.is_empty() => {
            // A variant is part of no choice that is made here.
            let arch = arch.split('/').next().unwrap_or(arch);
            Ok((os.to_owned(), arch.to_owned()))
        }
        _ => Err(CliError::usage(format!("--platform {text}: expected OS/ARCH, as linux/amd64"))),
    }
}

fn password() -> Result<String, CliError> {
    let failed = |error| CliError::failed(format!("standard input: {error}"));
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut text).map_err(failed)?;
    let password = text.trim_end_matches(['\n', '\r']).to_owned();
    if password.is_empty() {
        return Err(CliError::usage("--password-stdin: standard input is empty"));
    }
    Ok(password)
}

/// `1.2 GB`.
fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// How long ago a second since 1970 was.
fn ago(seconds: u64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let since = SystemTime::now().duration_since(then).unwrap_or_default();
    if since.as_secs() < 60 { "now".to_owned() } else { numbers::about(since) + " ago" }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Cancelled => Self::Interrupted,
            ImageError::Reference { .. } | ImageError::Unknown { .. } => Self::usage(error),
            other => Self::failed(other),
        }
    }
}
