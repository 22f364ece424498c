//! Numeric kernels: matrix products ([`gemm`]), weight gradients ([`outer`]), and row-wise functions
//! ([`math`]).
//!
//! Every kernel here is *row independent*: a result row is computed from its own inputs by a
//! fixed sequence of operations, whatever other rows are processed by the same call. On that rest
//! both batch independence of the sampler and the bitwise agreement of trainer and sampler.

#![expect(clippy::inline_always, reason = "a part that is not inlined loses the instruction set")]

use std::sync::LazyLock;

/// Compiles a function once for each instruction set and calls the best one for this machine.
///
/// A closure given to `Arch::dispatch` would be simpler, but a large one is not inlined into the
/// function that has the instruction set, and then runs (measured) ten times slower.
macro_rules! vectorized {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn inline($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")]
                fn v4($($arg: $ty),*) $(-> $ret)? {
                    inline($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn v3($($arg: $ty),*) $(-> $ret)? {
                    inline($($arg),*)
                }
                match $crate::kernels::arch() {
                    // SAFETY: each `Arch` exists only where its instruction set was detected.
                    pulp::Arch::V4(_) => return unsafe { v4($($arg),*) },
                    // SAFETY: as above.
                    pulp::Arch::V3(_) => return unsafe { v3($($arg),*) },
                    _ => {}
                }
            }
            inline($($arg),*)
        }
    };
}
pub(crate) use vectorized;

pub(crate) mod bf16;
pub(crate) mod blocks;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod outer;
pub(crate) mod skinny;
mod tile;
pub(crate) mod vocabulary;

/// The instruction set of this machine, detected once.
pub(crate) fn arch() -> pulp::Arch {
    static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);
    *ARCH
}
