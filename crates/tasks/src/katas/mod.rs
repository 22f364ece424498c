//! The katas: small repositories of everyday functions, written by hand.
//!
//! They make up the task set `transfer`: longer, and of other styles than what the grammar of the
//! generated set can say (classes, recursion, loops with state, text), so they show how far a policy
//! gets on code unlike that of its training. Their text lies in `katas/` beside the crate's sources
//! and is part of the program; `katas/README.md` says how to add one.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::validate::EmbeddedRepo;

/// A kata's embedded text is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error(
    "kata {name}: examples.json is not a list of examples ({source}); mend crates/tasks/katas/{name}/examples.json and build again"
)]
pub struct KataError {
    /// Name of the kata.
    pub name: &'static str,
    /// What the parser says, with line and column.
    pub source: serde_json::Error,
}

/// All katas, sorted by name.
///
/// `name` is the name of the directory in `katas/`. `files` are the modules and a `README.md`, all
/// in the root, never the examples. Every example has its `expected` value; they are grouped by
/// function in the order of the source.
///
/// # Errors
/// When the embedded examples of a kata cannot be read; the crate's tests rule this out.
pub fn all() -> Result<Vec<EmbeddedRepo>, KataError> {
    EMBEDDED.iter().map(load).collect()
}

fn load(text: &Embedded) -> Result<EmbeddedRepo, KataError> {
    let examples = serde_json::from_str(text.examples)
        .map_err(|source| KataError { name: text.name, source })?;
    let mut files: BTreeMap<String, String> =
        text.modules.iter().map(|&(path, source)| (path.to_owned(), source.to_owned())).collect();
    files.insert("README.md".to_owned(), text.readme.to_owned());
    Ok(EmbeddedRepo { name: text.name.to_owned(), files, examples })
}

/// A kata as the compiler embeds it.
struct Embedded {
    name: &'static str,
    readme: &'static str,
    /// Text of `examples.json`.
    examples: &'static str,
    /// File name and source.
    modules: &'static [(&'static str, &'static str)],
}

/// Embeds the directories of `katas/`: name of the directory, and its modules without `.py`.
macro_rules! embed {
    ($($name:literal: [$($module:literal),+];)+) => {
        &[$(Embedded {
            name: $name,
            readme: include_str!(concat!("../../katas/", $name, "/README.md")),
            examples: include_str!(concat!("../../katas/", $name, "/examples.json")),
            modules: &[$((
                concat!($module, ".py"),
                include_str!(concat!("../../katas/", $name, "/", $module, ".py")),
            )),+],
        }),+]
    };
}

/// Sorted by name. A test compares the list with the directories.
const EMBEDDED: &[Embedded] = embed! {
    "anagram_groups": ["anagrams"];
    "bank_ledger": ["ledger", "statement"];
    "base_conversion": ["bases"];
    "bill_splitting": ["settle", "shares"];
    "bowling_score": ["bowling"];
    "bracket_matching": ["brackets"];
    "caesar_cipher": ["cipher"];
    "calculator": ["calc", "tokens"];
    "calendar_math": ["dates"];
    "change_making": ["coins"];
    "checkout_queue": ["tills"];
    "csv_reader": ["csvline", "table"];
    "dependency_order": ["jobs"];
    "emergency_triage": ["heap", "triage"];
    "friend_circles": ["circles"];
    "game_of_life": ["life"];
    "grading_curve": ["grades"];
    "interval_merging": ["intervals"];
    "inventory": ["orders", "stock"];
    "ip_addresses": ["ipv4", "routes"];
    "isbn_check": ["isbn"];
    "key_value_config": ["config"];
    "league_table": ["league"];
    "list_diff": ["difflist"];
    "loan_schedule": ["loan"];
    "lru_cache": ["cache", "replay"];
    "luhn_check": ["luhn"];
    "markdown_outline": ["headings", "outline"];
    "matrix_ops": ["matrix"];
    "maze_solver": ["grid", "solver"];
    "morse_code": ["morse"];
    "moving_average": ["smoothing"];
    "number_words": ["spell"];
    "parking_meter": ["meter"];
    "path_normalizer": ["paths"];
    "payday_planner": ["payday", "weekday"];
    "phone_numbers": ["phone"];
    "playlist_rotation": ["playlist"];
    "poker_hands": ["cards", "ranking"];
    "prefix_trie": ["complete", "trie"];
    "query_string": ["query"];
    "rational_numbers": ["display", "ratio"];
    "robot_walk": ["robot"];
    "roman_numerals": ["roman"];
    "run_length": ["rle"];
    "seat_allocation": ["divisors", "election", "remainders"];
    "shopping_cart": ["cart", "discounts", "receipt"];
    "slug_maker": ["slugs"];
    "sorted_search": ["search"];
    "spreadsheet_cells": ["cells"];
    "sudoku_checker": ["sudoku"];
    "tax_brackets": ["household", "rates"];
    "temperature_log": ["climate"];
    "template_rendering": ["filters", "render"];
    "text_histogram": ["buckets", "chart"];
    "text_wrap": ["align", "wrap"];
    "tic_tac_toe": ["board"];
    "time_durations": ["duration"];
    "unit_conversion": ["recipe", "units"];
    "vending_machine": ["machine"];
    "version_compare": ["versions"];
    "word_count": ["words"];
};
