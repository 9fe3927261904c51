//! All controllers, on the control thread: the methods `vhost_*`, by SPDK's names without the prefix.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::reservation::{Applied, ReservationBook};
use penstock_bdev::{Event, EventKind, OpenMode, Registry, Subscription};
use penstock_reactor::ReactorHandle;
use serde_json::Value;
use tokio::net::UnixListener;
use uuid::Uuid;

use crate::coalesce::DELAY_BASE_US_MAX;
use crate::controller::{Controller, ControllerConfig, Placement};
use crate::cpumask;
use crate::error::VhostError;

/// Controllers at most.
pub const CONTROLLERS_MAX: usize = 1024;
/// The one transport.
const TRANSPORT: &str = "vhost_user_blk";
/// Who may connect: the daemon's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Parameters of [`Vhost::create_blk_controller`].
#[derive(Debug, Clone, Default)]
pub struct CreateBlkController {
    /// Name of the controller, and of its socket.
    pub ctrlr: String,
    /// The bdev: name, alias or UUID.
    pub dev_name: String,
    /// The cores that it may use; all where none are given.
    pub cpumask: Option<String>,
    /// The guest cannot write.
    pub readonly: bool,
    /// The packed layout of queues is offered.
    pub packed_ring: bool,
    /// `vhost_user_blk`.
    pub transport: Option<String>,
}

struct Inner {
    registry: Registry,
    book: ReservationBook,
    placement: Rc<Placement>,
    /// Where the sockets are.
    dir: PathBuf,
    controllers: RefCell<BTreeMap<String, Rc<Controller>>>,
    next_id: Cell<u64>,
    next_session: Rc<Cell<u64>>,
    subscription: RefCell<Option<Subscription>>,
}

/// The vhost-user target: a handle, cheap to clone, that stays on the control thread, inside a `LocalSet`.
#[derive(Clone)]
pub struct Vhost(Rc<Inner>);

impl fmt::Debug for Vhost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vhost").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}

impl Vhost {
    /// A target on these reactors whose disks are bdevs of `registry` with the reservations of `book`, and whose sockets
    /// are in `dir`.
    #[must_use]
    pub fn new(
        reactors: Vec<ReactorHandle>,
        registry: Registry,
        book: ReservationBook,
        dir: PathBuf,
    ) -> Self {
        let vhost = Self(Rc::new(Inner {
            placement: Rc::new(Placement::new(reactors)),
            registry,
            book,
            dir,
            controllers: RefCell::default(),
            next_id: Cell::new(1),
            next_session: Rc::new(Cell::new(0)),
            subscription: RefCell::new(None),
        }));
        let weak = Rc::downgrade(&vhost.0);
        let subscription = vhost.0.registry.subscribe(move |event| {
            if let Some(inner) = weak.upgrade() {
                Self(inner).bdev_event(event);
            }
        });
        *vhost.0.subscription.borrow_mut() = Some(subscription);
        let weak = Rc::downgrade(&vhost.0);
        // A guest makes no reservations, so nobody is told of any by this protocol.
        let _never_tells = vhost.0.book.subscribe_applied(move |bdev, _| match weak.upgrade() {
            Some(inner) => Self(inner).reservations_changed(bdev),
            None => Box::pin(async {}),
        });
        vhost
    }

    /// `vhost_create_blk_controller`: makes the socket and accepts frontends.
    ///
    /// # Errors
    /// [`VhostError`].
    pub fn create_blk_controller(&self, params: &CreateBlkController) -> Result<(), VhostError> {
        let ctrlr = params.ctrlr.clone();
        self.check(params)?;
        let allowed = self.allowed(&ctrlr, params.cpumask.as_deref())?;
        let owner = format!("vhost controller {ctrlr}");
        let opened = if params.readonly {
            self.0.registry.open(&params.dev_name, OpenMode::ReadOnly, &owner)
        } else {
            self.0.registry.export(&params.dev_name, &owner)
        };
        let descriptor = opened.map_err(|source| VhostError::Bdev { ctrlr: ctrlr.clone(), source })?;
        let reservations = self.0.book.of(descriptor.shared().uuid()).map_err(|source| {
            VhostError::Reservations { ctrlr: ctrlr.clone(), bdev: params.dev_name.clone(), source }
        })?;
        let path = self.0.dir.join(&ctrlr);
        let listener = listen(&ctrlr, &path)?;
        let id = self.0.next_id.get();
        self.0.next_id.set(id + 1);
        let config = ControllerConfig {
            id,
            name: ctrlr.clone(),
            path,
            descriptor,
            reservations,
            read_only: params.readonly,
            packed_ring: params.packed_ring,
            allowed,
            placement: Rc::clone(&self.0.placement),
            next_session: Rc::clone(&self.0.next_session),
        };
        self.0.controllers.borrow_mut().insert(ctrlr, Controller::start(config, listener));
        Ok(())
    }

    /// `vhost_delete_controller`.
    ///
    /// # Errors
    /// [`VhostError::NotFound`]; [`VhostError::Busy`] while frontends are connected.
    pub async fn delete_controller(&self, ctrlr: &str) -> Result<(), VhostError> {
        let controller = self.find(ctrlr)?;
        let sessions = controller.sessions_len();
        if sessions > 0 {
            return Err(VhostError::Busy { ctrlr: ctrlr.to_owned(), sessions });
        }
        self.0.controllers.borrow_mut().remove(ctrlr);
        controller.close().await;
        Ok(())
    }

    /// `vhost_get_controllers`: one, or all.
    ///
    /// # Errors
    /// [`VhostError::NotFound`].
    pub fn get_controllers(&self, ctrlr: Option<&str>) -> Result<Value, VhostError> {
        if let Some(name) = ctrlr {
            return Ok(Value::Array(vec![self.find(name)?.report()]));
        }
        Ok(self.0.controllers.borrow().values().map(|controller| controller.report()).collect())
    }

    /// `vhost_controller_set_coalescing`: from now on.
    ///
    /// # Errors
    /// [`VhostError::NotFound`], [`VhostError::Invalid`].
    pub fn controller_set_coalescing(
        &self,
        ctrlr: &str,
        delay_base_us: u32,
        iops_threshold: u32,
    ) -> Result<(), VhostError> {
        let controller = self.find(ctrlr)?;
        if delay_base_us > DELAY_BASE_US_MAX {
            let problem = format!("is {delay_base_us}; it may be {DELAY_BASE_US_MAX} at most");
            return Err(VhostError::Invalid { ctrlr: ctrlr.to_owned(), parameter: "delay_base_us", problem });
        }
        controller.coalescing.set(delay_base_us, iops_threshold);
        Ok(())
    }

    /// The calls that make the controllers again.
    #[must_use]
    pub fn config_calls(&self) -> Vec<(&'static str, Value)> {
        self.0.controllers.borrow().values().flat_map(|controller| controller.config_calls()).collect()
    }

    /// Ends all connections once what is under way has ended, and closes the sockets.
    pub async fn drain(&self) {
        let controllers = std::mem::take(&mut *self.0.controllers.borrow_mut());
        for controller in controllers.values() {
            controller.close().await;
        }
    }

    fn check(&self, params: &CreateBlkController) -> Result<(), VhostError> {
        let ctrlr = params.ctrlr.clone();
        if ctrlr.is_empty() || ctrlr.contains(['/', '\0']) || ctrlr == "." || ctrlr == ".." {
            let problem = "must be the name of a file in the directory of sockets".to_owned();
            return Err(VhostError::Invalid { ctrlr, parameter: "ctrlr", problem });
        }
        if let Some(other) = params.transport.as_deref().filter(|name| *name != TRANSPORT) {
            let problem = format!("is {other:?}; there is {TRANSPORT}");
            return Err(VhostError::Invalid { ctrlr, parameter: "transport", problem });
        }
        let controllers = self.0.controllers.borrow();
        if controllers.contains_key(&ctrlr) {
            return Err(VhostError::Exists { ctrlr });
        }
        if controllers.len() >= CONTROLLERS_MAX {
            return Err(VhostError::Full { ctrlr, max: CONTROLLERS_MAX });
        }
        Ok(())
    }

    /// The reactors on the cores of the mask.
    fn allowed(&self, ctrlr: &str, cpumask: Option<&str>) -> Result<Vec<usize>, VhostError> {
        let reactors = &self.0.placement.reactors;
        let Some(text) = cpumask else { return Ok((0..reactors.len()).collect()) };
        let invalid =
            |problem| VhostError::Invalid { ctrlr: ctrlr.to_owned(), parameter: "cpumask", problem };
        let cores = cpumask::parse(text).map_err(invalid)?;
        let known: Vec<u32> = reactors.iter().map(cpumask::core_of).collect();
        if let Some(other) = cores.iter().find(|core| !known.contains(core)) {
            let problem = format!("names core {other}; the reactors are on {known:?}");
            return Err(invalid(problem));
        }
        let indices = known.iter().enumerate().filter(|(_, core)| cores.contains(core));
        Ok(indices.map(|(index, _)| index).collect())
    }

    fn find(&self, ctrlr: &str) -> Result<Rc<Controller>, VhostError> {
        let found = self.0.controllers.borrow().get(ctrlr).cloned();
        found.ok_or_else(|| VhostError::NotFound { ctrlr: ctrlr.to_owned() })
    }

    fn reservations_changed(&self, bdev: Uuid) -> Applied {
        let controllers = self.0.controllers.borrow();
        let on_it = controllers.values().filter(|controller| controller.bdev.uuid() == bdev);
        let on_it: Vec<_> = on_it.map(Rc::clone).collect();
        Box::pin(async move {
            for controller in on_it {
                controller.follow_reservations().await;
            }
        })
    }

    fn bdev_event(&self, event: &Event) {
        let controllers = self.0.controllers.borrow();
        let on_it = controllers.values().filter(|controller| Arc::ptr_eq(&controller.bdev, &event.bdev));
        match event.kind {
            EventKind::Resized => on_it.for_each(|controller| controller.tell_config_change()),
            EventKind::Removing => {
                for controller in on_it {
                    let controller = Rc::clone(controller);
                    tracing::warn!(
                        controller = controller.name,
                        "its bdev is removed; the guest's I/O fails"
                    );
                    tokio::task::spawn_local(async move { controller.lose_disk().await });
                }
            }
            EventKind::Registered | EventKind::Removed => {}
        }
    }
}

/// Binds the socket; one that a dead process has left behind is replaced.
fn listen(ctrlr: &str, path: &Path) -> Result<UnixListener, VhostError> {
    let failed = |what| {
        let (ctrlr, path) = (ctrlr.to_owned(), path.to_owned());
        move |source| VhostError::Socket { ctrlr, what, path, source }
    };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed("remove the dead socket"))?;
            }
            _ => return Err(failed("listen on")(ErrorKind::AddrInUse.into())),
        }
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("set the mode of"))?;
    Ok(listener)
}
