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
