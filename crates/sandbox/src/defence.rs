//! The layers of defence, by name. Every one is always on: only the attack suite, which is built
//! with the feature `attack-tests`, can switch one off, to show that the attack it stands against
//! then succeeds. Without that feature (so in every program) [`has`] is the constant `true`.
//!
//! The same feature gives the suite its set-up faults: a helper ends, or holds still, at the n-th
//! step of its set-up ([`passed`]).

use std::io;

/// One layer of defence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// System calls that are not on the list are refused.
    Seccomp,
    /// Each sandbox sees, and can signal, its own processes alone.
    PidNamespace,
    /// No network but the sandbox's own, which is empty.
    NetNamespace,
    /// The root, the system's directories and read-only mounts cannot be written.
    ReadOnly,
    /// Memory of all processes together is bounded.
    Memory,
    /// The number of processes is bounded.
    Processes,
    /// The size of the writable file system, and the number of its files, are bounded.
    Disk,
    /// Output beyond a bound is thrown away.
    Output,
    /// CPU time is bounded.
    CpuTime,
    /// Wall-clock time is bounded.
    WallTime,
    /// Commands have no capabilities and can gain none.
    Capabilities,
    /// What speaks of the machine in `/proc` is hidden, and `/proc/sys` cannot be written.
    MaskedProc,
    /// No descriptor of the host's comes along.
    Descriptors,
    /// Nothing of the host's environment comes along.
    Environment,
    /// Sandboxes end with the host program.
    ParentDeath,
    /// What a command leaves running ends with it.
    Remains,
}

/// Which layers are in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defences {
    off: u32,
    fault: Fault,
}

/// A fault in the set-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fault {
    /// The step at which it happens, counted from 1 along a line of helper processes; 0: never.
    pub step: u32,
    /// Whether the helper holds still there for this many milliseconds; 0: it dies.
    pub hold_ms: u32,
}

impl Defences {
    /// All layers but these.
    #[cfg(feature = "attack-tests")]
    pub fn without(layers: &[Layer]) -> Self {
        let off = layers.iter().fold(0, |off, layer| off | 1 << *layer as u32);
        Self { off, fault: Fault::default() }
    }

    /// All layers, and a fault.
    #[cfg(feature = "attack-tests")]
    pub fn with_fault(fault: Fault) -> Self {
        Self { off: 0, fault }
    }

    /// Whether the layer is in force.
    pub fn has(self, layer: Layer) -> bool {
        !cfg!(feature = "attack-tests") || self.off & 1 << layer as u32 == 0
    }

    /// As numbers, for the helper.
    pub fn encode(self) -> [u32; 3] {
        [self.off, self.fault.step, self.fault.hold_ms]
    }

    /// Reads the numbers.
    ///
    /// # Errors
    /// For anything but "all on", outside the attack suite.
    pub fn decode(numbers: [u32; 3]) -> io::Result<Self> {
        let [off, step, hold_ms] = numbers;
        if !cfg!(feature = "attack-tests") && numbers != [0; 3] {
            return Err(crate::wire::malformed("layers of defence cannot be switched off"));
        }
        Ok(Self { off, fault: Fault { step, hold_ms } })
    }
}

pub use in_helper::{has, passed, take};

/// The helper's own, which its children inherit.
#[cfg(feature = "attack-tests")]
mod in_helper {
    use super::{Defences, Fault, Layer};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static TAKEN: OnceLock<Defences> = OnceLock::new();
    static STEPS: AtomicU32 = AtomicU32::new(0);

    /// Takes what the host said, once, before any child is forked.
    pub fn take(defences: Defences) {
        let _ = TAKEN.set(defences);
    }

    /// Whether the layer is in force in this helper.
    pub fn has(layer: Layer) -> bool {
        TAKEN.get().is_none_or(|taken| taken.has(layer))
    }

    /// A step of the set-up is done.
    pub fn passed() {
        let Some(Defences { fault: Fault { step, hold_ms }, .. }) = TAKEN.get() else { return };
        if *step == 0 || STEPS.fetch_add(1, Ordering::Relaxed) + 1 != *step {
            return;
        }
        if *hold_ms > 0 {
            let _ = rustix::thread::set_name(HELD);
            std::thread::sleep(std::time::Duration::from_millis(u64::from(*hold_ms)));
        } else {
            // As SIGKILL would end it; PID 1 of a namespace cannot send itself one.
            crate::sys::exit(137);
        }
    }

    /// What a helper is called that holds still.
    const HELD: &std::ffi::CStr = c"pw-held";
}

#[cfg(not(feature = "attack-tests"))]
mod in_helper {
    use super::{Defences, Layer};

    /// Nothing to take: every layer is in force.
    pub const fn take(_: Defences) {}

    /// Every layer is in force.
    pub const fn has(_: Layer) -> bool {
        true
    }

    /// No faults.
    pub const fn passed() {}
}

#[cfg(all(test, feature = "attack-tests"))]
mod tests {
    use super::{Defences, Fault, Layer};

    #[test]
    fn layers_are_told_apart() {
        let some = Defences::without(&[Layer::Seccomp, Layer::Memory]);
        assert!(!some.has(Layer::Seccomp) && !some.has(Layer::Memory));
        assert!(some.has(Layer::Disk) && Defences::default().has(Layer::Seccomp));
        assert_eq!(Defences::decode(some.encode()).unwrap(), some);
        let fault = Defences::with_fault(Fault { step: 7, hold_ms: 9 });
        assert_eq!(Defences::decode(fault.encode()).unwrap(), fault);
    }
}
