//! What agents ask of the desk.

use std::sync::Arc;

use patchwright_core::patch::Patch;
use patchwright_serve::gateway::{
    Desk, DeskError, EpisodeReport, EpisodeStatus, Lease, LeaseRequest,
};

use super::{TaskDesk, archive};
use crate::episodes::End;
use crate::images::runs_in_image;

impl Desk for TaskDesk {
    fn lease(&self, request: LeaseRequest) -> Result<Lease, DeskError> {
        let job = self.take_job()?;
        self.begin(job, request)
    }

    fn report(&self, id: &str, key: &str) -> Result<EpisodeReport, DeskError> {
        self.books().report(number(id)?, key)
    }

    fn repository(&self, id: &str, key: &str) -> Result<Vec<u8>, DeskError> {
        let id = number(id)?;
        let task = {
            let books = self.books();
            books.report(id, key)?;
            let leased = books.open.get(&id).ok_or(DeskError::Key)?;
            Arc::clone(&self.tasks[leased.job.task])
        };
        if runs_in_image(&task.instance) {
            let reason = "the repository is inside the task's image: ask for a sandbox";
            return Err(DeskError::Refused(reason.to_owned()));
        }
        archive::archive(&task.repo).map_err(DeskError::Failed)
    }

    fn submit(
        &self,
        id: &str,
        key: &str,
        patch: Option<String>,
    ) -> Result<EpisodeReport, DeskError> {
        let id = number(id)?;
        let episode = {
            let mut books = self.books();
            let standing = books.report(id, key)?;
            if standing.status != EpisodeStatus::Open {
                return Ok(standing);
            }
            let leased = books.open.get_mut(&id).ok_or(DeskError::Key)?;
            check(patch.as_deref(), leased.has_sandbox)?;
            leased.episode.take()
        };
        self.end(id, episode.ok_or(DeskError::Key)?, End::Submitted(patch))
    }
}

/// The number in an episode's name.
fn number(id: &str) -> Result<u64, DeskError> {
    id.parse().map_err(|_| DeskError::Key)
}

/// Refuses a submission that does not fit its episode; the agent may mend it and ask again.
fn check(patch: Option<&str>, has_sandbox: bool) -> Result<(), DeskError> {
    let refused = |reason: String| Err(DeskError::Refused(reason));
    match (patch, has_sandbox) {
        (Some(_), true) => refused(
            "patch: the episode has a sandbox, and what stands in it is graded; submit without one"
                .to_owned(),
        ),
        (None, false) => refused("patch: is missing, and the episode has no sandbox".to_owned()),
        (Some(patch), false) => match Patch::parse(patch) {
            Ok(_) => Ok(()),
            Err(error) => refused(format!("patch: no unified diff: {error}")),
        },
        (None, true) => Ok(()),
    }
}
