//! What `train`, `eval` and `rollout` share: the recipe behind them.

use patchwright_train::recipe::{Recipe, RecipeError};

use crate::args::RecipeArgs;
use crate::error::CliError;

/// A recipe with its overrides; `--seed` comes last.
pub fn load_recipe(
    name: &str,
    seed: Option<u64>,
    overrides: &[String],
) -> Result<Recipe, CliError> {
    let mut overrides = overrides.to_vec();
    overrides.extend(seed.map(|seed| format!("run.seed={seed}")));
    Ok(Recipe::load(name, &overrides)?)
}

/// The recipe of a command that is no training.
pub fn recipe(args: &RecipeArgs, default: &str) -> Result<Recipe, CliError> {
    load_recipe(args.recipe.as_deref().unwrap_or(default), args.seed, &args.overrides)
}

impl From<RecipeError> for CliError {
    fn from(error: RecipeError) -> Self {
        Self::usage(error)
    }
}
