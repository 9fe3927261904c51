//! The target, on the control thread: the authoritative configuration and what is done with it.
//!
//! A method checks, changes the state, and publishes the change to every reactor before it waits for anything, so that
//! reactors see changes in the order in which they were made whatever waits in between. What a method returns holds
//! when it returns: a removed namespace has no I/O under way, a listener accepts.
//!
//! Methods and parameters are SPDK's `nvmf_*`, without the prefix.

mod discovery;
mod error;
mod params;
mod path;
mod report;
mod reservation;
mod security;
mod subsystem;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use penstock_bdev::reservation::{NoStore, ReservationBook};
use penstock_bdev::{Event, EventKind, Registry, Subscription};
use penstock_reactor::{Answers, Cx, ReactorHandle, Reactors};
use penstock_security::chap::Policy;
use penstock_security::tls::Context;
use penstock_spec::nvmf::Nqn;

pub use discovery::{ReferralHosts, ReferralParams};
pub use error::TargetError;
pub use params::{CreateSubsystem, ListenAddress, Namespace};
pub use path::ListenOptions;

use self::reservation::Keeper;
use crate::auth::Worker;
use crate::config::{DiscoveryConfig, DiscoveryFilter, Referral, SubsystemConfig, SubsystemKind};
use crate::group::{GroupCell, Peers};
use crate::transport_options::{AQ_DEPTH_MIN, TransportOptions};

/// How long a method waits for I/O of what it removes.
const DRAIN_SECONDS: u64 = 30;

/// An address listened on.
#[derive(Debug, Clone, Copy)]
struct Portal {
    portid: u16,
    /// Nothing is talked there without TLS.
    secure: bool,
    /// Index of the reactor that accepts.
    reactor: usize,
}

#[derive(Debug)]
struct State {
    options: Option<Arc<TransportOptions>>,
    /// NVM subsystems and the discovery subsystem.
    subsystems: BTreeMap<Nqn, Arc<SubsystemConfig>>,
    portals: BTreeMap<SocketAddr, Portal>,
    /// What hosts may agree on to authenticate themselves.
    auth_policy: Arc<Policy>,
    /// Portals where nothing is talked without TLS.
    secure_portids: BTreeSet<u16>,
    /// There once it is needed.
    tls: Option<Arc<Context>>,
    genctr: u64,
    referrals: Vec<Referral>,
    filter: DiscoveryFilter,
}

struct Inner {
    reactors: Reactors,
    peers: Arc<Peers>,
    worker: Arc<Worker>,
    registry: Registry,
    state: RefCell<State>,
    subscription: RefCell<Option<Subscription>>,
    keeper: Keeper,
    draining: Cell<bool>,
}

/// The NVMe-oF target: a handle, cheap to clone, that stays on the control thread.
#[derive(Clone)]
pub struct Target(Rc<Inner>);

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("state", &self.0.state).finish_non_exhaustive()
    }
}

impl Target {
    /// A target on these reactors whose namespaces are bdevs of `registry`. Only the discovery subsystem is there.
    /// Reservations persist only in files of namespaces' own.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>, registry: Registry) -> Self {
        Self::with_reservations(reactors, registry, ReservationBook::new(Rc::new(RefCell::new(NoStore))))
    }

    /// As [`Self::new`], with reservations that other protocols know of.
    #[must_use]
    pub fn with_reservations(
        reactors: Vec<ReactorHandle>,
        registry: Registry,
        book: ReservationBook,
    ) -> Self {
        let discovery = SubsystemConfig::new(Nqn::discovery(), SubsystemKind::Discovery);
        let state = State {
            options: None,
            subsystems: BTreeMap::from([(discovery.nqn, Arc::new(discovery))]),
            portals: BTreeMap::new(),
            auth_policy: Arc::default(),
            secure_portids: BTreeSet::new(),
            tls: None,
            genctr: 1,
            referrals: Vec::new(),
            filter: DiscoveryFilter::default(),
        };
        let target = Self(Rc::new(Inner {
            peers: Peers::new(reactors.clone()),
            worker: Arc::new(Worker::start()),
            reactors: Reactors::new(reactors),
            registry,
            state: RefCell::new(state),
            subscription: RefCell::new(None),
            keeper: Keeper::new(book),
            draining: Cell::new(false),
        }));
        let weak = Rc::downgrade(&target.0);
        let subscription = target.0.registry.subscribe(move |event| {
            if let Some(inner) = weak.upgrade() {
                Self(inner).bdev_event(event);
            }
        });
        *target.0.subscription.borrow_mut() = Some(subscription);
        target.follow_reservations();
        target
    }

    /// `nvmf_create_transport`: the reactors begin to serve.
    ///
    /// # Errors
    /// [`TargetError::Option`], [`TargetError::TransportExists`], or what a reactor says.
    pub async fn create_transport(&self, options: TransportOptions) -> Result<(), TargetError> {
        options.check()?;
        let options = Arc::new(options);
        {
            let mut state = self.0.state.borrow_mut();
            if state.options.is_some() {
                return Err(TargetError::TransportExists);
            }
            state.options = Some(Arc::clone(&options));
        }
        let what = "start the TCP transport";
        for (index, handle) in self.0.reactors.iter().enumerate() {
            let (options, peers) = (Arc::clone(&options), Arc::clone(&self.0.peers));
            let requests = self.0.keeper.requests();
            let worker = Arc::clone(&self.0.worker);
            let started = handle
                .call(move |cx| {
                    GroupCell::start(cx, &options, peers, index).map(|cell| {
                        cell.set_worker(&worker);
                        cell.set_requests(requests)
                    })
                })
                .await
                .and_then(|started| started);
            if let Err(error) = started {
                self.0.state.borrow_mut().options = None;
                return Err(TargetError::reactor(what)(error));
            }
        }
        if self.0.state.borrow().tls.is_some() {
            self.enable_tls().await?;
        }
        let known: Vec<_> = self.0.state.borrow().subsystems.values().cloned().collect();
        for config in known {
            self.publish_config(&config);
        }
        self.all(self.publish_discovery(), what).await.map(drop)
    }

    /// Accepts nothing more, lets commands under way end, closes every connection. For the end of the daemon.
    ///
    /// # Errors
    /// [`TargetError::TimedOut`] when connections are left; what a reactor says.
    pub async fn drain(&self) -> Result<(), TargetError> {
        self.0.draining.set(true);
        let what = "the connections of the NVMe/TCP target";
        let ended = self.0.reactors.tell(|cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.drain();
            }
        });
        self.all(ended, what).await?;
        self.wait_until(what, |cell| cell.stats().connections == 0).await
    }

    /// What a new generation of the bdevs means for the namespaces on them.
    fn bdev_event(&self, event: &Event) {
        let affected: Vec<_> = {
            let state = self.0.state.borrow();
            let on_it = |config: &&Arc<SubsystemConfig>| {
                config.namespaces.values().any(|ns| Arc::ptr_eq(ns.descriptor.shared(), &event.bdev))
            };
            state.subsystems.values().filter(on_it).map(|config| config.nqn).collect()
        };
        for nqn in affected {
            let changed = self.change(&nqn, |config| match event.kind {
                EventKind::Resized => {
                    for ns in config.namespaces.values_mut() {
                        if Arc::ptr_eq(ns.descriptor.shared(), &event.bdev) {
                            ns.blocks = event.bdev.blocks();
                        }
                    }
                    Ok(())
                }
                EventKind::Removing => {
                    config.namespaces.retain(|_, ns| !Arc::ptr_eq(ns.descriptor.shared(), &event.bdev));
                    Ok(())
                }
                EventKind::Registered | EventKind::Removed => Ok(()),
            });
            // Nobody waits for it: the bdev's removal ends when the last channel is closed.
            if let Ok(((), answers)) = changed {
                drop(answers);
            }
        }
        if event.kind == EventKind::Removing {
            self.forget_reservations();
        }
    }

    /// Makes the next generation of a subsystem and publishes it.
    fn change<R>(
        &self,
        nqn: &Nqn,
        change: impl FnOnce(&mut SubsystemConfig) -> Result<R, TargetError>,
    ) -> Result<(R, Answers<()>), TargetError> {
        let (result, next) = {
            let mut state = self.0.state.borrow_mut();
            let slot = state
                .subsystems
                .get_mut(nqn)
                .ok_or_else(|| TargetError::NoSubsystem { nqn: nqn.to_string() })?;
            let mut next = SubsystemConfig::clone(slot);
            let result = change(&mut next)?;
            next.generation += 1;
            next.reservations.retain(|nsid, _| next.namespaces.contains_key(nsid));
            *slot = Arc::new(next);
            (result, Arc::clone(slot))
        };
        Ok((result, self.publish_config(&next)))
    }

    fn publish_config(&self, config: &Arc<SubsystemConfig>) -> Answers<()> {
        let config = Arc::clone(config);
        self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.apply(cx, &config);
            }
        })
    }

    /// Something that hosts can see in the discovery log has changed.
    fn publish_discovery(&self) -> Answers<()> {
        let config = {
            let mut state = self.0.state.borrow_mut();
            state.genctr += 1;
            let discovery = state.subsystems.get(&Nqn::discovery());
            let listeners = discovery.map(|config| config.listeners.clone()).unwrap_or_default();
            let nqn = discovery.and_then(|config| config.alias);
            let nvm = state.subsystems.values().filter(|config| config.kind == SubsystemKind::Nvm);
            let admin_queue_entries = state.options.as_ref().map_or(AQ_DEPTH_MIN, |o| o.max_aq_depth);
            Arc::new(DiscoveryConfig {
                genctr: state.genctr,
                subsystems: nvm.map(|config| Arc::new(config.without_namespaces())).collect(),
                listeners,
                nqn,
                referrals: state.referrals.clone(),
                filter: state.filter,
                admin_queue_entries,
            })
        };
        self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.set_discovery(&config);
            }
        })
    }

    /// Waits for all answers.
    async fn all<R>(&self, answers: Answers<R>, what: &str) -> Result<Vec<R>, TargetError> {
        answers.all().await.map_err(TargetError::reactor(what))
    }

    /// Waits until `done` holds on every reactor.
    async fn wait_until(
        &self,
        what: &str,
        done: impl Fn(&GroupCell) -> bool + Clone + Send + 'static,
    ) -> Result<(), TargetError> {
        let limit = Duration::from_secs(DRAIN_SECONDS);
        let quiet = move |cx: &Cx| GroupCell::of(cx).is_none_or(|cell| done(&cell));
        let is_over = self.0.reactors.wait_until(limit, quiet).await.map_err(TargetError::reactor(what))?;
        if !is_over {
            return Err(TargetError::TimedOut { what: what.to_owned(), seconds: DRAIN_SECONDS });
        }
        Ok(())
    }

    fn subsystem(&self, nqn: &str) -> Result<Arc<SubsystemConfig>, TargetError> {
        let state = self.0.state.borrow();
        let found = parse_nqn("nqn", nqn).ok().and_then(|nqn| state.subsystems.get(&nqn).cloned());
        found.ok_or_else(|| TargetError::NoSubsystem { nqn: nqn.to_owned() })
    }
}

/// Takes SPDK's "discovery" for the discovery subsystem too.
fn parse_nqn(parameter: &'static str, name: &str) -> Result<Nqn, TargetError> {
    if name == "discovery" {
        return Ok(Nqn::discovery());
    }
    name.parse().map_err(|source| TargetError::Nqn { parameter, name: name.to_owned(), source })
}
