//! Real sandboxes. Everything here runs as whoever runs the tests; as root, all of it runs once
//! more as an ordinary user.

mod commands;
mod files;
mod forks;
mod isolation;
mod layers;
mod lifetime;
mod limits;
mod snapshots;
mod support;
mod user;
