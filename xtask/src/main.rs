//! Checks of the repository itself. The floors of the architecture are checked by `tests/floors.rs`.
fn main() {}
