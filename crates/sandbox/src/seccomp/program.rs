//! From a list of calls with their verdicts to a program for the kernel's packet filter machine.

/// One instruction of the kernel's classic packet filter machine, as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) k: u32,
}

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_AT_LEAST: u16 = 0x35;
pub(super) const IF_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has the number, the architecture and an argument's low half.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

#[cfg(target_arch = "x86_64")]
pub(super) const THIS_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub(super) const THIS_ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("sandboxes need this architecture's system calls: add its audit number here");

/// Bit that marks the x32 calls of x86-64; no other architecture has numbers that large.
pub(super) const X32: u32 = 0x4000_0000;
/// The first number that this list knows nothing of.
pub(super) const UNKNOWN: u32 = 470;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// Fails with this error; 0 succeeds without doing anything.
    Fail(i32),
    /// It ends the process.
    Kill,
    /// No namespaces among the flags, which are the first argument.
    CloneFlags,
    /// A family of sockets that stays inside.
    SocketFamily,
    /// Pairs of `AF_UNIX`.
    PairFamily,
    /// No typing into, or changing, somebody's terminal.
    TerminalRequest,
    /// An execution domain that differs in harmless ways.
    Domain,
    /// No device nodes; the mode is this argument. Overlay takes one for a deletion.
    NodeMode(u32),
}

const fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

const fn load(offset: u32) -> Instruction {
    instruction(LOAD, offset)
}

const fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, k }
}

fn verdict(verdict: Verdict) -> Instruction {
    instruction(
        RETURN,
        match verdict {
            Verdict::Allow => libc::SECCOMP_RET_ALLOW,
            Verdict::Fail(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            _ => libc::SECCOMP_RET_KILL_PROCESS,
        },
    )
}

/// `found` for these values of an argument (its bits under `mask`), `other` for the rest.
fn among(offset: u32, mask: u32, values: &[u32], (found, other): (Verdict, Verdict)) -> Program {
    let mut program = vec![load(offset)];
    if mask != u32::MAX {
        program.push(instruction(AND, mask));
    }
    for (n, value) in values.iter().enumerate() {
        program.push(jump(IF_EQUAL, *value, (values.len() - n) as u8, 0));
    }
    program.extend([verdict(other), verdict(found)]);
    program
}

/// Instructions in their order.
pub type Program = Vec<Instruction>;

/// The program that answers each number with its verdict, and any other with a refusal.
pub fn assemble(known: &[(u32, Verdict)]) -> Program {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(IF_EQUAL, THIS_ARCHITECTURE, 1, 0),
        verdict(Verdict::Kill),
        load(NUMBER),
    ];
    program.extend(search(&ranges(known)));
    program
}

/// What is done once a number is known. Ends in a return on every way.
fn leaf(what: Verdict) -> Program {
    let family = (Verdict::Allow, Verdict::Fail(libc::EAFNOSUPPORT));
    let unless = (Verdict::Fail(libc::EPERM), Verdict::Allow);
    match what {
        Verdict::Allow | Verdict::Fail(_) | Verdict::Kill => vec![verdict(what)],
        Verdict::CloneFlags => vec![
            load(argument(0)),
            jump(IF_ANY_BIT, NAMESPACES as u32, 0, 1),
            verdict(Verdict::Fail(libc::EPERM)),
            verdict(Verdict::Allow),
        ],
        Verdict::SocketFamily => {
            let inside = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(|f| f as u32);
            let mut program =
                vec![load(argument(0)), jump(IF_EQUAL, libc::AF_NETLINK as u32, 0, 4)];
            // Netlink only of the kind that lists interfaces and addresses.
            program.extend(among(argument(2), u32::MAX, &[0], family));
            program.extend(among(argument(0), u32::MAX, &inside, family));
            program
        }
        Verdict::PairFamily => among(argument(0), u32::MAX, &[libc::AF_UNIX as u32], family),
        Verdict::TerminalRequest => {
            let refused = [libc::TIOCSTI as u32, TIOCLINUX, TIOCCONS, TIOCSETD];
            among(argument(1), u32::MAX, &refused, unless)
        }
        Verdict::Domain => {
            let harmless = [0, 8, 0x2_0000, 0x2_0008, libc::ADDR_NO_RANDOMIZE as u32, u32::MAX];
            among(argument(0), u32::MAX, &harmless, (Verdict::Allow, Verdict::Fail(libc::EPERM)))
        }
        Verdict::NodeMode(at) => {
            among(argument(at), libc::S_IFMT, &[libc::S_IFCHR, libc::S_IFBLK], unless)
        }
    }
}

const TIOCLINUX: u32 = 0x541C;
const TIOCCONS: u32 = 0x541D;
const TIOCSETD: u32 = 0x5423;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// First numbers of ranges with one verdict, in order, from 0 to the end of all numbers.
fn ranges(known: &[(u32, Verdict)]) -> Vec<(u32, Verdict)> {
    let mut known = known.to_vec();
    known.sort_by_key(|(number, _)| *number);
    let mut out: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |number: u32, verdict: Verdict| {
        if out.last().is_none_or(|(_, last)| *last != verdict) {
            out.push((number, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in known {
        if number > next {
            push(next, Verdict::Fail(libc::EPERM));
        }
        push(number, verdict);
        next = number + 1;
    }
    if next < UNKNOWN {
        push(next, Verdict::Fail(libc::EPERM));
    }
    push(UNKNOWN, Verdict::Fail(libc::ENOSYS));
    push(X32, Verdict::Kill);
    out
}

/// A binary search for the range that the loaded number is in.
fn search(ranges: &[(u32, Verdict)]) -> Program {
    let [first, .., _] = ranges else {
        return ranges.first().map_or_else(|| vec![verdict(Verdict::Kill)], |(_, v)| leaf(*v));
    };
    let middle = ranges.len() / 2;
    debug_assert!(first.0 < ranges[middle].0);
    let (below, above) = (search(&ranges[..middle]), search(&ranges[middle..]));
    let start = ranges[middle].0;
    let mut program = match u8::try_from(below.len()) {
        Ok(over) => vec![jump(IF_AT_LEAST, start, over, 0)],
        // Conditions jump no further than a byte says.
        Err(_) => {
            vec![jump(IF_AT_LEAST, start, 0, 1), instruction(JUMP, below.len() as u32)]
        }
    };
    program.extend(below);
    program.extend(above);
    program
}
