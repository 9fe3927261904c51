//! What each request of a frontend does (vhost-user, "Front-end message types").

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use penstock_spec::virtio::blk::Config;
use penstock_spec::virtio::feature;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{
    FrontendReq as Req, VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemory, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::wire::{Message, parse};
use super::{Inflight, Session, SessionError};
use crate::device::{self, CONFIG_BYTES, QUEUES_MAX};
use crate::memory::{DirtyLog, GuestMap, MemoryError, REGIONS_MAX, Region};
use crate::ring::{QUEUE_SIZE_MAX, RingAddresses, region_bytes};
use crate::worker::Update;

/// Bytes of the head of a memory table.
const TABLE_HEAD: usize = 8;
/// Bytes of one of its regions.
const TABLE_ENTRY: usize = 32;
/// In a request that hands an eventfd over: there is none.
const NO_FD: u64 = 0x100;
/// Bytes of an inflight message without the padding that some send.
const INFLIGHT_BYTES: usize = 20;
/// Bytes of the head of a message about the configuration space.
const CONFIG_HEAD: usize = 12;

/// Whether a request has an answer of its own.
pub(super) fn has_reply(request: Req) -> bool {
    matches!(
        request,
        Req::GET_FEATURES
            | Req::GET_PROTOCOL_FEATURES
            | Req::GET_QUEUE_NUM
            | Req::GET_VRING_BASE
            | Req::GET_CONFIG
            | Req::GET_INFLIGHT_FD
            | Req::GET_MAX_MEM_SLOTS
            | Req::SET_LOG_BASE
    )
}

impl Session {
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol & Protocol::REPLY_ACK.bits() != 0
    }

    fn packed(&self) -> bool {
        self.view.features.get() & feature::RING_PACKED != 0
    }

    /// Does what a message asks for; whether it has sent an answer.
    pub(super) async fn handle(&mut self, mut message: Message) -> Result<bool, SessionError> {
        let request = message.request;
        self.check_offered(request)?;
        match request {
            Req::GET_FEATURES => return self.answer(request, self.controller.features()).await,
            Req::GET_PROTOCOL_FEATURES => {
                return self.answer(request, device::protocol_features().bits()).await;
            }
            Req::GET_QUEUE_NUM => return self.answer(request, u64::from(QUEUES_MAX)).await,
            Req::GET_MAX_MEM_SLOTS => {
                return self.answer(request, u64::try_from(REGIONS_MAX).unwrap_or(0)).await;
            }
            Req::GET_CONFIG => return self.get_config(&message).await,
            Req::GET_INFLIGHT_FD => return self.make_inflight(&message).await,
            Req::GET_VRING_BASE => return self.get_base(&message).await,
            Req::SET_LOG_BASE => return self.set_log_base(message).await,
            Req::SET_OWNER => {}
            // What a frontend of old says for it.
            Req::RESET_OWNER | Req::RESET_DEVICE => self.reset().await,
            Req::SET_FEATURES => self.set_features(&message).await?,
            Req::SET_PROTOCOL_FEATURES => self.set_protocol_features(&message)?,
            Req::SET_MEM_TABLE => self.set_mem_table(message).await?,
            Req::ADD_MEM_REG => self.add_region(message).await?,
            Req::REM_MEM_REG => self.remove_region(&message).await?,
            // Pages are noted in the bitmap; nobody needs to be told at once.
            Req::SET_LOG_FD => drop(message.take_fd()?),
            Req::SET_VRING_NUM => self.set_num(&message)?,
            Req::SET_VRING_ADDR => self.set_addr(&message).await?,
            Req::SET_VRING_BASE => self.set_base(&message)?,
            Req::SET_VRING_KICK => self.set_kick(message).await?,
            Req::SET_VRING_CALL | Req::SET_VRING_ERR => self.set_eventfd(message).await?,
            Req::SET_VRING_ENABLE => self.set_enable(&message).await?,
            Req::SET_CONFIG => self.set_config(&message)?,
            Req::SET_BACKEND_REQ_FD => self.set_backend(&mut message)?,
            Req::SET_INFLIGHT_FD => self.set_inflight(message)?,
            _ => return Err(SessionError::NotOffered { request }),
        }
        Ok(false)
    }

    /// Requests that need a protocol feature come only where it was negotiated.
    fn check_offered(&self, request: Req) -> Result<(), SessionError> {
        let needed = match request {
            Req::GET_QUEUE_NUM => Protocol::MQ,
            Req::GET_CONFIG | Req::SET_CONFIG => Protocol::CONFIG,
            Req::GET_INFLIGHT_FD | Req::SET_INFLIGHT_FD => Protocol::INFLIGHT_SHMFD,
            Req::GET_MAX_MEM_SLOTS | Req::ADD_MEM_REG | Req::REM_MEM_REG => Protocol::CONFIGURE_MEM_SLOTS,
            Req::SET_LOG_BASE => Protocol::LOG_SHMFD,
            Req::SET_BACKEND_REQ_FD => Protocol::BACKEND_REQ,
            Req::RESET_DEVICE => Protocol::RESET_DEVICE,
            _ => return Ok(()),
        };
        if self.protocol & needed.bits() == 0 {
            return Err(SessionError::NotOffered { request });
        }
        Ok(())
    }

    async fn answer(&self, request: Req, value: u64) -> Result<bool, SessionError> {
        self.wire.reply(request, &[&value.to_le_bytes()], None).await.map(|()| true)
    }

    async fn set_features(&mut self, message: &Message) -> Result<(), SessionError> {
        let features = message.body::<VhostUserU64>()?.value;
        let offered = self.controller.features();
        if features & !offered != 0 {
            return Err(SessionError::Features { features, offered });
        }
        self.view.features.set(features);
        if features & feature::PROTOCOL_FEATURES == 0 {
            // Such a frontend does not know how to enable a queue.
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        self.update_all(|session| Update::Log(session.log_in_use())).await
    }

    fn set_protocol_features(&mut self, message: &Message) -> Result<(), SessionError> {
        let features = message.body::<VhostUserU64>()?.value;
        let offered = device::protocol_features().bits();
        if features & !offered != 0 {
            return Err(SessionError::Features { features, offered });
        }
        self.protocol = features;
        Ok(())
    }

    /// The bitmap, while dirty pages are to be noted.
    pub(super) fn log_in_use(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.view.features.get() & feature::LOG_ALL != 0)
    }

    async fn set_mem_table(&mut self, message: Message) -> Result<(), SessionError> {
        let Message { request, body, fds, .. } = message;
        let wrong = || SessionError::Body { request, len: body.len() };
        let (head, entries) = body.split_at_checked(TABLE_HEAD).ok_or_else(wrong)?;
        let count = usize::try_from(parse::<VhostUserMemory>(request, head)?.num_regions).unwrap_or(0);
        if entries.len() != count.saturating_mul(TABLE_ENTRY) {
            return Err(wrong());
        }
        if fds.len() != count {
            return Err(SessionError::Files { request, count: fds.len() });
        }
        let mut regions = Vec::with_capacity(count);
        for (entry, fd) in entries.chunks_exact(TABLE_ENTRY).zip(fds) {
            regions.push(map(request, parse::<VhostUserMemoryRegion>(request, entry)?, fd)?);
        }
        let map = GuestMap::new(regions).map_err(|source| SessionError::Memory { request, source })?;
        self.use_map(map).await
    }

    async fn add_region(&mut self, mut message: Message) -> Result<(), SessionError> {
        let request = message.request;
        let fd = message.take_fd()?;
        let region = map(request, *message.body::<VhostUserSingleMemoryRegion>()?, fd)?;
        let map = self.map.with(region).map_err(|source| SessionError::Memory { request, source })?;
        self.use_map(map).await
    }

    async fn remove_region(&mut self, message: &Message) -> Result<(), SessionError> {
        // A file that comes with it is of no use; dropping the message closes it.
        let region = *message.body::<VhostUserSingleMemoryRegion>()?;
        let (gpa, len, user) = (region.guest_phys_addr, region.memory_size, region.user_addr);
        let map = self.map.without(gpa, len, user);
        let map = map.map_err(|source| SessionError::Memory { request: message.request, source })?;
        self.use_map(map).await
    }

    /// Everything uses this table from now on, but for what is under way.
    async fn use_map(&mut self, map: GuestMap) -> Result<(), SessionError> {
        self.map = Arc::new(map);
        self.update_all(|session| Update::Map(Arc::clone(&session.map))).await?;
        self.serve_ready().await
    }

    async fn set_log_base(&mut self, mut message: Message) -> Result<bool, SessionError> {
        let request = message.request;
        let fd = message.take_fd()?;
        let log = message.body::<VhostUserLog>()?;
        let mapped = DirtyLog::map(File::from(fd), log.mmap_offset, log.mmap_size);
        self.log = Some(Arc::new(mapped.map_err(|source| SessionError::Memory { request, source })?));
        self.update_all(|session| Update::Log(session.log_in_use())).await?;
        self.wire.reply(request, &[log.as_slice()], None).await.map(|()| true)
    }

    fn set_num(&mut self, message: &Message) -> Result<(), SessionError> {
        let state = message.body::<VhostUserVringState>()?;
        let packed = self.packed();
        let vring = self.idle_vring(message.request, state.index)?;
        let size = u16::try_from(state.num).ok().filter(|size| (1..=QUEUE_SIZE_MAX).contains(size));
        let size = size.filter(|size| packed || size.is_power_of_two());
        let wrong = SessionError::Body { request: message.request, len: message.body.len() };
        vring.size = size.ok_or(wrong)?;
        Ok(())
    }

    async fn set_addr(&mut self, message: &Message) -> Result<(), SessionError> {
        let new = message.body::<VhostUserVringAddr>()?;
        let addresses = RingAddresses { desc: new.descriptor, avail: new.available, used: new.used };
        let index = self.index_of(message.request, new.index)?;
        let vring = self.vring(message.request, new.index)?;
        if vring.serving.is_some() && vring.addresses != Some(addresses) {
            let problem = "its addresses cannot change while it is served";
            return Err(SessionError::State { request: message.request, index, problem });
        }
        vring.addresses = Some(addresses);
        // Whether its ring is logged: it is, wherever there is a log.
        self.serve_if_ready(index).await
    }

    fn set_base(&mut self, message: &Message) -> Result<(), SessionError> {
        let state = message.body::<VhostUserVringState>()?;
        self.idle_vring(message.request, state.index)?.base = state.num;
        Ok(())
    }

    async fn get_base(&mut self, message: &Message) -> Result<bool, SessionError> {
        let state = message.body::<VhostUserVringState>()?;
        let index = self.index_of(message.request, state.index)?;
        self.stop(index).await;
        let num = self.vring(message.request, state.index)?.base;
        let state = VhostUserVringState::new(u32::from(index), num);
        self.wire.reply(message.request, &[state.as_slice()], None).await.map(|()| true)
    }

    async fn set_kick(&mut self, message: Message) -> Result<(), SessionError> {
        let (index, fd) = eventfd(message)?;
        let vring = self.idle_vring(Req::SET_VRING_KICK, u32::from(index))?;
        vring.kick = Some(fd);
        self.serve_if_ready(index).await
    }

    async fn set_eventfd(&mut self, message: Message) -> Result<(), SessionError> {
        let request = message.request;
        let (index, fd) = eventfd(message)?;
        let vring = self.vring(request, u32::from(index))?;
        let update = if request == Req::SET_VRING_CALL { Update::Call } else { Update::Err };
        if vring.serving.is_some() {
            return self.update(index, update(fd)).await;
        }
        *(if request == Req::SET_VRING_CALL { &mut vring.call } else { &mut vring.err }) = fd;
        Ok(())
    }

    async fn set_enable(&mut self, message: &Message) -> Result<(), SessionError> {
        let state = message.body::<VhostUserVringState>()?;
        let index = self.index_of(message.request, state.index)?;
        let vring = self.vring(message.request, state.index)?;
        vring.enabled = state.num == 1;
        if vring.serving.is_some() {
            return self.update(index, Update::Enabled(state.num == 1)).await;
        }
        self.serve_if_ready(index).await
    }

    async fn get_config(&self, message: &Message) -> Result<bool, SessionError> {
        let (asked, _) = self.config_range(message)?;
        let space = self.controller.config(self.view.shared.writes_back());
        let from = usize::try_from(asked.offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(usize::try_from(asked.size).unwrap_or(usize::MAX));
        // Nothing says: not that range.
        let bytes = space.get(from..end).unwrap_or_default();
        let size = u32::try_from(bytes.len()).unwrap_or(0);
        let head = VhostUserConfig::new(asked.offset, size, VhostUserConfigFlags::empty());
        self.wire.reply(message.request, &[head.as_slice(), bytes], None).await.map(|()| true)
    }

    fn set_config(&mut self, message: &Message) -> Result<(), SessionError> {
        let (asked, bytes) = self.config_range(message)?;
        let at = Config::WRITEBACK_AT.checked_sub(asked.offset).and_then(|at| usize::try_from(at).ok());
        let features = self.view.features.get();
        let may = features & penstock_spec::virtio::blk::feature::CONFIG_WCE != 0;
        match at.and_then(|at| bytes.get(at)) {
            Some(writes_back) if may => {
                self.view.shared.set_writes_back(*writes_back != 0);
                Ok(())
            }
            _ => Err(SessionError::Body { request: message.request, len: message.body.len() }),
        }
    }

    fn config_range<'a>(&self, message: &'a Message) -> Result<(VhostUserConfig, &'a [u8]), SessionError> {
        let wrong = || SessionError::Body { request: message.request, len: message.body.len() };
        let (head, bytes) = message.body.split_at_checked(CONFIG_HEAD).ok_or_else(wrong)?;
        let head = parse::<VhostUserConfig>(message.request, head)?;
        let size = usize::try_from(head.size).unwrap_or(usize::MAX);
        if bytes.len() == size && size <= CONFIG_BYTES { Ok((head, bytes)) } else { Err(wrong()) }
    }

    fn set_backend(&self, message: &mut Message) -> Result<(), SessionError> {
        let request = message.request;
        let fd = message.take_fd()?;
        if rustix::net::sockopt::socket_domain(&fd) != Ok(rustix::net::AddressFamily::UNIX) {
            return Err(SessionError::Kind { request, kind: "socket" });
        }
        *self.view.backend.borrow_mut() = Some(fd);
        Ok(())
    }

    async fn make_inflight(&self, message: &Message) -> Result<bool, SessionError> {
        let asked = inflight(message)?;
        let bytes = region_bytes(self.packed(), asked.queue_size).saturating_mul(asked.num_queues.into());
        let mmap_size = u64::try_from(bytes).unwrap_or(u64::MAX);
        let file = memfd_create("penstock-inflight", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        ftruncate(&file, mmap_size).map_err(io::Error::from)?;
        let made = VhostUserInflight::new(mmap_size, 0, asked.num_queues, asked.queue_size);
        self.wire.reply(message.request, &[made.as_slice()], Some(file.as_fd())).await.map(|()| true)
    }

    fn set_inflight(&mut self, mut message: Message) -> Result<(), SessionError> {
        let asked = inflight(&message)?;
        let file = File::from(message.take_fd()?);
        let (queues, size) = (asked.num_queues, asked.queue_size);
        self.inflight = Some(Inflight { file, offset: asked.mmap_offset, queues, size });
        Ok(())
    }
}

fn inflight(message: &Message) -> Result<VhostUserInflight, SessionError> {
    let mut bytes = message.body.clone();
    if bytes.len() == INFLIGHT_BYTES {
        bytes.resize(size_of::<VhostUserInflight>(), 0);
    }
    let asked = parse::<VhostUserInflight>(message.request, &bytes)?;
    if asked.num_queues > QUEUES_MAX || asked.queue_size > QUEUE_SIZE_MAX {
        return Err(SessionError::Body { request: message.request, len: bytes.len() });
    }
    Ok(asked)
}

fn map(request: Req, region: VhostUserMemoryRegion, fd: OwnedFd) -> Result<Region, SessionError> {
    let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset, .. } = region;
    Region::map(guest_phys_addr, memory_size, user_addr, File::from(fd), mmap_offset)
        .map_err(|source: MemoryError| SessionError::Memory { request, source })
}

/// The queue and the eventfd of a message that hands one over. It never blocks whoever writes it.
fn eventfd(mut message: Message) -> Result<(u16, Option<OwnedFd>), SessionError> {
    let request = message.request;
    let word = message.body::<VhostUserU64>()?.value;
    let index = u16::try_from(word & 0xff).unwrap_or(u16::MAX);
    if word & NO_FD != 0 {
        return Ok((index, None));
    }
    let fd = message.take_fd()?;
    let kind =
        rustix::fs::readlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)), Vec::new());
    if !kind.is_ok_and(|kind| kind.to_bytes().starts_with(b"anon_inode:[eventfd]")) {
        return Err(SessionError::Kind { request, kind: "eventfd" });
    }
    rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from)?;
    Ok((index, Some(fd)))
}
