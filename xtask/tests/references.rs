//! The generated references are what the code says.

#[test]
fn references_are_not_stale() {
    xtask::check_references().unwrap_or_else(|error| panic!("{error}"));
}
