//! The network of a slot: a loopback interface that leads nowhere else.
//!
//! Servers that a test suite starts on `localhost` are reached; no other interface is there, and no
//! route to anything.

use std::fs;
use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NEW_LINK: u16 = 16;
const ERROR: u16 = 2;
/// Request, with an acknowledgement.
const FLAGS: u16 = 0x1 | 0x4;
const IS_UP: u32 = 0x1;
/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Brings the loopback interface of this process's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0: links, addresses and routes.
        None,
    )?;
    rustix::net::send(&socket, &request(), SendFlags::empty())?;
    let mut answer = [0; 64];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    errno(&answer[..length]).and_then(|errno| match errno {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(errno)),
    })?;
    // The next sandbox in this namespace must not find a port taken by connections that are over.
    let _ = fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    Ok(())
}

/// `struct nlmsghdr`, then `struct ifinfomsg`.
fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, and the kernel's answer
    message.extend([0; 4]); // family and type: any
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IS_UP.to_ne_bytes()); // the flags
    message.extend(IS_UP.to_ne_bytes()); // which of them change
    message
}

/// The error number of an acknowledgement, 0 for none.
fn errno(answer: &[u8]) -> io::Result<i32> {
    let malformed = || io::Error::other("the kernel's answer cannot be read");
    let kind = answer.get(4..6).ok_or_else(malformed)?;
    let code = answer.get(16..20).ok_or_else(malformed)?;
    match (kind.try_into().map(u16::from_ne_bytes), code.try_into().map(i32::from_ne_bytes)) {
        (Ok(ERROR), Ok(code)) => Ok(-code),
        _ => Err(malformed()),
    }
}
