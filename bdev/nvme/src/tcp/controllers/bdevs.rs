//! Namespaces of remote subsystems and their bdevs: registered, resized, removed; and how their I/O is spread over paths.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_channel::oneshot;
use penstock_bdev::{Bdev, BdevError};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::health::SmartLog;
use serde_json::{Value, json};
use zerocopy::FromBytes;

use super::{IoPathView, PathAsk, PathCondition, TcpControllers, TcpError, Work, cntlid_of};
use crate::admin::Namespace;
use crate::bdev::NvmeBdev;
use crate::controller::log::{errors_of, health_of};
use crate::controller::{ErrorEntry, Health};
use crate::tcp::disk::{DiskShared, RemoteBdev, ana_name, trid};
use crate::tcp::hub;
use crate::tcp::route::MultipathOptions;

/// Bytes of the error log that are read: eight entries, which every controller has room for in a page.
const ERROR_LOG_BYTES: usize = 512;

impl TcpControllers {
    /// Makes the bdevs what the namespaces are; returns the names of all there are now.
    pub(super) fn match_bdevs(&self, name: &str) -> Result<Vec<String>, BdevError> {
        let Ok(disk) = self.find(name) else { return Ok(Vec::new()) };
        let registered = self.bdevs_of(&disk);
        let namespaces = disk.namespaces();
        let mut names = Vec::new();
        for ns in &namespaces {
            let name = NvmeBdev::name_of(&disk.name, ns.nsid);
            let old = registered.iter().find(|bdev| bdev.shared().name() == name);
            if old.is_some_and(|old| is_same(old, ns)) {
                self.0.registry.resize(&name, None)?;
            } else {
                if old.is_some() {
                    // Another format, or another disk by the same number: that is another bdev.
                    self.begin_removal(&name);
                }
                self.0.registry.register(RemoteBdev::new(Arc::clone(&disk), ns)?, &[])?;
            }
            names.push(name);
        }
        for bdev in registered.iter().filter(|bdev| names.iter().all(|name| name != bdev.shared().name())) {
            self.begin_removal(bdev.shared().name());
        }
        Ok(names)
    }

    /// As [`Self::match_bdevs`], again when a bdev that is in the way is gone.
    pub(super) fn follow_namespaces(&self, name: &str) -> Option<Work> {
        match self.match_bdevs(name) {
            Ok(_) => None,
            Err(BdevError::Exists { name: taken }) => {
                let (this, name) = (self.clone(), name.to_owned());
                Some(Box::pin(async move {
                    this.0.registry.gone(&taken).await;
                    if let Err(error) = this.match_bdevs(&name) {
                        tracing::error!(controller = name, %error, "a new namespace is no bdev");
                    }
                }))
            }
            Err(error) => {
                tracing::error!(controller = name, %error, "a new namespace is no bdev");
                None
            }
        }
    }

    /// Removes all bdevs of a subsystem and waits until they are gone.
    pub(super) async fn remove_bdevs(&self, disk: &Arc<DiskShared>) {
        for bdev in self.bdevs_of(disk) {
            // It may be on its way out already; then it is waited for below.
            drop(self.0.registry.remove(bdev.shared().name()).await);
        }
        for bdev in self.bdevs_of(disk) {
            let name = bdev.shared().name().to_owned();
            drop(bdev);
            self.0.registry.gone(&name).await;
        }
    }

    pub(super) fn bdev_names(&self, name: &str) -> Vec<String> {
        let Ok(disk) = self.find(name) else { return Vec::new() };
        self.bdevs_of(&disk).iter().map(|bdev| bdev.shared().name().to_owned()).collect()
    }

    fn bdevs_of(&self, disk: &Arc<DiskShared>) -> Vec<Arc<dyn Bdev>> {
        let is_its = |bdev: &Arc<dyn Bdev>| remote(bdev).is_some_and(|bdev| Arc::ptr_eq(bdev.disk(), disk));
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

    /// Subsystem and NSID behind a bdev.
    fn behind(&self, bdev: &str) -> Result<(Arc<DiskShared>, u32), TcpError> {
        let found = self.0.registry.find(bdev)?;
        let remote = remote(&found).ok_or_else(|| {
            TcpError::Bdev(BdevError::WrongKind {
                name: bdev.to_owned(),
                actual: found.shared().product(),
                wanted: "NVMe disk by NVMe/TCP",
            })
        })?;
        Ok((Arc::clone(remote.disk()), remote.nsid()))
    }

    /// How a bdev's I/O is spread over its paths.
    ///
    /// # Errors
    /// [`TcpError::Bdev`] where it is no remote namespace.
    pub fn multipath_options(&self, bdev: &str) -> Result<MultipathOptions, TcpError> {
        let (disk, nsid) = self.behind(bdev)?;
        let entries = self.0.entries.borrow();
        let options = entries.get(&disk.name).and_then(|entry| entry.options.get(&nsid).copied());
        Ok(options.unwrap_or_default())
    }

    /// Sets it.
    ///
    /// # Errors
    /// [`TcpError::Bdev`] where it is no remote namespace.
    pub async fn set_multipath_options(&self, bdev: &str, options: MultipathOptions) -> Result<(), TcpError> {
        let (disk, nsid) = self.behind(bdev)?;
        if let Some(entry) = self.0.entries.borrow_mut().get_mut(&disk.name) {
            entry.options.insert(nsid, options);
        }
        let id = disk.id;
        for reactor in &self.0.reactors {
            let set = move |cx: &_| hub::with_seat(cx, id, |seat, _, _| seat.set_options(nsid, options));
            reactor
                .call(set)
                .await
                .map_err(|_| TcpError::Reactor { name: disk.name.clone(), reactor: reactor.id().0 })?;
        }
        Ok(())
    }

    /// Makes the path to a controller the one that a bdev's I/O takes while it is among the best.
    ///
    /// # Errors
    /// [`TcpError::Bdev`] where it is no remote namespace; [`TcpError::NoPath`].
    pub async fn set_preferred_path(&self, bdev: &str, cntlid: u16) -> Result<(), TcpError> {
        let (disk, _) = self.behind(bdev)?;
        let path = disk.reports().into_iter().find(|(_, report)| cntlid_of(report) == cntlid);
        let (number, _) = path.ok_or_else(|| TcpError::NoPath {
            name: disk.name.clone(),
            what: format!("controller {cntlid}"),
        })?;
        let options = self.multipath_options(bdev)?;
        self.set_multipath_options(bdev, MultipathOptions { preferred: Some(number), ..options }).await
    }

    /// Every path of a bdev, or of all, on each reactor.
    ///
    /// # Errors
    /// [`TcpError::Bdev`] where it is no remote namespace; [`TcpError::Reactor`].
    pub async fn io_paths(&self, bdev: Option<&str>) -> Result<Vec<IoPathView>, TcpError> {
        let wanted = match bdev {
            Some(bdev) => vec![self.behind(bdev)?],
            None => {
                let all = self.0.registry.list();
                all.iter().filter_map(remote).map(|bdev| (Arc::clone(bdev.disk()), bdev.nsid())).collect()
            }
        };
        let mut views = Vec::new();
        for reactor in &self.0.reactors {
            for (disk, nsid) in &wanted {
                let (id, nsid) = (disk.id, *nsid);
                let look = move |cx: &_| {
                    let mut seen = Vec::new();
                    hub::with_seat(cx, id, |seat, _, _| seen = seat.views(&[nsid]));
                    seen
                };
                let seen = reactor
                    .call(look)
                    .await
                    .map_err(|_| TcpError::Reactor { name: disk.name.clone(), reactor: reactor.id().0 })?;
                for view in seen {
                    let Some(report) = disk.report(view.path) else { continue };
                    let state = report.states.iter().find(|ns| ns.nsid == view.nsid);
                    views.push(IoPathView {
                        reactor: reactor.id().0,
                        bdev: NvmeBdev::name_of(&disk.name, view.nsid),
                        cntlid: cntlid_of(&report),
                        current: view.current,
                        connected: view.connected,
                        accessible: view.accessible,
                        ana_state: state.map_or("unknown", |ns| ana_name(ns.ana)),
                        trid: report.addresses.first().map_or(Value::Null, |at| trid(*at, disk.subnqn)),
                    });
                }
            }
        }
        Ok(views)
    }

    /// Reads a controller's health now, by the first path that serves.
    ///
    /// # Errors
    /// [`TcpError::NotFound`]; [`TcpError::Reset`] with what the controller says.
    pub async fn read_health(&self, name: &str) -> Result<Health, TcpError> {
        let page = self.log_page(name, Lid::SMART_HEALTH, SmartLog::LEN).await?;
        let log = SmartLog::ref_from_bytes(&page).map_err(|_| problem(name, "its log page is cut off"))?;
        Ok(health_of(log))
    }

    /// Reads a controller's error log now, by the first path that serves; the newest first.
    ///
    /// # Errors
    /// As [`Self::read_health`].
    pub async fn read_errors(&self, name: &str) -> Result<Vec<ErrorEntry>, TcpError> {
        let page = self.log_page(name, Lid::ERROR_INFORMATION, ERROR_LOG_BYTES).await?;
        Ok(errors_of(&page))
    }

    async fn log_page(&self, name: &str, lid: Lid, len: usize) -> Result<Box<[u8]>, TcpError> {
        let reports = self.find(name)?.reports();
        let live = reports.iter().find(|(_, report)| report.condition == PathCondition::Live);
        let (number, _) = live.ok_or_else(|| problem(name, "no path to it is connected"))?;
        let (answer, answered) = oneshot::channel();
        let asked = self.with_path(name, *number, |path| path.asker.ask(PathAsk::Log { lid, len, answer }));
        let page = match asked {
            Some(true) => answered.await.unwrap_or_else(|_| Err("its path was lost".to_owned())),
            _ => Err("it has too much to do; try again".to_owned()),
        };
        page.map_err(|why| problem(name, &why))
    }

    /// Parameters of the calls that spread I/O over paths as it is now.
    #[must_use]
    pub fn policy_configs(&self) -> Vec<Value> {
        let entries = self.0.entries.borrow();
        let mut calls = Vec::new();
        for entry in entries.values() {
            for (nsid, options) in &entry.options {
                let plain = MultipathOptions { preferred: None, ..*options };
                if plain == MultipathOptions::default() {
                    continue;
                }
                calls.push(json!({
                    "name": NvmeBdev::name_of(&entry.disk.name, *nsid),
                    "policy": options.policy,
                    "selector": options.selector,
                    "rr_min_io": options.rr_min_io,
                }));
            }
        }
        calls
    }
}

fn problem(name: &str, problem: &str) -> TcpError {
    TcpError::Reset { name: name.to_owned(), problem: problem.to_owned() }
}

fn remote(bdev: &Arc<dyn Bdev>) -> Option<&RemoteBdev> {
    let any: &dyn std::any::Any = &**bdev;
    any.downcast_ref()
}

fn is_same(bdev: &Arc<dyn Bdev>, ns: &Namespace) -> bool {
    let shared = bdev.shared();
    !shared.is_removed()
        && shared.uuid() == ns.uuid
        && shared.block_bytes() == ns.block_bytes
        && *shared.caps() == ns.caps
}
