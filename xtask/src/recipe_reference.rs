//! `docs/recipe-reference.md`: every key of a recipe, from the docstrings of the structs that read
//! it and the values of the default recipe.

#![expect(clippy::format_push_string, reason = "one page of text")]

use std::collections::BTreeMap;
use std::path::Path;

use syn::{Attribute, Expr, Fields, Item, Lit, Meta, Type};

/// Where the structs and enums of recipes are.
const SOURCES: [&str; 6] = [
    "crates/engine/src",
    "crates/engine/src/kernels",
    "crates/algo/src",
    "crates/tasks/src",
    "crates/tasks/src/filter",
    "crates/train/src/recipe",
];

/// A struct or an enum of the sources.
enum Noun {
    Struct { doc: String, fields: Vec<Field> },
    Enum(Vec<(String, String)>),
}

struct Field {
    key: String,
    ty: String,
    doc: String,
}

/// The whole page.
///
/// # Errors
/// When a source cannot be read, or a key has no docstring or no default.
pub fn render(root: &Path) -> Result<String, String> {
    let nouns = read_nouns(root)?;
    let Some(Noun::Struct { fields: sections, .. }) = nouns.get("Recipe") else {
        return Err("there is no struct Recipe".to_owned());
    };
    let (name, text) = patchwright_train::recipe::BUILT_IN[0];
    let defaults: toml::Value = toml::from_str(text).map_err(|error| format!("{name}: {error}"))?;
    let mut page = String::from(
        "# Recipe reference\n\n\
         Generated from the code by `cargo xtask docs`.\n\n\
         A recipe is a TOML file. Every key has a default, that of the recipe `embedded`, and can \
         be set on the command line with `--set key=value`, such as `--set rl.0.lr=5e-4`. Unknown \
         keys are refused.\n",
    );
    let (sections, keys): (Vec<&Field>, Vec<&Field>) = sections.iter().partition(|field| {
        let ty = field.ty.strip_prefix("Vec<").and_then(|ty| ty.strip_suffix('>'));
        matches!(nouns.get(ty.unwrap_or(&field.ty)), Some(Noun::Struct { .. }))
    });
    page += "\n## Before all sections\n";
    render_keys(&mut page, &nouns, "", &keys, &defaults)?;
    for section in sections {
        render_section(&mut page, &nouns, &section.key, section, &defaults[section.key.as_str()])?;
    }
    Ok(page)
}

fn render_section(
    page: &mut String,
    nouns: &BTreeMap<String, Noun>,
    path: &str,
    section: &Field,
    defaults: &toml::Value,
) -> Result<(), String> {
    let list = section.ty.strip_prefix("Vec<").and_then(|ty| ty.strip_suffix('>'));
    let ty = list.unwrap_or(&section.ty);
    let Some(Noun::Struct { doc, fields }) = nouns.get(ty) else {
        return Err(format!("there is no struct {ty}"));
    };
    // An entry of a list has the defaults of the first.
    let defaults = if list.is_some() { &defaults[0] } else { defaults };
    let heading = if list.is_some() { format!("[[{path}]]") } else { format!("[{path}]") };
    let doc = doc.trim_start_matches(&format!("`{heading}`")).trim_start_matches([':', '.', ' ']);
    // Several sections may share a struct; what sets them apart is said where they stand.
    let about = if doc.is_empty() || path.contains('.') { &section.doc } else { doc };
    *page += &format!("\n## `{heading}`\n\n{}\n", sentence(about));
    let (tables, keys): (Vec<&Field>, Vec<&Field>) =
        fields.iter().partition(|field| matches!(nouns.get(&field.ty), Some(Noun::Struct { .. })));
    render_keys(page, nouns, path, &keys, defaults)?;
    for field in tables {
        let below = format!("{path}.{}", field.key);
        render_section(page, nouns, &below, field, &defaults[field.key.as_str()])?;
    }
    Ok(())
}

/// The table of a section's own keys.
fn render_keys(
    page: &mut String,
    nouns: &BTreeMap<String, Noun>,
    path: &str,
    keys: &[&Field],
    defaults: &toml::Value,
) -> Result<(), String> {
    if !keys.is_empty() {
        *page += "\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n";
    }
    for field in keys {
        let default = defaults
            .get(&field.key)
            .ok_or_else(|| format!("the default recipe does not name {path}.{}", field.key))?;
        if field.doc.is_empty() {
            return Err(format!("{path}.{} has no docstring", field.key));
        }
        let (ty, meaning) = describe(nouns, field)?;
        *page += &format!("| `{}` | {ty} | `{}` | {meaning} |\n", field.key, value(default));
    }
    Ok(())
}

/// A field's type in words and its meaning, with that of each choice.
fn describe(nouns: &BTreeMap<String, Noun>, field: &Field) -> Result<(String, String), String> {
    let ty = match field.ty.as_str() {
        "usize" | "u64" | "u32" => "integer".to_owned(),
        "f32" | "f64" => "number".to_owned(),
        "bool" => "boolean".to_owned(),
        "String" => "text".to_owned(),
        "Vec<String>" => "list of texts".to_owned(),
        other => match nouns.get(other) {
            Some(Noun::Enum(variants)) => {
                let names: Vec<String> =
                    variants.iter().map(|(name, _)| format!("`{name}`")).collect();
                let meanings: Vec<String> =
                    variants.iter().map(|(name, doc)| format!("`{name}`: {doc}")).collect();
                let meaning = format!("{} {}", sentence(&field.doc), meanings.join(" "));
                return Ok((names.join(" or "), cell(&meaning)));
            }
            _ => return Err(format!("{}: the type {other} is not known here", field.key)),
        },
    };
    Ok((ty, cell(&field.doc)))
}

fn value(value: &toml::Value) -> String {
    match value {
        toml::Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => {
            format!("{number:e}")
        }
        other => other.to_string(),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

fn read_nouns(root: &Path) -> Result<BTreeMap<String, Noun>, String> {
    let mut nouns = BTreeMap::new();
    for source in SOURCES {
        let dir = root.join(source);
        let entries = std::fs::read_dir(&dir).map_err(|error| format!("{source}: {error}"))?;
        for entry in entries {
            let path = entry.map_err(|error| format!("{source}: {error}"))?.path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let file =
                syn::parse_file(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            file.items.into_iter().filter_map(noun).for_each(|(name, noun)| {
                nouns.insert(name, noun);
            });
        }
    }
    Ok(nouns)
}

fn noun(item: Item) -> Option<(String, Noun)> {
    match item {
        Item::Struct(item) => {
            let Fields::Named(named) = item.fields else { return None };
            let fields = named.named.iter().filter_map(|field| {
                Some(Field {
                    key: renamed(&field.attrs).unwrap_or(field.ident.as_ref()?.to_string()),
                    ty: type_name(&field.ty),
                    doc: doc(&field.attrs),
                })
            });
            let fields = fields.collect();
            Some((item.ident.to_string(), Noun::Struct { doc: doc(&item.attrs), fields }))
        }
        Item::Enum(item) => {
            let variants = item.variants.iter();
            let variants = variants.map(|v| (snake_case(&v.ident.to_string()), doc(&v.attrs)));
            Some((item.ident.to_string(), Noun::Enum(variants.collect())))
        }
        _ => None,
    }
}

/// The last name of a type's path, with the argument of a list.
fn type_name(ty: &Type) -> String {
    let Type::Path(path) = ty else { return "?".to_owned() };
    let Some(last) = path.path.segments.last() else { return "?".to_owned() };
    match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) => match arguments.args.first() {
            Some(syn::GenericArgument::Type(inner)) => {
                format!("{}<{}>", last.ident, type_name(inner))
            }
            _ => last.ident.to_string(),
        },
        _ => last.ident.to_string(),
    }
}

/// A docstring as one line.
fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// `#[serde(rename = "…")]`.
fn renamed(attributes: &[Attribute]) -> Option<String> {
    let mut name = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        // Other serde attributes are not of interest here.
        let _ = attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("rename") {
                name = Some(meta.value()?.parse::<syn::LitStr>()?.value());
            }
            Ok(())
        });
    }
    name
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
