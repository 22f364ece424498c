//! What a package says that its tests need.
//!
//! Read, in this order, from: extras of the built metadata and PEP 735 groups called `test`,
//! `tests` or `testing` (`dev` where there is none); `tests_require` of `setup.py`; `deps` of
//! `tox.ini`; requirement files of the usual names. Nothing is ever guessed from an import's name:
//! a package that nobody declared is never installed. Linters, coverage without pytest, builders of
//! documentation and release tools are left out.

use std::collections::BTreeMap;
use std::path::Path;

use super::normalized;

/// Extras and groups that hold the tests' requirements.
const TEST_GROUPS: [&str; 5] = ["test", "tests", "testing", "pytest", "unittest"];
/// Where those are looked for when none of the former is there.
const DEV_GROUPS: [&str; 2] = ["dev", "develop"];
/// Files with requirements of tests.
const FILES: [&str; 12] = [
    "requirements/tests.txt",
    "requirements/test.txt",
    "requirements/testing.txt",
    "requirements-tests.txt",
    "requirements-test.txt",
    "requirements_test.txt",
    "requirements_tests.txt",
    "test-requirements.txt",
    "test_requirements.txt",
    "tests/requirements.txt",
    "dev-requirements.txt",
    "requirements-dev.txt",
];
/// Tools that no test imports.
const TOOLS: [&str; 42] = [
    "tox",
    "nox",
    "mypy",
    "flake8",
    "pylint",
    "black",
    "isort",
    "ruff",
    "pre-commit",
    "sphinx",
    "furo",
    "twine",
    "build",
    "wheel",
    "setuptools",
    "pip",
    "coverage",
    "coveralls",
    "codecov",
    "check-manifest",
    "bump2version",
    "bumpversion",
    "pyright",
    "pytype",
    "bandit",
    "safety",
    "mkdocs",
    "mdx-gh-links",
    "pip-tools",
    "pip-compile-multi",
    "uv",
    "hatch",
    "flit",
    "poetry",
    "types-setuptools",
    "sphinx-rtd-theme",
    "pyroma",
    "zest-releaser",
    "python-semantic-release",
    "mutmut",
    "vulture",
    "zest.releaser",
];

/// The test requirements that a source tree and its metadata declare, without doubles. `requires`
/// are the `Requires-Dist` fields of the built metadata.
pub fn declared_test_requirements(tree: &Path, requires: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let text = |path: &str| std::fs::read_to_string(tree.join(path)).unwrap_or_default();
    let pyproject: toml::Table = text("pyproject.toml").parse().unwrap_or_default();
    for groups in [&TEST_GROUPS[..], &DEV_GROUPS[..]] {
        for group in groups {
            found.extend(extra(requires, group));
            found.extend(dependency_group(&pyproject, group, 0));
        }
        if groups == TEST_GROUPS {
            found.extend(tests_require(&text("setup.py")));
            found.extend(FILES.iter().flat_map(|file| requirement_lines(&text(file))));
            found.extend(tox_deps(tree, &text("tox.ini")));
        }
        if !found.is_empty() {
            break;
        }
    }
    let mut by_name: BTreeMap<String, String> = BTreeMap::new();
    for requirement in found {
        let name = requirement_name(&requirement);
        if name.is_empty() || TOOLS.contains(&name.as_str()) {
            continue;
        }
        by_name.entry(name).or_insert(requirement);
    }
    by_name.into_values().collect()
}

/// The normalised name at the start of a requirement; empty for options, paths and URLs.
pub fn requirement_name(requirement: &str) -> String {
    let text = requirement.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let rest = rest.trim_start();
    let is_url = rest.starts_with(['@', ':', '/', '+']);
    if name.starts_with(['-', '.']) || is_url { String::new() } else { normalized(name) }
}

/// The requirement without versions; extras and markers stay.
pub fn unpinned(requirement: &str) -> String {
    let (head, marker) = requirement.split_once(';').unwrap_or((requirement, ""));
    let end = head.find(['<', '>', '=', '!', '~', '(']).unwrap_or(head.len());
    let name = head[..end].trim();
    if marker.trim().is_empty() { name.to_owned() } else { format!("{name} ; {}", marker.trim()) }
}

/// Whether a requirement is bound to versions.
pub fn is_pinned(requirement: &str) -> bool {
    unpinned(requirement) != requirement.trim()
}

/// Requirements of an extra, whose own marker is made true.
fn extra(requires: &[String], name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for requirement in requires {
        let Some((head, marker)) = requirement.split_once(';') else { continue };
        for quote in ['"', '\''] {
            for space in ["", " "] {
                let condition = format!("extra{space}=={space}{quote}{name}{quote}");
                if marker.contains(&condition) {
                    // True of every interpreter that could run this.
                    let marker = marker.replace(&condition, "python_version >= \"3\"");
                    found.push(format!("{} ;{marker}", head.trim()));
                }
            }
        }
    }
    found
}

fn dependency_group(pyproject: &toml::Table, name: &str, depth: usize) -> Vec<String> {
    let group = pyproject.get("dependency-groups").and_then(|groups| groups.get(name));
    let Some(members) = group.and_then(toml::Value::as_array) else { return Vec::new() };
    let mut found = Vec::new();
    for member in members {
        if let Some(text) = member.as_str() {
            found.push(text.to_owned());
        } else if let Some(other) = member.get("include-group").and_then(toml::Value::as_str)
            && depth < 8
        {
            found.extend(dependency_group(pyproject, other, depth + 1));
        }
    }
    found
}

/// String literals of `tests_require=[…]`.
fn tests_require(setup: &str) -> Vec<String> {
    let Some((_, rest)) = setup.split_once("tests_require") else { return Vec::new() };
    let Some(rest) = rest.trim_start().strip_prefix(['=', '"', '\'']) else { return Vec::new() };
    let Some((_, list)) = rest.split_once('[') else { return Vec::new() };
    let list = list.split(']').next().unwrap_or_default();
    let mut found = Vec::new();
    for quote in ['"', '\''] {
        found.extend(list.split(quote).skip(1).step_by(2).map(str::to_owned));
    }
    found
}

fn requirement_lines(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split(" #").next().unwrap_or_default().trim())
        .map(|line| line.trim_end_matches('\\').trim())
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '-']))
        .map(str::to_owned)
        .collect()
}

/// `deps` of `[testenv]`, with the files that it names.
fn tox_deps(tree: &Path, tox: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_section = false;
    let mut in_deps = false;
    for line in tox.lines() {
        if line.starts_with('[') {
            in_section = line.trim() == "[testenv]";
            in_deps = false;
            continue;
        }
        let starts = !line.starts_with([' ', '\t']) && line.contains('=');
        let value = if starts {
            let (name, value) = line.split_once('=').unwrap_or_default();
            in_deps = in_section && name.trim() == "deps";
            value
        } else {
            line
        };
        let value = value.trim();
        if !in_deps || value.is_empty() || value.starts_with('#') {
            continue;
        }
        if let Some(file) = value.strip_prefix("-r") {
            let file = file.trim().trim_start_matches("{toxinidir}/");
            let plain = !file.starts_with('/') && !file.contains("..");
            if plain && let Ok(text) = std::fs::read_to_string(tree.join(file)) {
                found.extend(requirement_lines(&text));
            }
        } else if !value.starts_with(['-', '{']) {
            // A condition such as `py38: typing-extensions` may not be for this interpreter.
            if value.split_once(": ").is_none() {
                found.push(value.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{declared_test_requirements, requirement_name, unpinned};

    #[test]
    fn names_of_requirements() {
        let cases = [
            ("pytest>=7", "pytest"),
            ("Zope_Interface [x] ; python_version<'3'", "zope-interface"),
            ("-r other.txt", ""),
            ("git+https://host/x", ""),
            ("x @ https://host/x.whl", ""),
            ("./local", ""),
        ];
        for (text, name) in cases {
            assert_eq!(requirement_name(text), name, "{text}");
        }
        assert_eq!(unpinned("a[b]>=1,<2 ; python_version > '3'"), "a[b] ; python_version > '3'");
        assert_eq!(unpinned("a (==1)"), "a");
    }

    #[test]
    fn requirements_are_found_where_packages_declare_them() {
        let dir = tempfile::tempdir().unwrap();
        let check = |files: &[(&str, &str)], requires: &[&str], expected: &[&str]| {
            for (path, text) in files {
                std::fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
                std::fs::write(dir.path().join(path), text).unwrap();
            }
            let requires: Vec<String> = requires.iter().map(ToString::to_string).collect();
            assert_eq!(declared_test_requirements(dir.path(), &requires), expected);
            for (path, _) in files {
                std::fs::remove_file(dir.path().join(path)).unwrap();
            }
        };
        check(
            &[],
            &["six", "mock>=2; extra == 'tests'", "flake8 ; extra == 'tests'"],
            &["mock>=2 ; python_version >= \"3\""],
        );
        check(&[("setup.py", "setup(tests_require=['nose', \"mock\"])")], &[], &["mock", "nose"]);
        check(
            &[(
                "pyproject.toml",
                "[dependency-groups]\ntests = ['pytest<9', {include-group = 'b'}]\nb = ['mock']\n",
            )],
            &[],
            &["mock", "pytest<9"],
        );
        check(
            &[
                ("tox.ini", "[testenv]\ndeps =\n  -r requirements/t.txt\n  pytest\n[x]\ndeps=no\n"),
                ("requirements/t.txt", "# by hand\nattrs==21.4 # why\n-e .\n"),
            ],
            &[],
            &["attrs==21.4", "pytest"],
        );
        check(&[], &["pytest; extra == 'dev'"], &["pytest ; python_version >= \"3\""]);
    }
}
