//! A frontend's queues and the reactors that serve them.

use std::sync::Arc;

use penstock_spec::virtio::feature;
use vhost::vhost_user::message::FrontendReq as Req;

use super::vring::{QueueView, Vring};
use super::{Session, SessionError, chain};
use crate::device::QUEUES_MAX;
use crate::memory::GuestMap;
use crate::ring::{InflightArea, RingAddresses, RingSetup};
use crate::stats::QueueStats;
use crate::worker::{QueueKey, QueueStart, StartError, Update, WorkerCell};

impl Session {
    pub(super) fn index_of(&self, request: Req, index: u32) -> Result<u16, SessionError> {
        let known = u16::try_from(index).ok().filter(|index| *index < QUEUES_MAX);
        known.ok_or(SessionError::Queue { request, index, max: QUEUES_MAX })
    }

    pub(super) fn vring(&mut self, request: Req, index: u32) -> Result<&mut Vring, SessionError> {
        let vring = usize::try_from(index).ok().and_then(|index| self.vrings.get_mut(index));
        vring.ok_or(SessionError::Queue { request, index, max: QUEUES_MAX })
    }

    /// A queue that is not served, so that it may change.
    pub(super) fn idle_vring(&mut self, request: Req, index: u32) -> Result<&mut Vring, SessionError> {
        let vring = self.vring(request, index)?;
        if vring.serving.is_some() {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            return Err(SessionError::State { request, index, problem: "it is served" });
        }
        Ok(vring)
    }

    fn key(&self, index: u16) -> QueueKey {
        QueueKey { session: self.view.id, index }
    }

    /// Serves every queue of which all is known.
    pub(super) async fn serve_ready(&mut self) -> Result<(), SessionError> {
        for index in 0..QUEUES_MAX {
            self.serve_if_ready(index).await?;
        }
        Ok(())
    }

    /// Serves a queue as soon as its size, addresses, kick and memory are known.
    pub(super) async fn serve_if_ready(&mut self, index: u16) -> Result<(), SessionError> {
        let Some(addresses) = self.ready(index) else { return Ok(()) };
        self.controller.settled().await;
        let (key, features) = (self.key(index), self.view.features.get());
        let (map, log) = (Arc::clone(&self.map), self.log_in_use());
        let packed = features & feature::RING_PACKED != 0;
        let inflight = self.inflight_area(index, packed)?;
        let controller = std::rc::Rc::clone(&self.controller);
        let session = Arc::clone(&self.view.shared);
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return Ok(()) };
        let Some(kick) = vring.kick.take() else { return Ok(()) };
        vring.stats = Arc::new(QueueStats::default());
        let start = QueueStart {
            key,
            session,
            descriptor: controller.descriptor(),
            controller: controller.id,
            setup: RingSetup {
                packed,
                size: vring.size,
                addresses,
                base: vring.base,
                event_idx: features & feature::EVENT_IDX != 0,
                indirect: features & feature::INDIRECT_DESC != 0,
                inflight,
            },
            size: vring.size,
            map,
            log,
            kick,
            call: vring.call.take(),
            err: vring.err.take(),
            enabled: vring.enabled,
            stats: Arc::clone(&vring.stats),
        };
        let (reactor, handle) = controller.place();
        let started = handle.call(move |cx| WorkerCell::of(cx).start(cx, start)).await;
        let started = started.unwrap_or_else(|error| Err(StartError::Reactor(error)));
        if let Err(source) = started {
            controller.displace(reactor);
            return Err(SessionError::Start { index, source });
        }
        vring.serving = Some(reactor);
        let view = QueueView { index, size: vring.size, reactor, stats: Arc::clone(&vring.stats) };
        self.view.queues.borrow_mut().push(view);
        Ok(())
    }

    /// The addresses of a queue that can be served and is not.
    fn ready(&self, index: u16) -> Option<RingAddresses> {
        let vring = self.vrings.get(usize::from(index))?;
        let is_ready = vring.serving.is_none() && vring.size > 0 && vring.kick.is_some();
        vring.addresses.filter(|addresses| is_ready && is_mapped(&self.map, addresses.desc))
    }

    fn inflight_area(&self, index: u16, packed: bool) -> Result<Option<InflightArea>, SessionError> {
        let Some(inflight) = self.inflight.as_ref().filter(|inflight| index < inflight.queues) else {
            return Ok(None);
        };
        let area =
            InflightArea::map(inflight.file.try_clone()?, inflight.offset, packed, inflight.size, index);
        area.map(Some).map_err(|source| SessionError::Memory { request: Req::SET_INFLIGHT_FD, source })
    }

    /// Changes a queue that is served, and waits until it is so.
    pub(super) async fn update(&mut self, index: u16, update: Update) -> Result<(), SessionError> {
        let key = self.key(index);
        let serving = self.vrings.get(usize::from(index)).and_then(|vring| vring.serving);
        let Some(handle) = serving.and_then(|reactor| self.controller.reactor(reactor)) else {
            return Ok(());
        };
        handle.call(move |cx| WorkerCell::of(cx).update(key, update)).await?;
        Ok(())
    }

    /// Changes all queues that are served.
    pub(super) async fn update_all(&mut self, update: impl Fn(&Self) -> Update) -> Result<(), SessionError> {
        for index in 0..QUEUES_MAX {
            let update = update(self);
            self.update(index, update).await?;
        }
        Ok(())
    }

    /// Stops a queue: its requests end first. Where it stood is its base from now on.
    pub(super) async fn stop(&mut self, index: u16) {
        let key = self.key(index);
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        vring.kick = None;
        let Some(reactor) = vring.serving.take() else { return };
        self.view.queues.borrow_mut().retain(|queue| queue.index != index);
        self.controller.displace(reactor);
        let Some(handle) = self.controller.reactor(reactor) else { return };
        let stopping = handle.call(move |cx| WorkerCell::of(cx).stop(key)).await;
        let stopped = match stopping {
            Ok(Some(stopped)) => stopped.await.ok(),
            Ok(None) => None,
            Err(error) => {
                let (controller, error) = (self.controller.name.as_str(), chain(&error));
                tracing::warn!(controller, queue = index, error, "a queue was not stopped");
                None
            }
        };
        if let (Some(base), Some(vring)) = (stopped, self.vrings.get_mut(usize::from(index))) {
            vring.base = base;
        }
    }

    /// Stops all queues.
    pub(super) async fn stop_all(&mut self) {
        for index in 0..QUEUES_MAX {
            self.stop(index).await;
        }
    }

    /// Back to how it was when the frontend came, but for its features of the protocol.
    pub(super) async fn reset(&mut self) {
        self.stop_all().await;
        self.vrings = (0..QUEUES_MAX).map(|_| Vring::default()).collect();
        self.view.features.set(0);
        self.inflight = None;
        self.log = None;
    }
}

/// Whether the frontend's address is in the table at all: it may come with a later message.
fn is_mapped(map: &GuestMap, user: u64) -> bool {
    map.window_at_user(user, 1, 1).is_some()
}
