//! Reading recipes: TOML, `key=value` overrides, and errors that name the nearest right key.

use std::path::Path;

use serde::Deserialize;
use toml::Value;

use super::Recipe;

/// The recipes that come with the program: name and text.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("embedded", include_str!("../../../../recipes/embedded.toml")),
    ("smoke", include_str!("../../../../recipes/smoke.toml")),
    ("swe-rebench", include_str!("../../../../recipes/swe-rebench.toml")),
];

/// A recipe that cannot be used. The text says where, what and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a shipped recipe nor a file.
    #[error("there is no recipe {name:?}{hint}; shipped are {}", names())]
    NotFound {
        /// What was asked for.
        name: String,
        /// A near name, or the reason why the file could not be read.
        hint: String,
    },
    /// The text is not valid TOML, or a key or value is wrong.
    #[error("{place}: {reason}")]
    Invalid {
        /// File and line, or the override.
        place: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Values that contradict one another or that this program cannot honour.
    #[error("recipe {name}: {key}: {reason}")]
    Refused {
        /// The recipe's name.
        name: String,
        /// The key.
        key: String,
        /// Why, and what to do.
        reason: String,
    },
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

impl Recipe {
    /// Reads a shipped recipe by name, or a file by path, and puts overrides such as
    /// `rl.0.lr=1e-3` on top. A value is read as TOML, and as a bare string where it is none.
    /// The result is checked ([`Recipe::check`]).
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn load(name_or_path: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(text, name, overrides);
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path).map_err(|error| RecipeError::NotFound {
            name: name_or_path.to_owned(),
            hint: match nearest(name_or_path, BUILT_IN.iter().map(|(name, _)| *name)) {
                Some(near) if !path.exists() => format!(", did you mean {near:?}?"),
                _ => format!(" ({error})"),
            },
        })?;
        Self::parse(&text, name_or_path, overrides)
    }

    /// Reads a recipe's text; `place` names it in errors.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn parse(text: &str, place: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let recipe = parse_text(text, place)?;
        let recipe = if overrides.is_empty() {
            recipe
        } else {
            let mut document = Value::try_from(&recipe).map_err(|error| invalid(place, error))?;
            for text in overrides {
                document = apply_override(document, text)?;
            }
            Self::deserialize(document).map_err(|error| invalid(place, error.message()))?
        };
        recipe.check()?;
        Ok(recipe)
    }
}

fn invalid(place: &str, reason: impl std::fmt::Display) -> RecipeError {
    RecipeError::Invalid { place: place.to_owned(), reason: reason.to_string() }
}

fn parse_text(text: &str, place: &str) -> Result<Recipe, RecipeError> {
    let at = |error: &toml::de::Error| match error.span() {
        Some(span) => {
            let line = text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count() + 1;
            format!("{place}:{line}")
        }
        None => place.to_owned(),
    };
    let deserializer =
        toml::Deserializer::parse(text).map_err(|error| invalid(&at(&error), error.message()))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        invalid(&at(&inner), describe(&path, inner.message()))
    })
}

/// Sets one dotted key. The whole document is read again after each, so that the error names the
/// override that is wrong.
fn apply_override(mut document: Value, text: &str) -> Result<Value, RecipeError> {
    let place = format!("--set {text}");
    let (key, raw) = text
        .split_once('=')
        .ok_or_else(|| invalid(&place, "expected key=value, such as run.seed=1"))?;
    let (key, raw) = (key.trim(), raw.trim());
    let value = parse_value(raw);
    let mut node = &mut document;
    let mut seen = String::new();
    for part in key.split('.') {
        node = match node {
            Value::Table(table) => {
                let keys: Vec<String> = table.keys().cloned().collect();
                table.get_mut(part).ok_or_else(|| {
                    invalid(&place, unknown(&seen, part, keys.iter().map(String::as_str)))
                })?
            }
            Value::Array(items) => {
                let count = items.len();
                part.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(
                    || invalid(&place, format!("{seen} has {count} entries, counted from 0")),
                )?
            }
            _ => return Err(invalid(&place, format!("{seen} is a value, not a section"))),
        };
        if !seen.is_empty() {
            seen.push('.');
        }
        seen.push_str(part);
    }
    *node = value;
    serde_path_to_error::deserialize::<_, Recipe>(document.clone()).map_err(|error| {
        let path = error.path().to_string();
        invalid(&place, describe(&path, error.inner().message()))
    })?;
    Ok(document)
}

fn parse_value(raw: &str) -> Value {
    toml::from_str::<toml::Table>(&format!("value = {raw}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(raw.to_owned()))
}

/// Rewrites serde's message: the key's full path, and the nearest right key for an unknown one.
fn describe(path: &str, message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        let path = if path == "." { "the document" } else { path };
        return format!("{path}: {message}");
    };
    let mut quoted = rest.split('`');
    let field = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    let section = path.strip_suffix(field).unwrap_or(path).trim_end_matches('.');
    unknown(section, field, known.into_iter())
}

fn unknown<'a>(section: &str, field: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let key = if section.is_empty() { field.to_owned() } else { format!("{section}.{field}") };
    let advice = match nearest(field, known.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    };
    format!("unknown key {key}: {advice}")
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::{BUILT_IN, Recipe};

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse(text, "my.toml", &overrides).expect_err("must be refused").to_string()
    }

    #[test]
    fn shipped_recipes_load() {
        for (name, _) in BUILT_IN {
            let recipe = Recipe::load(name, &[]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(recipe.run.name, name);
        }
    }

    /// The default recipe names every key, so that it is the documentation of all of them.
    #[test]
    fn embedded_recipe_names_every_key() {
        fn keys(prefix: &str, value: &toml::Value, out: &mut Vec<String>) {
            match value {
                toml::Value::Table(table) => {
                    for (key, value) in table {
                        keys(&format!("{prefix}.{key}"), value, out);
                    }
                }
                toml::Value::Array(items) => {
                    for item in items {
                        keys(&format!("{prefix}[]"), item, out);
                    }
                }
                _ => out.push(prefix.to_owned()),
            }
        }
        let recipe = Recipe::load("embedded", &[]).unwrap();
        let (mut all, mut named) = (Vec::new(), Vec::new());
        keys("", &toml::Value::try_from(&recipe).unwrap(), &mut all);
        keys("", &toml::from_str(BUILT_IN[0].1).unwrap(), &mut named);
        all.sort();
        named.sort();
        assert_eq!(all, named);
    }

    /// What a recipe leaves out is as in the default recipe.
    #[test]
    fn defaults_are_the_embedded_recipe() {
        let mut recipe = Recipe::load("embedded", &[]).unwrap();
        assert_eq!(recipe.rl[0], crate::recipe::RlStageRecipe::default());
        recipe.rl.clear();
        assert_eq!(recipe, Recipe::default());
    }

    #[test]
    fn unknown_keys_name_line_and_nearest() {
        assert_eq!(
            error("[run]\nseed = 1\nnmae = \"x\"\n", &[]),
            "my.toml:3: unknown key run.nmae: did you mean \"name\"?"
        );
        assert_eq!(
            error("[rftt]\nlr = 1\n", &[]),
            "my.toml:1: unknown key rftt: did you mean \"rft\"?"
        );
        assert!(
            error("[[rl]]\nzzz = 1\n", &[])
                .starts_with("my.toml:2: unknown key rl[0].zzz: known are")
        );
    }

    #[test]
    fn wrong_types_name_key_and_line() {
        let text = error("[run]\nname = \"a\"\nseed = \"one\"\n", &[]);
        assert!(text.starts_with("my.toml:3: run.seed: invalid type: string \"one\""), "{text}");
        assert!(error("[run\n", &[]).starts_with("my.toml:1"));
    }

    #[test]
    fn overrides_reach_every_depth() {
        let recipe = Recipe::load(
            "embedded",
            &[
                "rl.0.lr=2e-3".into(),
                "run.name=mine".into(),
                "tasks.held-out.num_instances=7".into(),
            ],
        )
        .unwrap();
        assert!((recipe.rl[0].lr - 2e-3).abs() < 1e-9);
        assert_eq!(recipe.run.name, "mine");
        assert_eq!(recipe.tasks.held_out.num_instances, 7);
    }

    #[test]
    fn wrong_overrides_are_explained() {
        assert_eq!(
            error("[[rl]]\n", &["rl.0.lrr=1"]),
            "--set rl.0.lrr=1: unknown key rl.0.lrr: did you mean \"lr\"?"
        );
        assert_eq!(
            error("[[rl]]\n", &["rl.3.lr=1"]),
            "--set rl.3.lr=1: rl has 1 entries, counted from 0"
        );
        assert!(error("", &["run.seed=x"]).starts_with("--set run.seed=x: run.seed: invalid type"));
        assert!(error("", &["seed"]).contains("expected key=value"));
        assert_eq!(
            error("", &["run.seed.x=1"]),
            "--set run.seed.x=1: run.seed is a value, not a section"
        );
    }

    #[test]
    fn unknown_recipes_name_the_nearest() {
        let text = Recipe::load("embeded", &[]).unwrap_err().to_string();
        assert!(text.contains("did you mean \"embedded\"?"), "{text}");
    }
}
