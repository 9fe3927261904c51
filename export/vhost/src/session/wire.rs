//! Messages of the vhost-user protocol on their socket: a header, a body, file descriptors.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream as AsyncStream;
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag, VhostUserMsgValidator,
};

use super::SessionError;

/// Version of the protocol, in the low bits of a header's flags.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
/// How long a frontend may leave answers unread.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// A message of the frontend's.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) request: FrontendReq,
    /// The frontend waits for an answer, even where the request has none by itself.
    pub(super) wants_reply: bool,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    /// The body as a structure of that very length, whose own checks hold.
    pub(super) fn body<T: VhostUserMsgValidator + Default>(&self) -> Result<T, SessionError> {
        parse(self.request, &self.body)
    }

    /// The one file that comes with it.
    pub(super) fn take_fd(&mut self) -> Result<OwnedFd, SessionError> {
        let (request, count) = (self.request, self.fds.len());
        match self.fds.pop() {
            Some(fd) if count == 1 => Ok(fd),
            _ => Err(SessionError::Files { request, count }),
        }
    }
}

/// Bytes as a structure.
pub(super) fn parse<T: VhostUserMsgValidator + Default>(
    request: FrontendReq,
    bytes: &[u8],
) -> Result<T, SessionError> {
    let mut value = T::default();
    let wrong = SessionError::Body { request, len: bytes.len() };
    if value.as_slice().len() != bytes.len() {
        return Err(wrong);
    }
    value.as_mut_slice().copy_from_slice(bytes);
    if value.is_valid() { Ok(value) } else { Err(wrong) }
}

/// A socket of the protocol.
#[derive(Debug)]
pub(super) struct Wire(AsyncStream);

impl Wire {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        AsyncStream::from_std(stream).map(Self)
    }

    /// The next message; `None` where the frontend has closed the connection between two.
    pub(super) async fn recv(&self) -> Result<Option<Message>, SessionError> {
        let (mut header, mut fds) = ([0; HEADER_BYTES], Vec::new());
        if !self.recv_exact(&mut header, &mut fds).await? {
            return Ok(None);
        }
        let word = |at: usize| {
            let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        let (code, flags, size) = (word(0), word(4), word(8));
        let known = VERSION | VhostUserHeaderFlag::NEED_REPLY.bits();
        if flags & 3 != VERSION || flags & !known != 0 {
            return Err(SessionError::Header { code, flags });
        }
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if len > MAX_MSG_SIZE {
            return Err(SessionError::TooLong { code, len });
        }
        let mut body = vec![0; len];
        if len > 0 && !self.recv_exact(&mut body, &mut fds).await? {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        let request = FrontendReq::try_from(code).map_err(|_| SessionError::Unknown { code })?;
        let wants_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        Ok(Some(Message { request, wants_reply, body, fds }))
    }

    /// Sends the answer to `request`.
    pub(super) async fn reply(
        &self,
        request: FrontendReq,
        body: &[&[u8]],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        let size: usize = body.iter().map(|part| part.len()).sum();
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        let mut bytes = header(u32::from(request), flags, u32::try_from(size).unwrap_or(0)).to_vec();
        body.iter().for_each(|part| bytes.extend_from_slice(part));
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = bytes.get(sent..).unwrap_or_default();
            let fd = fd.filter(|_| sent == 0);
            let sending = self.0.async_io(Interest::WRITABLE, || send(self.0.as_fd(), rest, fd));
            sent += tokio::time::timeout(READ_LIMIT, sending).await.map_err(io::Error::from)??;
        }
        Ok(())
    }

    /// Fills `buf`; false where the connection ended before its first byte.
    async fn recv_exact(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<bool, SessionError> {
        let mut done = 0;
        while done < buf.len() {
            let left = buf.get_mut(done..).unwrap_or_default();
            let count = self.0.async_io(Interest::READABLE, || recv(self.0.as_fd(), left, fds)).await?;
            if count == 0 && done == 0 {
                return Ok(false);
            }
            if count == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
            done += count;
        }
        Ok(true)
    }
}

/// The header of a message, in this machine's byte order, which is little-endian wherever there is vhost-user.
pub(super) fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    for (to, word) in bytes.chunks_exact_mut(4).zip([code, flags, size]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn recv(socket: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(buf)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            fds.extend(files);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_ATTACHED_FD_ENTRIES {
        return Err(io::Error::new(ErrorKind::InvalidData, "more files than a message may have"));
    }
    Ok(received.bytes)
}

/// Sends without waiting; `fd` goes with the first byte.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}
