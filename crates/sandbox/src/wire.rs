//! Frames between the host program and its helpers.
//!
//! A frame is `u32` length of the body (little endian), one byte of kind, the body. Bodies are
//! made with [`Encoder`] and read with [`Decoder`]; every length is checked before it is believed,
//! because the helper lives beside untrusted commands.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Longest body of a frame, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

/// What a frame is. One number space for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host to slot: make a sandbox. Followed by a tree (see `tree`) that ends with [`Kind::End`].
    Create = 1,
    /// Tree: a directory.
    Dir = 10,
    /// Tree: a regular file; its data follows in [`Kind::Chunk`] frames.
    File = 11,
    /// Tree: data of the last file.
    Chunk = 12,
    /// Tree: a symbolic link.
    Symlink = 13,
    /// Tree: an overlay whiteout (the path was deleted).
    Whiteout = 14,
    /// Tree: a FIFO.
    Fifo = 15,
    /// Tree: another name of a file that came before.
    Hardlink = 16,
    /// Tree: the end.
    End = 17,
    /// Host to helper: run a command.
    Exec = 20,
    /// Host to helper: read a file.
    Read = 21,
    /// Host to helper: write a file.
    Write = 22,
    /// Host to helper: send the writable tree.
    Snapshot = 23,
    /// Host to helper: kill everything and end.
    Destroy = 24,
    /// Host to helper: hand the layers over, which are not written from now on, and end.
    Seal = 25,
    /// Reply: the slot or sandbox is ready.
    Ready = 40,
    /// Reply: done; the body depends on the request.
    Done = 41,
    /// Reply: refused or failed; the body is a [`Refusal`].
    Refused = 42,
    /// Reply of the slot: the sandbox is gone without a trace.
    Gone = 43,
    /// Reply: layers as a descriptor, which follows.
    Stack = 44,
    /// Before a reply: output of a command, a byte for the stream (1, 2) and what came.
    Output = 45,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 21] = [
            Kind::Create,
            Kind::Dir,
            Kind::File,
            Kind::Chunk,
            Kind::Symlink,
            Kind::Whiteout,
            Kind::Fifo,
            Kind::Hardlink,
            Kind::End,
            Kind::Exec,
            Kind::Read,
            Kind::Write,
            Kind::Snapshot,
            Kind::Destroy,
            Kind::Seal,
            Kind::Ready,
            Kind::Done,
            Kind::Refused,
            Kind::Gone,
            Kind::Stack,
            Kind::Output,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Why a helper refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A path that does not exist, is of the wrong type, or must not be touched.
    Path = 1,
    /// A limit of the sandbox.
    Limit = 2,
    /// The kernel forbids what a sandbox needs.
    Unsupported = 3,
    /// The repository cannot be an overlay here; the host should send a copy.
    NoOverlay = 4,
    /// Anything else.
    Io = 5,
}

/// A helper's typed failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind of failure.
    pub cause: Cause,
    /// The path or the step.
    pub what: String,
    /// What happened.
    pub why: String,
    /// The system's error number; 0 when there is none.
    pub errno: i32,
}

impl Refusal {
    /// A failure of the system in step `what`.
    pub fn io(what: impl Into<String>, error: &io::Error) -> Self {
        let cause = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EFBIG) => Cause::Limit,
            _ => Cause::Io,
        };
        let errno = error.raw_os_error().unwrap_or(0);
        Self { cause, what: what.into(), why: error.to_string(), errno }
    }

    /// A refused path.
    pub fn path(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self { cause: Cause::Path, what: path.into(), why: why.into(), errno: 0 }
    }

    /// A limit.
    pub fn limit(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { cause: Cause::Limit, what: what.into(), why: why.into(), errno: 0 }
    }

    /// The frame body.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        body.u8(self.cause as u8).str(&self.what).str(&self.why).u32(self.errno as u32);
        body.0
    }

    /// Reads a frame body.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        let cause = match body.u8()? {
            1 => Cause::Path,
            2 => Cause::Limit,
            3 => Cause::Unsupported,
            4 => Cause::NoOverlay,
            _ => Cause::Io,
        };
        Ok(Self { cause, what: body.string()?, why: body.string()?, errno: body.u32()? as i32 })
    }
}

/// Adds context to a system call's result.
pub trait Context<T> {
    /// Names the step that failed.
    fn step(self, what: &str) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, what: &str) -> Result<T, Refusal> {
        crate::defence::passed();
        self.map_err(|error| Refusal::io(what, &error.into()))
    }
}

/// Builds a frame body.
#[derive(Debug, Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Four bytes, little endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Eight bytes, little endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A length and the bytes.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
        self
    }

    /// A text as bytes.
    pub fn str(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }
}

/// Reads a frame body.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads `body` from its start.
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    fn take(&mut self, n: usize) -> io::Result<&'a [u8]> {
        if n > self.rest.len() {
            return Err(malformed("a frame is shorter than it says"));
        }
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Length-prefixed bytes.
    pub fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let n = self.u32()? as usize;
        self.take(n)
    }

    /// Length-prefixed UTF-8.
    pub fn string(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| malformed("text is not UTF-8"))
    }
}

/// An error for a message that breaks the protocol.
pub fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Sends one frame.
pub fn send(to: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    if body.len() > MAX_FRAME {
        return Err(malformed("a frame would be longer than the protocol allows"));
    }
    // Header and body in one write where the body is small: one wake-up of the reader.
    let mut head = Vec::with_capacity(5 + body.len().min(64 << 10));
    head.extend_from_slice(&(body.len() as u32).to_le_bytes());
    head.push(kind as u8);
    if body.len() <= 64 << 10 {
        head.extend_from_slice(body);
        return to.write_all(&head);
    }
    to.write_all(&head)?;
    to.write_all(body)
}

/// Receives one frame; `None` when the other side has closed between two frames.
pub fn receive(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0u8; 5];
    let mut got = 0;
    while got < head.len() {
        match from.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let kind = Kind::from_byte(head[4]).ok_or_else(|| malformed("unknown kind of frame"))?;
    if len > MAX_FRAME {
        return Err(malformed("a frame is longer than the protocol allows"));
    }
    let mut body = vec![0; len];
    from.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

/// Sends a descriptor, with one byte that carries it.
pub fn send_descriptor(to: impl AsFd, descriptor: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(to, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a descriptor. Nothing may have been read ahead of it.
pub fn receive_descriptor(from: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(from, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| malformed("a descriptor did not come along"))
}

#[cfg(test)]
mod tests {
    use super::{Cause, Decoder, Encoder, Kind, MAX_FRAME, Refusal, receive, send};
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn frames_survive_the_wire(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = Vec::new();
            send(&mut wire, Kind::Chunk, &body).unwrap();
            send(&mut wire, Kind::End, &[]).unwrap();
            let mut from = wire.as_slice();
            assert_eq!(receive(&mut from).unwrap(), Some((Kind::Chunk, body)));
            assert_eq!(receive(&mut from).unwrap(), Some((Kind::End, Vec::new())));
            assert_eq!(receive(&mut from).unwrap(), None);
        }

        #[test]
        fn garbage_is_an_error_or_a_frame_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = receive(&mut bytes.as_slice());
            let _ = Refusal::decode(&bytes);
            let mut body = Decoder::new(&bytes);
            while body.bytes().is_ok_and(|b| !b.is_empty()) {}
        }
    }

    #[test]
    fn a_claimed_length_beyond_the_bound_is_refused_before_it_is_allocated() {
        let mut wire = ((MAX_FRAME + 1) as u32).to_le_bytes().to_vec();
        wire.push(Kind::Chunk as u8);
        assert!(receive(&mut wire.as_slice()).is_err());
    }

    #[test]
    fn a_truncated_frame_is_an_error() {
        let mut wire = Vec::new();
        send(&mut wire, Kind::Exec, b"abcdef").unwrap();
        for n in 1..wire.len() {
            assert!(receive(&mut &wire[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn refusals_and_fields_round_trip() {
        let refusal = Refusal {
            cause: Cause::Limit,
            what: "/x".to_owned(),
            why: "full".to_owned(),
            errno: libc::ENOSPC,
        };
        assert_eq!(Refusal::decode(&refusal.encode()).unwrap(), refusal);
        let mut body = Encoder::default();
        body.u8(7).u32(8).u64(9).str("ten").bytes(b"\xff");
        let mut back = Decoder::new(&body.0);
        assert_eq!(back.u8().unwrap(), 7);
        assert_eq!(back.u32().unwrap(), 8);
        assert_eq!(back.u64().unwrap(), 9);
        assert_eq!(back.string().unwrap(), "ten");
        assert_eq!(back.bytes().unwrap(), b"\xff");
        assert!(back.u8().is_err());
    }
}
