//! Random streams that depend on what is drawn, never on when.
//!
//! Every random decision of a run is drawn from a stream named by its place (run seed, stage,
//! iteration, instance, sibling, turn …), so that a resumed run, or one whose rollouts finish in
//! another order, draws the same numbers.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Derives a 64-bit seed from a parent seed and the path of names that leads to the decision.
///
/// Names are length-prefixed, so `["ab", "c"]` and `["a", "bc"]` give different seeds.
pub fn derive_seed(parent: u64, path: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(parent.to_le_bytes());
    for name in path {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
    }
    let digest = hash.finalize();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// The random stream of [`derive_seed`].
pub fn stream(parent: u64, path: &[&str]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(derive_seed(parent, path))
}

#[cfg(test)]
mod tests {
    use super::derive_seed;

    #[test]
    fn names_are_not_concatenated() {
        assert_ne!(derive_seed(1, &["ab", "c"]), derive_seed(1, &["a", "bc"]));
        assert_ne!(derive_seed(1, &["a"]), derive_seed(2, &["a"]));
        assert_eq!(derive_seed(7, &["a", "b"]), derive_seed(7, &["a", "b"]));
    }
}
