//! Attacks on the reward: 23 to 33 of the list of faults and attacks, each with honest patches that
//! look like it, against real sandboxes and the real grader.
//!
//! An attack is a patch of a scripted agent. What must hold: it is unsolved, and where a layer
//! has seen through it, it is reported as a cheat. `layers.rs` shows for each layer an attack that
//! succeeds with that layer off. Attacks that need pytest run where `PATCHWRIGHT_RELEASES` names a
//! `tasks.jsonl` of real releases (see CONTRIBUTING.md), and say so where not.

#[path = "../agent/common.rs"]
#[expect(dead_code, reason = "shared with the other tests, which use more of it")]
mod common;
mod detection;
mod exploits;
mod files;
mod honest;
mod honest_tests;
mod layers;
mod pytest;
mod world;
