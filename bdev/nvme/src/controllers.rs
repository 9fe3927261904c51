//! All NVMe controllers of the node, on the control thread: attach, detach, and keeping the bdevs what the namespaces are.
//!
//! Invariants: a name is one controller; a bdev of a controller goes before the controller does; a controller that is gone
//! takes its bdevs with it, by and by as their users let go.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use penstock_bdev::{Bdev, BdevError, Registry};
use penstock_reactor::{Clock, ReactorHandle};
use serde_json::{Value, json};

use crate::bdev::NvmeBdev;
use crate::controller::{
    AttachError, Controller, ControllerConfig, ControllerEvent, ControllerState, OnEvent, attach,
};
use crate::device::Device;
use crate::event::{self, Work};
use crate::hotplug::Hotplug;
use crate::options::NvmeOptions;
use crate::pci::{BadAddress, PciAddress};
use crate::vfio::{IommuMode, VfioDevice, VfioError};

/// Controllers of one node at most.
pub const CONTROLLERS_MAX: usize = 256;

/// Errors of attaching and detaching controllers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// The name is taken.
    #[error(
        "an NVMe controller {name} is attached already, at {address}; choose another name or detach it first"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Where that one is.
        address: String,
    },
    /// The device is.
    #[error("the NVMe controller at {address} is attached already, as {name}")]
    AddressTaken {
        /// Where it is.
        address: String,
        /// Its name.
        name: String,
    },
    /// No such controller.
    #[error("there is no NVMe controller {name}; bdev_nvme_get_controllers lists them")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// There are as many as can be.
    #[error("cannot attach {name}: there are {CONTROLLERS_MAX} NVMe controllers already")]
    Full {
        /// The name.
        name: String,
    },
    /// A parameter does not make sense.
    #[error("NVMe controller {name}: {parameter} {problem}")]
    Invalid {
        /// The controller.
        name: String,
        /// Which parameter.
        parameter: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// Not a PCI address.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// It did not come up.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A bdev of it could not be registered.
    #[error(transparent)]
    Bdev(#[from] BdevError),
    /// It did not come back from its reset, or does not answer.
    #[error("NVMe controller {name}: {problem}")]
    Controller {
        /// The controller.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// What a PCIe controller is attached with.
#[derive(Debug, Clone)]
pub struct PcieAttach {
    /// Its name.
    pub name: String,
    /// Its PCI address.
    pub traddr: String,
    /// I/O queue pairs at most.
    pub num_io_queues: Option<u16>,
    /// How the device reaches memory.
    pub iommu: IommuMode,
}

struct Entry {
    controller: Arc<Controller>,
    /// The calls's parameters, to attach it again.
    params: Value,
}

struct Inner {
    registry: Registry,
    reactors: Vec<ReactorHandle>,
    clock: Clock,
    options: Cell<NvmeOptions>,
    entries: RefCell<BTreeMap<String, Entry>>,
    /// Names of those that are being attached.
    coming: RefCell<BTreeMap<String, String>>,
    hotplug: RefCell<Hotplug>,
    sender: UnboundedSender<(String, ControllerEvent)>,
    events: RefCell<Option<UnboundedReceiver<(String, ControllerEvent)>>>,
}

/// All controllers. A handle, cheap to clone.
#[derive(Clone)]
pub struct NvmeControllers(Rc<Inner>);

impl std::fmt::Debug for NvmeControllers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmeControllers")
            .field("count", &self.0.entries.borrow().len())
            .finish_non_exhaustive()
    }
}

impl NvmeControllers {
    /// No controllers yet.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>, clock: Clock, registry: Registry) -> Self {
        let (sender, events) = unbounded();
        Self(Rc::new(Inner {
            registry,
            reactors,
            clock,
            options: Cell::new(NvmeOptions::default()),
            entries: RefCell::default(),
            coming: RefCell::default(),
            hotplug: RefCell::default(),
            sender,
            events: RefCell::new(Some(events)),
        }))
    }

    /// What controllers attached from now on are driven with.
    #[must_use]
    pub fn options(&self) -> NvmeOptions {
        self.0.options.get()
    }

    /// Sets it.
    pub fn set_options(&self, options: NvmeOptions) {
        self.0.options.set(options);
    }

    /// Takes the PCIe controller at an address and makes bdevs of its namespaces; returns their names.
    ///
    /// # Errors
    /// [`NvmeError`]; nothing is left behind then.
    pub async fn attach_pcie(&self, params: PcieAttach) -> Result<Vec<String>, NvmeError> {
        let address: PciAddress = params.traddr.parse()?;
        let (iommu, name) = (params.iommu, params.name.clone());
        let mut config = json!({"name": name, "trtype": "PCIe", "traddr": address.to_string()});
        if let Some(members) = config.as_object_mut() {
            if let Some(count) = params.num_io_queues {
                members.insert("num_io_queues".to_owned(), json!(count));
            }
            let mode = match iommu {
                IommuMode::Auto => None,
                IommuMode::Type1 => Some("type1"),
                IommuMode::Iommufd => Some("iommufd"),
                IommuMode::NoIommu => Some("noiommu"),
            };
            members.extend(mode.map(|mode| ("iommu".to_owned(), json!(mode))));
        }
        let open = move || VfioDevice::open(address, iommu).map(|device| Box::new(device) as Box<dyn Device>);
        self.attach(name, address.to_string(), params.num_io_queues, open, config).await
    }

    /// Takes a device, whatever it is, and makes bdevs of its namespaces; returns their names. `params`: the call that
    /// attaches it again.
    ///
    /// # Errors
    /// [`NvmeError`]; nothing is left behind then.
    pub async fn attach(
        &self,
        name: String,
        address: String,
        io_queues_max: Option<u16>,
        open: impl FnOnce() -> Result<Box<dyn Device>, VfioError> + Send + 'static,
        params: Value,
    ) -> Result<Vec<String>, NvmeError> {
        self.check_new(&name, &address, io_queues_max)?;
        self.0.coming.borrow_mut().insert(name.clone(), address.clone());
        let config = ControllerConfig {
            name: name.clone(),
            address,
            reactors: self.0.reactors.clone(),
            clock: self.0.clock.clone(),
            options: self.options(),
            io_queues_max,
        };
        let (sender, named) = (self.0.sender.clone(), name.clone());
        let on_event: OnEvent = Box::new(move |event| {
            // The daemon is ending where nobody listens.
            sender.unbounded_send((named.clone(), event)).ok();
        });
        let attached = attach(config, open, on_event).await;
        self.0.coming.borrow_mut().remove(&name);
        let controller = attached?;
        let identity = controller.report().identity;
        tracing::info!(
            controller = name,
            address = controller.address(),
            model = identity.model_number,
            serial = identity.serial_number,
            queues = identity.io_queues,
            "an NVMe controller was attached"
        );
        self.0
            .entries
            .borrow_mut()
            .insert(name.clone(), Entry { controller: Arc::clone(&controller), params });
        match self.match_bdevs(&controller) {
            Ok(names) => Ok(names),
            Err(error) => {
                // Those that were registered go again.
                drop(controller);
                self.detach(&name).await.ok();
                Err(error.into())
            }
        }
    }

    /// Takes a controller's bdevs away, shuts it down and gives the device back. Waits for the bdevs' users.
    ///
    /// # Errors
    /// [`NvmeError::NotFound`].
    pub async fn detach(&self, name: &str) -> Result<(), NvmeError> {
        let controller = self.find(name)?;
        for bdev in self.bdevs_of(&controller) {
            // It may be on its way out already; then it is waited for below.
            drop(self.0.registry.remove(bdev.shared().name()).await);
        }
        for bdev in self.bdevs_of(&controller) {
            let name = bdev.shared().name().to_owned();
            drop(bdev);
            self.0.registry.gone(&name).await;
        }
        controller.detach().await;
        self.0.entries.borrow_mut().remove(name);
        self.0.hotplug.borrow_mut().forget(name, controller.address());
        tracing::info!(controller = name, "an NVMe controller was detached");
        Ok(())
    }

    /// A controller.
    ///
    /// # Errors
    /// [`NvmeError::NotFound`].
    pub fn find(&self, name: &str) -> Result<Arc<Controller>, NvmeError> {
        let entries = self.0.entries.borrow();
        let found = entries.get(name).map(|entry| Arc::clone(&entry.controller));
        found.ok_or_else(|| NvmeError::NotFound { name: name.to_owned() })
    }

    /// All controllers, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Controller>> {
        self.0.entries.borrow().values().map(|entry| Arc::clone(&entry.controller)).collect()
    }

    /// Parameters of the calls that attach all of them again, but for those that came by themselves.
    #[must_use]
    pub fn configs(&self) -> Vec<Value> {
        let hotplug = self.0.hotplug.borrow();
        let stays = |(name, entry): &(&String, &Entry)| {
            entry.controller.report().state != ControllerState::Gone && !hotplug.brought(name)
        };
        self.0.entries.borrow().iter().filter(stays).map(|(_, entry)| entry.params.clone()).collect()
    }

    pub(crate) fn hotplug(&self) -> &RefCell<Hotplug> {
        &self.0.hotplug
    }

    /// Whether the device at that address is attached, or about to be.
    pub(crate) fn has_address(&self, address: &str) -> bool {
        let (entries, coming) = (self.0.entries.borrow(), self.0.coming.borrow());
        entries.values().any(|entry| entry.controller.address() == address)
            || coming.values().any(|other| other == address)
    }

    /// Does what controllers' events ask for. For the control thread to run as a task of its own; a second one does nothing.
    pub fn look_after(&self) -> impl Future<Output = ()> + 'static {
        let events = self.0.events.borrow_mut().take();
        let this = self.clone();
        async move {
            if let Some(events) = events {
                event::take_all(events, |(name, event)| this.take_event(&name, event)).await;
            }
        }
    }

    /// Detaches all: the end of the daemon.
    pub async fn shut_down(&self) {
        let names: Vec<String> = self.0.entries.borrow().keys().cloned().collect();
        for name in names {
            self.detach(&name).await.ok();
        }
    }

    fn check_new(&self, name: &str, address: &str, io_queues_max: Option<u16>) -> Result<(), NvmeError> {
        let invalid = |parameter, problem: &str| {
            Err(NvmeError::Invalid { name: name.to_owned(), parameter, problem: problem.to_owned() })
        };
        if name.is_empty() || name.len() > 200 {
            return invalid("name", "must have 1 to 200 bytes");
        }
        if io_queues_max == Some(0) {
            return invalid("num_io_queues", "is 0; it must be 1 or more");
        }
        let entries = self.0.entries.borrow();
        let coming = self.0.coming.borrow();
        let known = entries.values().map(|entry| (entry.controller.name(), entry.controller.address()));
        let mut all = known.chain(coming.iter().map(|(name, address)| (name.as_str(), address.as_str())));
        if entries.len() + coming.len() >= CONTROLLERS_MAX {
            return Err(NvmeError::Full { name: name.to_owned() });
        }
        match all.find(|other| other.0 == name || other.1 == address) {
            Some((other, at)) if other == name => {
                Err(NvmeError::NameTaken { name: name.to_owned(), address: at.to_owned() })
            }
            Some((other, _)) => {
                Err(NvmeError::AddressTaken { address: address.to_owned(), name: other.to_owned() })
            }
            None => Ok(()),
        }
    }

    /// What cannot be done at once comes back as work.
    fn take_event(&self, name: &str, event: ControllerEvent) -> Option<Work> {
        let controller = self.find(name).ok()?;
        let (this, name) = (self.clone(), name.to_owned());
        match event {
            ControllerEvent::Namespaces => match self.match_bdevs(&controller) {
                Ok(_) => None,
                // Another bdev of that name is on its way out.
                Err(BdevError::Exists { name: taken }) => Some(Box::pin(async move {
                    this.0.registry.gone(&taken).await;
                    if let Err(error) = this.match_bdevs(&controller) {
                        tracing::error!(controller = name, %error, "a new namespace is no bdev");
                    }
                })),
                Err(error) => {
                    tracing::error!(controller = name, %error, "a new namespace is no bdev");
                    None
                }
            },
            ControllerEvent::Gone => {
                for bdev in self.bdevs_of(&controller) {
                    self.begin_removal(bdev.shared().name());
                }
                drop(controller);
                // It goes when they have: their users have to let go first.
                Some(Box::pin(async move { drop(this.detach(&name).await) }))
            }
        }
    }

    /// Makes the bdevs what the namespaces are; returns the names of all there are now.
    fn match_bdevs(&self, controller: &Arc<Controller>) -> Result<Vec<String>, BdevError> {
        let report = controller.report();
        let registered = self.bdevs_of(controller);
        let mut names = Vec::new();
        for (nsid, ns) in &report.namespaces {
            let name = NvmeBdev::name_of(controller.name(), *nsid);
            let old = registered.iter().find(|bdev| bdev.shared().name() == name);
            match (old, ns) {
                (Some(old), Ok(ns)) if is_same(old, ns) => {
                    self.0.registry.resize(&name, None)?;
                    names.push(name);
                }
                (old, Ok(ns)) => {
                    if old.is_some() {
                        // Another format, or another disk by the same number: that is another bdev.
                        self.begin_removal(&name);
                    }
                    self.0.registry.register(NvmeBdev::new(Arc::clone(controller), ns)?, &[])?;
                    names.push(name);
                }
                (old, Err(refusal)) => {
                    tracing::warn!(controller = controller.name(), nsid, %refusal, "a namespace is no bdev");
                    if old.is_some() {
                        self.begin_removal(&name);
                    }
                }
            }
        }
        let is_there = |name: &str| {
            report.namespaces.iter().any(|(nsid, _)| NvmeBdev::name_of(controller.name(), *nsid) == name)
        };
        for bdev in registered.iter().filter(|bdev| !is_there(bdev.shared().name())) {
            self.begin_removal(bdev.shared().name());
        }
        Ok(names)
    }

    fn bdevs_of(&self, controller: &Arc<Controller>) -> Vec<Arc<dyn Bdev>> {
        let prefix = format!("{}n", controller.name());
        let is_its = |bdev: &Arc<dyn Bdev>| {
            let any: &dyn std::any::Any = &**bdev;
            bdev.shared().name().starts_with(&prefix)
                && any
                    .downcast_ref::<NvmeBdev>()
                    .is_some_and(|nvme| Arc::ptr_eq(nvme.controller(), controller))
        };
        self.0.registry.list().into_iter().filter(is_its).collect()
    }

    /// Begins a removal, which goes on by itself.
    fn begin_removal(&self, name: &str) {
        let mut removal = Box::pin(self.0.registry.remove(name));
        let polled = removal.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Err(error)) = polled {
            tracing::debug!(bdev = name, %error, "it is on its way out already");
        }
    }
}

fn is_same(bdev: &Arc<dyn Bdev>, ns: &crate::admin::Namespace) -> bool {
    let shared = bdev.shared();
    !shared.is_removed()
        && shared.uuid() == ns.uuid
        && shared.block_bytes() == ns.block_bytes
        && *shared.caps() == ns.caps
}
