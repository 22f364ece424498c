//! What commands share: the recipe behind them.

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

/// The recipe of a command that measures models at servers. Servers are named before what is set for
/// them, so that it is not refused; nothing is learned, so any sampler will do. `model` is `URL[#NAME]`,
/// `sampler` as recipes write it.
pub fn recipe_at_server(
    args: &RecipeArgs,
    model: &str,
    sampler: &str,
    api_key_env: Option<&str>,
) -> Result<Recipe, CliError> {
    let is_named = |set: &&String| {
        ["servers.urls=", "sampler=", "trainer="].iter().any(|key| set.starts_with(key))
    };
    if let Some(set) = args.overrides.iter().find(is_named) {
        return Err(CliError::usage(format!(
            "--set {set}: --model and --api say which server is asked and how; leave it out"
        )));
    }
    let url = model.split_once('#').map_or(model, |(url, _)| url);
    let mut overrides = vec!["rft.enabled=false".to_owned(), "rl=[]".to_owned()];
    overrides.extend([format!("sampler={sampler}"), format!("servers.urls=[{url:?}]")]);
    overrides.extend_from_slice(&args.overrides);
    overrides.extend(api_key_env.map(|name| format!("servers.api_key_env={name:?}")));
    load_recipe(args.recipe.as_deref().unwrap_or("embedded"), args.seed, &overrides)
}

impl From<RecipeError> for CliError {
    fn from(error: RecipeError) -> Self {
        Self::usage(error)
    }
}
