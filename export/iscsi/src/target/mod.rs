//! The target, on the control thread: the authoritative configuration and what is done with it.
//!
//! A method checks, changes the state, and publishes the change to every reactor before it waits for anything, so that
//! reactors see changes in the order in which they were made whatever waits in between. What a method returns holds
//! when it returns: a removed LUN has no I/O under way, a portal accepts.
//!
//! Methods and parameters are SPDK's `iscsi_*`, without the prefix.

mod error;
mod groups;
mod nodes;
mod params;
mod portals;
mod report;
mod secrets;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::mpsc;
use penstock_bdev::reservation::{Protocol, ReservationBook};
use penstock_bdev::{Event, EventKind, Registry, Subscription};
use penstock_reactor::{Answers, Cx, ReactorHandle, Reactors};
use penstock_scsi::{LuId, Seal};
use penstock_spec::iscsi::IscsiName;
use uuid::Uuid;

pub use error::TargetError;
pub use params::{AuthChoice, NewLun, NewPortalGroup, NewSecret, NewTargetNode, Options, Portal};

use self::nodes::Node;
use self::portals::PortalGroupState;
use crate::auth::{AuthPolicy, Secret};
use crate::config::{DiscoveryConfig, InitiatorGroup};
use crate::group::{Common, GroupCell, Peers};
use crate::host::{ControlRequest, LuHost};
use crate::sessions::Sessions;

/// How long a method waits for I/O and sessions of what it removes.
const DRAIN_SECONDS: u64 = 30;

#[derive(Debug, Default)]
struct State {
    options: Options,
    discovery: AuthChoice,
    auth_groups: BTreeMap<u32, Vec<Secret>>,
    portal_groups: BTreeMap<u16, PortalGroupState>,
    initiator_groups: BTreeMap<u32, Arc<InitiatorGroup>>,
    nodes: BTreeMap<IscsiName, Node>,
    last_lu: u64,
}

impl State {
    /// What a choice means.
    fn policy(&self, choice: AuthChoice) -> AuthPolicy {
        let secrets = self.auth_groups.get(&choice.chap_group);
        AuthPolicy {
            disabled: choice.disable_chap,
            required: choice.require_chap,
            mutual: choice.mutual_chap,
            secrets: secrets.map(Vec::as_slice).unwrap_or_default().into(),
        }
    }

    fn discovery(&self) -> DiscoveryConfig {
        let own = |(tag, group): (&u16, &PortalGroupState)| Some((*tag, self.policy(group.auth?)));
        DiscoveryConfig {
            auth: self.policy(self.discovery),
            by_portal_group: self.portal_groups.iter().filter_map(own).collect(),
        }
    }
}

struct Inner {
    reactors: Reactors,
    common: Common,
    registry: Registry,
    book: ReservationBook,
    protocol: Cell<Option<Protocol>>,
    host: RefCell<LuHost>,
    requests: RefCell<Option<mpsc::UnboundedReceiver<ControlRequest>>>,
    state: RefCell<State>,
    /// Whether the reactors have their groups.
    started: Cell<bool>,
    subscription: RefCell<Option<Subscription>>,
}

/// The iSCSI target: a handle, cheap to clone, that stays on the control thread.
#[derive(Clone)]
pub struct Target(Rc<Inner>);

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("state", &self.0.state).finish_non_exhaustive()
    }
}

impl Target {
    /// A target on these reactors whose LUNs are bdevs of `registry`, with the reservations of `book`.
    /// [`Self::serve_owners`] must run beside it.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>, registry: Registry, book: ReservationBook) -> Self {
        let peers = Peers::new(reactors.clone());
        // Bounded by the command windows of the sessions: a command has one request under way.
        let (requests, incoming) = mpsc::unbounded();
        let control = move |request| {
            if requests.unbounded_send(request).is_err() {
                tracing::error!("the owners of logical units are gone");
            }
        };
        let common = Common {
            options: Arc::new(Options::default().iscsi),
            peers: Arc::clone(&peers),
            sessions: Arc::new(Sessions::default()),
            control: Arc::new(control),
            seal: Seal::new(Uuid::new_v4().into_bytes()),
        };
        let target = Self(Rc::new(Inner {
            reactors: Reactors::new(reactors),
            common,
            registry,
            book,
            protocol: Cell::new(None),
            host: RefCell::new(LuHost::new(peers)),
            requests: RefCell::new(Some(incoming)),
            state: RefCell::default(),
            started: Cell::new(false),
            subscription: RefCell::new(None),
        }));
        let weak = Rc::downgrade(&target.0);
        let subscription = target.0.registry.subscribe(move |event| {
            if let Some(inner) = weak.upgrade() {
                Self(inner).bdev_event(event);
            }
        });
        *target.0.subscription.borrow_mut() = Some(subscription);
        let weak = Rc::downgrade(&target.0);
        let protocol = target.0.book.subscribe_applied(move |bdev, effects| match weak.upgrade() {
            Some(inner) => Box::pin(inner.host.borrow_mut().reservations_changed(bdev, None, effects)),
            None => Box::pin(std::future::ready(())),
        });
        target.0.protocol.set(Some(protocol));
        target
    }

    /// Handles what the reactors ask of the owners of logical units, for ever. For the control thread to run as a task
    /// of its own, once.
    pub async fn serve_owners(self) {
        let Some(mut requests) = self.0.requests.take() else { return };
        while let Ok(request) = requests.recv().await {
            let changed = self.0.host.borrow_mut().handle(&request);
            let Some(changed) = changed else { continue };
            if let Some(protocol) = self.0.protocol.get() {
                self.0.book.tell(protocol, changed.bdev, &changed.effects).await;
            }
            changed.answer.await;
        }
    }

    /// `iscsi_set_options`: holds for sessions that begin from now on.
    ///
    /// # Errors
    /// [`TargetError::Invalid`]; what a reactor says.
    pub async fn set_options(&self, options: Options) -> Result<(), TargetError> {
        options.check()?;
        let iscsi = Arc::new(options.iscsi.clone());
        self.0.state.borrow_mut().options = options;
        let answers = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.set_options(&iscsi);
            }
        });
        self.all(answers, "set the options of the iSCSI target").await.map(drop)
    }

    /// The options as they are.
    #[must_use]
    pub fn options(&self) -> Options {
        self.0.state.borrow().options.clone()
    }

    /// `iscsi_set_discovery_auth`: what holds for discovery sessions that begin from now on.
    ///
    /// # Errors
    /// A choice that makes no sense; what a reactor says.
    pub async fn set_discovery_auth(&self, choice: AuthChoice) -> Result<(), TargetError> {
        self.check_auth(choice)?;
        self.0.state.borrow_mut().discovery = choice;
        self.all(self.publish_discovery(), "set the authentication of discovery").await.map(drop)
    }

    /// Accepts nothing more, asks all initiators to log out, cuts off those that do not. For the end of the daemon.
    ///
    /// # Errors
    /// [`TargetError::TimedOut`] when connections are left; what a reactor says.
    pub async fn drain(&self) -> Result<(), TargetError> {
        let what = "the connections of the iSCSI target";
        let ended = self.0.reactors.tell(|cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.drain();
            }
        });
        self.all(ended, what).await?;
        self.wait_until(what, |cell| cell.connections() == 0).await
    }

    /// The reactors get their groups with the first thing that is made.
    async fn start(&self) -> Result<(), TargetError> {
        if self.0.started.replace(true) {
            return Ok(());
        }
        let options = Arc::new(self.0.state.borrow().options.iscsi.clone());
        let what = "start the iSCSI target";
        for (index, handle) in self.0.reactors.iter().enumerate() {
            let common = Common { options: Arc::clone(&options), ..self.0.common.clone() };
            let started = handle.call(move |cx| GroupCell::start(cx, common, index).map(drop)).await;
            if let Err(error) = started.and_then(|started| started) {
                self.0.started.set(false);
                return Err(TargetError::reactor(what)(error));
            }
        }
        self.all(self.publish_discovery(), what).await.map(drop)
    }

    /// What a new generation of the bdevs means for the LUNs on them. A new length is seen by the nexuses themselves.
    fn bdev_event(&self, event: &Event) {
        if event.kind != EventKind::Removing {
            return;
        }
        let mut gone: Vec<LuId> = Vec::new();
        let mut affected = Vec::new();
        for (name, node) in &mut self.0.state.borrow_mut().nodes {
            let before = gone.len();
            node.luns.retain(|_, lun| {
                let stays = !Arc::ptr_eq(&lun.bdev, &event.bdev);
                if !stays {
                    gone.push(lun.lu);
                }
                stays
            });
            if gone.len() > before {
                affected.push(*name);
            }
        }
        // Nobody waits for it: the bdev's removal ends when the last channel is closed.
        for name in affected {
            drop(self.publish_node(&name));
        }
        for lu in gone {
            drop(self.let_go(lu));
        }
    }

    /// Forgets a logical unit everywhere.
    fn let_go(&self, lu: LuId) -> Answers<()> {
        self.0.host.borrow_mut().remove(lu);
        self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.remove_lu(lu);
            }
        })
    }

    /// Gives the newest generation of a target node to all reactors.
    fn publish_node(&self, name: &IscsiName) -> Answers<()> {
        let Some(config) = self.0.state.borrow().target_config(name).map(Arc::new) else {
            return Answers::default();
        };
        self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.apply(&config);
            }
        })
    }

    fn publish_discovery(&self) -> Answers<()> {
        let config = Arc::new(self.0.state.borrow().discovery());
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
}
