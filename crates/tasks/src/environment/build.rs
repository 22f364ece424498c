//! Directories of installed packages, built once and found again by what was asked for.

use std::path::{Path, PathBuf};

use super::pip::{Pip, same_package};
use super::{EnvironmentError, Watch, io, key, requirement_name};

/// Raised whenever the same request would give another directory.
const VERSION: &str = "1";

/// What a distribution says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `Name`.
    pub name: String,
    /// `Version`.
    pub version: String,
    /// `Requires-Dist`, each as it stands.
    pub requires: Vec<String>,
    /// `Summary`.
    pub summary: String,
    /// The file it was read from: `PKG-INFO`, or `METADATA` of an installed distribution.
    pub path: PathBuf,
}

/// What an environment is made of.
#[derive(Debug, Clone, Default)]
pub struct EnvironmentSpec {
    /// The package under test: never installed, even where others require it.
    pub package: String,
    /// Requirements, as pip reads them.
    pub requirements: Vec<String>,
    /// Its own metadata is added, so that it can be asked for its version, where its sources do not
    /// have it in a form that Python finds.
    pub metadata: Option<Metadata>,
}

/// Installed packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The directory to mount; below a directory named by what it was made of.
    pub site_packages: PathBuf,
    /// What was asked for.
    pub requested: Vec<String>,
    /// What is there, as `name==version`, sorted.
    pub locked: Vec<String>,
}

impl Metadata {
    /// Reads the metadata of an unpacked source distribution: `PKG-INFO`, and setuptools'
    /// `requires.txt` where the former is too old to name requirements. Nothing is built.
    ///
    /// # Errors
    /// [`EnvironmentError::Sdist`] without a `PKG-INFO`.
    pub fn of_source(dir: &Path) -> Result<Self, EnvironmentError> {
        let file = dir.join("PKG-INFO");
        let bytes = std::fs::read(&file).map_err(|_| {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            EnvironmentError::Sdist(format!("{name}: it has no PKG-INFO"))
        })?;
        // Descriptions may be in any encoding.
        let mut metadata = Self { path: file, ..parse(&String::from_utf8_lossy(&bytes)) };
        if metadata.requires.is_empty()
            && let Some(egg_info) = egg_info(dir)
        {
            let requires = std::fs::read_to_string(egg_info.join("requires.txt"));
            metadata.requires = egg_requires(&requires.unwrap_or_default());
        }
        Ok(metadata)
    }

    /// The metadata of every distribution in a directory, by name.
    fn read_all(site_packages: &Path) -> Result<Vec<Self>, EnvironmentError> {
        let entries =
            std::fs::read_dir(site_packages).map_err(|e| io("reading", site_packages, e))?;
        let mut all = Vec::new();
        for entry in entries {
            let dist_info = entry.map_err(|e| io("reading", site_packages, e))?.path();
            if dist_info.extension().is_none_or(|e| e != "dist-info") {
                continue;
            }
            let file = dist_info.join("METADATA");
            // Descriptions may be in any encoding.
            let bytes = std::fs::read(&file).map_err(|e| io("reading", &file, e))?;
            all.push(Self { path: file, ..parse(&String::from_utf8_lossy(&bytes)) });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

/// setuptools' own metadata, at the top or in `src`.
fn egg_info(dir: &Path) -> Option<PathBuf> {
    [dir.to_owned(), dir.join("src")].into_iter().find_map(|dir| {
        let mut entries = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        entries.find(|path| path.extension().is_some_and(|e| e == "egg-info"))
    })
}

/// `requires.txt` as `Requires-Dist` fields: requirements below headings `[extra:marker]`.
fn egg_requires(text: &str) -> Vec<String> {
    let mut requires = Vec::new();
    let mut marker = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(heading) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let (extra, condition) = heading.split_once(':').unwrap_or((heading, ""));
            let mut parts = Vec::new();
            if !condition.is_empty() {
                parts.push(format!("({condition})"));
            }
            if !extra.is_empty() {
                parts.push(format!("extra == \"{extra}\""));
            }
            marker = parts.join(" and ");
        } else if marker.is_empty() {
            requires.push(line.to_owned());
        } else {
            requires.push(format!("{line} ; {marker}"));
        }
    }
    requires
}

fn parse(text: &str) -> Metadata {
    let mut metadata = Metadata::default();
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let Some((field, value)) = line.split_once(':') else { continue };
        let value = value.trim().to_owned();
        match field {
            "Name" => metadata.name = value,
            "Version" => metadata.version = value,
            "Summary" => metadata.summary = value,
            "Requires-Dist" => metadata.requires.push(value),
            _ => {}
        }
    }
    metadata
}

impl Environment {
    /// Finds or builds an environment below `cache_dir`. Two builds of one environment at the same
    /// time are harmless: the first that ends is kept.
    ///
    /// # Errors
    /// As [`Pip::run`].
    pub fn build(
        pip: &Pip,
        spec: &EnvironmentSpec,
        cache_dir: &Path,
        watch: &dyn Watch,
    ) -> Result<Self, EnvironmentError> {
        let mut requested: Vec<String> = spec
            .requirements
            .iter()
            .filter(|r| !same_package(&requirement_name(r), &spec.package))
            .cloned()
            .collect();
        requested.sort();
        requested.dedup();
        let added = spec.metadata.as_ref().filter(|m| needs_dist_info(m));
        let of = added.map(|m| format!("{} {}", m.name, m.version)).unwrap_or_default();
        let mut parts = vec![VERSION, &pip.python_version, std::env::consts::ARCH, &of];
        parts.extend(requested.iter().map(String::as_str));
        let place = cache_dir.join(key(&parts));
        let site_packages = place.join("site-packages");
        if !place.is_dir() {
            std::fs::create_dir_all(cache_dir).map_err(|e| io("making", cache_dir, e))?;
            let part = tempfile::tempdir_in(cache_dir)
                .map_err(|e| io("making a directory in", cache_dir, e))?;
            install(pip, spec, &requested, part.path(), watch)?;
            keep(part, &place)?;
        }
        let file = place.join("requirements.txt");
        let text = std::fs::read_to_string(&file).map_err(|e| io("reading", &file, e))?;
        let locked = text.lines().map(str::to_owned).collect();
        let site_packages =
            std::path::absolute(&site_packages).map_err(|e| io("finding", &site_packages, e))?;
        Ok(Self { site_packages, requested, locked })
    }
}

fn install(
    pip: &Pip,
    spec: &EnvironmentSpec,
    requested: &[String],
    part: &Path,
    watch: &dyn Watch,
) -> Result<(), EnvironmentError> {
    let site_packages = part.join("site-packages");
    let list = part.join("requested.txt");
    std::fs::write(&list, requested.join("\n") + "\n").map_err(|e| io("writing", &list, e))?;
    let (target, list) = (site_packages.to_string_lossy(), list.to_string_lossy());
    pip.run(&["install", "--no-compile", "--target", &target, "--requirement", &list], watch)?;
    let mut locked = Vec::new();
    for metadata in Metadata::read_all(&site_packages)? {
        if same_package(&metadata.name, &spec.package) {
            // Another requirement brought it; with it would come the fix.
            let dist_info = metadata.path.parent().unwrap_or(&site_packages);
            remove(&site_packages, dist_info)?;
        } else {
            locked.push(format!("{}=={}", metadata.name, metadata.version));
        }
    }
    locked.sort_by_key(|line| line.to_lowercase());
    if let Some(metadata) = spec.metadata.as_ref().filter(|m| needs_dist_info(m)) {
        let name = metadata.name.replace('-', "_");
        let copy = site_packages.join(format!("{name}-{}.dist-info", metadata.version));
        std::fs::create_dir_all(&copy).map_err(|e| io("making", &copy, e))?;
        std::fs::copy(&metadata.path, copy.join("METADATA"))
            .map_err(|e| io("copying", &metadata.path, e))?;
    }
    let file = part.join("requirements.txt");
    std::fs::write(&file, locked.join("\n") + "\n").map_err(|e| io("writing", &file, e))
}

/// setuptools leaves metadata in its source distributions that Python finds; others do not.
fn needs_dist_info(metadata: &Metadata) -> bool {
    metadata.path.parent().is_some_and(|dir| egg_info(dir).is_none())
}

/// Removes an installed distribution by its list of files.
fn remove(site_packages: &Path, dist_info: &Path) -> Result<(), EnvironmentError> {
    let record = dist_info.join("RECORD");
    let text = std::fs::read_to_string(&record).map_err(|e| io("reading", &record, e))?;
    for line in text.lines() {
        // A path with a comma is quoted; both quotes and the rest are cut off.
        let path = match line.strip_prefix('"') {
            Some(rest) => rest.split('"').next().unwrap_or_default(),
            None => line.split(',').next().unwrap_or_default(),
        };
        let plain = !path.is_empty() && !path.starts_with('/') && !path.contains("..");
        if plain && site_packages.join(path).is_file() {
            let file = site_packages.join(path);
            std::fs::remove_file(&file).map_err(|e| io("removing", &file, e))?;
        }
    }
    std::fs::remove_dir_all(dist_info).map_err(|e| io("removing", dist_info, e))
}

/// Moves a finished directory to its place; another worker's, if it was first, stays.
fn keep(part: tempfile::TempDir, place: &Path) -> Result<(), EnvironmentError> {
    use std::os::unix::fs::PermissionsExt as _;
    let kept = part.keep();
    // Temporary directories are the owner's alone; a sandbox's payload is somebody else.
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&kept, mode).map_err(|e| io("opening", &kept, e))?;
    std::fs::rename(&kept, place).or_else(|error| {
        let _ = std::fs::remove_dir_all(&kept);
        if place.is_dir() { Ok(()) } else { Err(io("moving", place, error)) }
    })
}

#[cfg(test)]
mod tests {
    use super::{egg_requires, parse};

    #[test]
    fn requirements_of_setuptools_have_their_markers() {
        let text = "six\n\n[test]\npytest>=3\n\n[:python_version < \"3.8\"]\ntyping\n\n\
                    [test:os_name == \"nt\"]\nwin\n";
        assert_eq!(
            egg_requires(text),
            [
                "six",
                "pytest>=3 ; extra == \"test\"",
                "typing ; (python_version < \"3.8\")",
                "win ; (os_name == \"nt\") and extra == \"test\"",
            ]
        );
    }

    #[test]
    fn metadata_is_read_up_to_the_description() {
        let text = "Metadata-Version: 2.1\nName: x\nVersion: 1.0\nRequires-Dist: six>=1\n\
                    Requires-Dist: mock ; extra == 'test'\nSummary: a thing: small\n\nName: y\n";
        let metadata = parse(text);
        assert_eq!((metadata.name.as_str(), metadata.version.as_str()), ("x", "1.0"));
        assert_eq!(metadata.requires, ["six>=1", "mock ; extra == 'test'"]);
        assert_eq!(metadata.summary, "a thing: small");
    }
}
