//! Tasks that stand on container images, such as those of SWE-rebench: their root is the image's
//! layers, their repository the image's own `/testbed`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_agent::{TaskRoot, TaskRoots};
use patchwright_core::TaskInstance;
use patchwright_images::{
    Image, ImageError, ImageStore, Progress, PullEvent, PullOptions, Silent, default_dir,
};

use crate::error::TrainError;
use crate::events::CancelToken;

/// Images that are kept from being collected, at most: each costs a file descriptor. More than
/// sandboxes are alive at once.
const MAX_LEASED: usize = 384;

/// Where conda's environments of such images are; the one that the tests need has this name.
const CONDA: [&str; 3] = ["opt/miniconda3", "opt/conda", "root/miniconda3"];
const CONDA_ENVIRONMENT: &str = "testbed";
/// The `PATH` of an image that names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a task runs from its image: it names one, and its repository is neither in the row nor a
/// directory here.
pub fn runs_in_image(task: &TaskInstance) -> bool {
    task.image().is_some() && task.files.is_empty() && !Path::new(&task.repo).is_dir()
}

/// Pulls the images of tasks when they are first needed, and keeps them.
pub struct TaskImages {
    /// Made when first needed: most runs have no images.
    store: Mutex<Option<Arc<ImageStore>>>,
    dir: Option<PathBuf>,
    options: PullOptions,
    held: Mutex<Held>,
}

/// One entry for each image: whoever comes while it is pulled waits for it.
type Slot = Arc<Mutex<Option<Image>>>;

#[derive(Default)]
struct Held {
    slots: HashMap<String, Slot>,
    /// The one used longest ago first.
    order: VecDeque<String>,
}

impl Default for TaskImages {
    /// Over the user's store.
    fn default() -> Self {
        Self::new(default_dir(), PullOptions::default())
    }
}

impl TaskImages {
    /// Over the store in a directory.
    pub fn new(dir: Option<PathBuf>, options: PullOptions) -> Self {
        Self { store: Mutex::default(), dir, options, held: Mutex::default() }
    }

    /// What a task stands on: its image, pulled if it is not here, or the host's system.
    ///
    /// # Errors
    /// [`TrainError::Setup`] naming the image and what is wrong; [`TrainError::Cancelled`].
    pub fn root(
        &self,
        task: &TaskInstance,
        cancel: Option<&CancelToken>,
    ) -> Result<TaskRoot, TrainError> {
        match task.image() {
            Some(reference) if runs_in_image(task) => {
                let image = self.image(reference, cancel).map_err(|error| match error {
                    ImageError::Cancelled => TrainError::Cancelled,
                    other => TrainError::setup(format!("image {reference}"), other.to_string()),
                })?;
                Ok(TaskRoot { root: image.root(), env: environment(&image) })
            }
            _ => Ok(TaskRoot::default()),
        }
    }

    /// [`TaskImages::root`] as graders ask for it.
    pub fn roots(self: &Arc<Self>) -> Arc<TaskRoots> {
        let images = Arc::clone(self);
        Arc::new(move |task: &TaskInstance| {
            images.root(task, None).map_err(|error| error.to_string())
        })
    }

    fn store(&self) -> Result<Arc<ImageStore>, ImageError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = store.as_ref() {
            return Ok(Arc::clone(store));
        }
        let dir =
            self.dir.clone().unwrap_or_else(|| std::env::temp_dir().join("patchwright-images"));
        let opened = Arc::new(ImageStore::open(dir)?);
        *store = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn image(&self, reference: &str, cancel: Option<&CancelToken>) -> Result<Image, ImageError> {
        let slot = self.slot(reference);
        let mut image = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = image.as_ref() {
            return Ok(image.clone());
        }
        let store = self.store()?;
        let found = match store.get(reference)? {
            Some(found) => found,
            None => match cancel {
                Some(cancel) => store.pull(reference, &self.options, &Cancelled(cancel))?,
                None => store.pull(reference, &self.options, &Silent)?,
            },
        };
        *image = Some(found.clone());
        Ok(found)
    }

    fn slot(&self, reference: &str) -> Slot {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.order.retain(|other| other != reference);
        held.order.push_back(reference.to_owned());
        if held.order.len() > MAX_LEASED
            && let Some(oldest) = held.order.pop_front()
        {
            held.slots.remove(&oldest);
        }
        Arc::clone(held.slots.entry(reference.to_owned()).or_default())
    }
}

/// Stops a pull when the run is to stop.
struct Cancelled<'a>(&'a CancelToken);

impl Progress for Cancelled<'_> {
    fn event(&self, _event: &PullEvent) {}

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// The image's environment, with conda's `testbed` activated where there is one: what
/// `conda activate testbed` sets, without a shell.
fn environment(image: &Image) -> BTreeMap<String, String> {
    let mut env = image.config().env.clone();
    let path = env.get("PATH").cloned().unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let found = CONDA.iter().find(|conda| {
        let environment = format!("{conda}/envs/{CONDA_ENVIRONMENT}/bin");
        image.layers().iter().any(|layer| has_dir(layer, &environment))
    });
    if let Some(conda) = found {
        let prefix = format!("/{conda}/envs/{CONDA_ENVIRONMENT}");
        env.insert("PATH".to_owned(), format!("{prefix}/bin:/{conda}/condabin:{path}"));
        env.insert("CONDA_PREFIX".to_owned(), prefix);
        env.insert("CONDA_DEFAULT_ENV".to_owned(), CONDA_ENVIRONMENT.to_owned());
        env.insert("CONDA_SHLVL".to_owned(), "1".to_owned());
    } else {
        env.insert("PATH".to_owned(), path);
    }
    env
}

/// Whether a layer has a directory, without following what the layer links to.
fn has_dir(layer: &Path, path: &str) -> bool {
    let mut at = layer.to_owned();
    path.split('/').all(|name| {
        at.push(name);
        at.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use patchwright_core::{RootFs, TaskInstance};
    use serde_json::json;

    use super::{MAX_LEASED, PullOptions, TaskImages, has_dir, runs_in_image};
    use crate::events::CancelToken;

    fn task(value: &serde_json::Value) -> TaskInstance {
        let mut row = json!({"instance_id": "a", "repo": "org/name", "problem_statement": "",
            "FAIL_TO_PASS": [], "PASS_TO_PASS": []});
        row.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(row).unwrap()
    }

    fn images(dir: &tempfile::TempDir) -> Arc<TaskImages> {
        let options = PullOptions { max_retries: 0, ..PullOptions::default() };
        Arc::new(TaskImages::new(Some(dir.path().to_owned()), options))
    }

    #[test]
    fn an_image_is_for_rows_without_a_repository_here() {
        assert!(runs_in_image(&task(&json!({"image_name": "a/b:c"}))));
        assert!(runs_in_image(&task(&json!({"docker_image": "a/b:c"}))));
        for other in [
            json!({}),
            json!({"image_name": ""}),
            json!({"image_name": "a/b:c", "repo": "/"}),
            json!({"image_name": "a/b:c", "files": {"a.py": ""}}),
        ] {
            assert!(!runs_in_image(&task(&other)), "{other}");
        }
    }

    #[test]
    fn other_rows_stand_on_the_hosts_system() {
        let dir = tempfile::tempdir().unwrap();
        let root = images(&dir).roots()(&task(&json!({}))).unwrap();
        assert_eq!(root.root, RootFs::Host);
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "no store is made");
    }

    #[test]
    fn an_image_that_cannot_be_had_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let images = images(&dir);
        let row = task(&json!({"image_name": "127.0.0.1:1/none:v1"}));
        let error = images.roots()(&row).unwrap_err();
        assert!(error.contains("image 127.0.0.1:1/none:v1"), "{error}");
        let cancel = CancelToken::new();
        cancel.cancel();
        let error = images.root(&row, Some(&cancel)).unwrap_err();
        assert!(matches!(error, crate::TrainError::Cancelled), "{error}");
    }

    #[test]
    fn leases_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let images = images(&dir);
        for index in 0..MAX_LEASED + 10 {
            images.slot(&format!("a:{index}"));
        }
        images.slot("a:20");
        let held = images.held.lock().unwrap();
        assert_eq!((held.slots.len(), held.order.len()), (MAX_LEASED, MAX_LEASED));
        assert!(held.slots.contains_key("a:20") && !held.slots.contains_key("a:9"));
    }

    #[test]
    fn links_of_a_layer_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("l")).unwrap();
        assert!(has_dir(dir.path(), "a/b"));
        assert!(!has_dir(dir.path(), "l/tmp") && !has_dir(dir.path(), "a/c"));
    }
}
