//! The attack suite: hostile commands in real sandboxes, attacks 1 to 22 (23 to 33, on the reward,
//! are in `crates/agent`). A test is named by its number and attack, says what is tried, and what
//! must hold. All of it runs as whoever runs the tests; as root, once more as an ordinary user.
//!
//! `layers` shows that the suite tests something: for each layer of defence, its attack succeeds
//! with that layer switched off. Where the machine cannot run an attack, it is said so; every
//! attack's outcome is a line in `attacks.txt` in the build directory.

mod escape;
mod files;
mod host;
mod layers;
mod lifetime;
mod resources;
mod support;
mod user;
