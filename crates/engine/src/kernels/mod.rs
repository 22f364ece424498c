//! Numeric kernels: matrix products ([`gemm`]) and row-wise functions ([`math`]).
//!
//! Every kernel here is *row independent*: a result row is computed from its own inputs by a
//! fixed sequence of operations, whatever other rows are processed by the same call. On that rest
//! both batch independence of the sampler and the bitwise agreement of trainer and sampler.

use std::sync::LazyLock;

pub(crate) mod gemm;
pub(crate) mod math;

/// The instruction set of this machine, detected once.
pub(crate) fn arch() -> pulp::Arch {
    static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);
    *ARCH
}
