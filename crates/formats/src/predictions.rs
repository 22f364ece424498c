//! SWE-bench's predictions (`preds.json`, `.jsonl`) and run report.

use std::collections::{BTreeMap, BTreeSet};

use patchwright_core::{FailureClass, Rollout};
use serde_json::{Map, Value, json};

use crate::{FormatError, Origin};

/// One prediction an instance.
///
/// # Errors
/// [`FormatError::Lacking`] when an instance has several rollouts: a prediction is one patch.
pub fn by_instance(rollouts: &[Rollout]) -> Result<BTreeMap<&str, &Rollout>, FormatError> {
    let mut map = BTreeMap::new();
    for rollout in rollouts {
        if map.insert(rollout.instance_id.as_str(), rollout).is_some() {
            return Err(FormatError::Lacking {
                rollout: rollout.instance_id.clone(),
                reason: "there are several rollouts of it, and a prediction is one patch: choose \
                         one run with --sibling N, and of a training run one stage with --stage"
                    .to_owned(),
            });
        }
    }
    Ok(map)
}

fn prediction(rollout: &Rollout, origin: &Origin) -> Value {
    json!({
        "instance_id": rollout.instance_id,
        "model_name_or_path": origin.model_name,
        "model_patch": rollout.patch,
    })
}

/// `preds.json`: predictions by instance.
///
/// # Errors
/// As [`by_instance`].
pub fn object(rollouts: &[Rollout], origin: &Origin) -> Result<Value, FormatError> {
    let map: Map<String, Value> = by_instance(rollouts)?
        .into_iter()
        .map(|(id, rollout)| (id.to_owned(), prediction(rollout, origin)))
        .collect();
    Ok(map.into())
}

/// `.jsonl`: a prediction a line.
///
/// # Errors
/// As [`by_instance`].
pub fn lines(rollouts: &[Rollout], origin: &Origin) -> Result<String, FormatError> {
    let map = by_instance(rollouts)?;
    Ok(map.values().map(|rollout| prediction(rollout, origin).to_string() + "\n").collect())
}

/// A report in the schema (version 2) of SWE-bench's evaluation harness. An empty patch is not
/// completed; a patch without a grade is an error; failures of the infrastructure are told apart.
///
/// # Errors
/// As [`by_instance`].
pub fn report(rollouts: &[Rollout]) -> Result<Value, FormatError> {
    let map = by_instance(rollouts)?;
    let ids = |choose: &dyn Fn(&Rollout) -> bool| -> BTreeSet<&str> {
        map.iter().filter(|(_, rollout)| choose(rollout)).map(|(id, _)| *id).collect()
    };
    let has_patch = |rollout: &Rollout| !rollout.patch.is_empty();
    let completed = ids(&|rollout| has_patch(rollout) && rollout.solved.is_some());
    let resolved = ids(&|rollout| has_patch(rollout) && rollout.solved == Some(true));
    let unresolved = ids(&|rollout| has_patch(rollout) && rollout.solved == Some(false));
    let empty = ids(&|rollout| !has_patch(rollout) && rollout.solved.is_some());
    let errors = ids(&|rollout| rollout.solved.is_none());
    let infrastructure =
        ids(&|rollout| rollout.failure.is_some_and(FailureClass::is_infrastructure));
    let reasons: BTreeMap<&str, &str> = infrastructure
        .iter()
        .filter_map(|id| Some((*id, map.get(id)?.failure_detail.as_deref()?)))
        .collect();
    let submitted: Vec<&str> = map.keys().copied().collect();
    Ok(json!({
        "total_instances": map.len(),
        "submitted_instances": map.len(),
        "completed_instances": completed.len(),
        "resolved_instances": resolved.len(),
        "unresolved_instances": unresolved.len(),
        "infra_failure_instances": infrastructure.len(),
        "ambiguous_failure_instances": 0,
        "empty_patch_instances": empty.len(),
        "error_instances": errors.len(),
        "completed_ids": completed,
        "incomplete_ids": [],
        "empty_patch_ids": empty,
        "submitted_ids": submitted,
        "resolved_ids": resolved,
        "unresolved_ids": unresolved,
        "infra_failure_ids": infrastructure,
        "ambiguous_failure_ids": [],
        "failure_reasons": reasons,
        "error_ids": errors,
        "schema_version": 2,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{lines, object, report};
    use crate::testing::{origin, rollouts};

    #[test]
    fn one_prediction_an_instance() {
        let mut rollouts = rollouts();
        let object = object(&rollouts, &origin()).unwrap();
        assert_eq!(object["owner__repo-1"]["model_patch"], rollouts[0].patch);
        assert_eq!(object["owner__repo-2"]["model_name_or_path"], "org/base");
        assert_eq!(lines(&rollouts, &origin()).unwrap().lines().count(), 2);
        rollouts.push(rollouts[0].clone());
        let error = report(&rollouts).unwrap_err().to_string();
        assert!(error.contains("--sibling"), "{error}");
    }

    #[test]
    fn the_report_counts_every_instance_once() {
        let mut rollouts = rollouts();
        for (id, solved, patch) in [("a", Some(false), "diff"), ("b", Some(false), "")] {
            rollouts.push(patchwright_core::Rollout {
                instance_id: id.to_owned(),
                solved,
                patch: patch.to_owned(),
                ..rollouts[0].clone()
            });
        }
        let report = report(&rollouts).unwrap();
        assert_eq!(report["resolved_ids"], json!(["owner__repo-1"]));
        assert_eq!(report["unresolved_ids"], json!(["a"]));
        assert_eq!(report["empty_patch_ids"], json!(["b"]));
        assert_eq!(report["error_ids"], json!(["owner__repo-2"]));
        assert_eq!(report["failure_reasons"], json!({"owner__repo-2": "disk full"}));
        assert_eq!(report["completed_instances"], 2);
    }
}
