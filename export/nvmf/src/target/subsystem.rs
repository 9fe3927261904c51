//! Subsystems: made, changed, deleted.

use std::net::SocketAddr;
use std::sync::Arc;

use penstock_reactor::ReactorError;
use penstock_spec::nvmf::Nqn;

use super::params::{CreateSubsystem, ListenAddress, Namespace};
use super::{ListenOptions, Portal, Target, TargetError, parse_nqn};
use crate::auth::HostKeys;
use crate::config::{
    HOSTS_MAX, HostConfig, LISTENERS_MAX, ListenerConfig, NAMESPACES_DEFAULT, NamespaceConfig, Nsid,
    PORTALS_MAX, SUBSYSTEMS_MAX, SubsystemConfig, SubsystemKind,
};
use crate::group::GroupCell;

impl Target {
    /// `nvmf_create_subsystem`.
    ///
    /// # Errors
    /// A parameter that makes no sense, a name that is taken, [`TargetError::Full`].
    pub async fn create_subsystem(&self, params: &CreateSubsystem) -> Result<(), TargetError> {
        let nqn = parse_nqn("nqn", &params.nqn)?;
        params.check()?;
        let mut config = SubsystemConfig::new(nqn, SubsystemKind::Nvm);
        config.serial_number.clone_from(&params.serial_number);
        config.model_number.clone_from(&params.model_number);
        config.allow_any_host = params.allow_any_host;
        (config.wzsl, config.dmrsl) = (params.wzsl, params.dmrsl);
        (config.min_cntlid, config.max_cntlid) = (params.min_cntlid, params.max_cntlid);
        config.max_namespaces =
            if params.max_namespaces == 0 { NAMESPACES_DEFAULT } else { params.max_namespaces };
        config.enable_nssr = params.enable_nssr;
        config.duplicate_host = params.duplicate_host;
        config.command_quiesce_ms = params.command_quiesce_ms;
        config.ana_reporting = params.ana_reporting;
        config.max_ana_groups = params.max_ana_groups.unwrap_or(config.max_namespaces);
        {
            let mut state = self.0.state.borrow_mut();
            if state.subsystems.values().any(|known| known.is_named(&nqn)) {
                return Err(TargetError::SubsystemExists { nqn: nqn.to_string() });
            }
            if state.subsystems.len() > SUBSYSTEMS_MAX {
                let owner = "the target".to_owned();
                return Err(TargetError::Full { what: "subsystems", owner, max: SUBSYSTEMS_MAX });
            }
            config.auth_policy = Arc::clone(&state.auth_policy);
            state.subsystems.insert(nqn, Arc::new(config.clone()));
        }
        let answers = self.publish_config(&Arc::new(config));
        self.all(answers, "create a subsystem").await.map(drop)
    }

    /// `nvmf_delete_subsystem`: its connections end, its bdevs are let go.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`]; [`TargetError::TimedOut`] when I/O does not end.
    pub async fn delete_subsystem(&self, nqn: &str) -> Result<(), TargetError> {
        let config = self.subsystem(nqn)?;
        if config.kind == SubsystemKind::Discovery {
            return Err(TargetError::Discovery { what: "be deleted" });
        }
        let name = config.nqn;
        self.0.state.borrow_mut().subsystems.remove(&name);
        self.forget_reservations();
        self.publish_psks()?;
        let mut answers = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.remove_subsystem(&name);
            }
        });
        answers.extend(self.publish_discovery());
        let what = format!("subsystem {name}'s I/O");
        self.all(answers, &what).await?;
        for listener in &config.listeners {
            self.close_portal(listener.addr).await?;
        }
        drop(config);
        self.wait_until(&what, GroupCell::is_drained).await
    }

    /// `nvmf_subsystem_add_ns`; returns the NSID.
    ///
    /// # Errors
    /// A bdev that cannot be claimed, an NSID or identifier that is taken or cannot be; [`TargetError::Channel`] when a
    /// reactor cannot use the bdev: then the namespace is gone again.
    pub async fn add_ns(&self, nqn: &str, params: &Namespace) -> Result<u32, TargetError> {
        let subsystem = self.nvm_subsystem(nqn, "have namespaces")?;
        let nsid = free_nsid(&subsystem, params.nsid)?;
        let bdev = |source| TargetError::Bdev {
            name: params.bdev_name.clone(),
            nqn: subsystem.nqn.to_string(),
            source,
        };
        let found = self.0.registry.find(&params.bdev_name).map_err(bdev)?;
        let identity = params.identity(found.shared().uuid())?;
        let anagrpid = params.ana_group(&subsystem, nsid)?;
        // Another subsystem may export the same disk; one subsystem shows it once.
        if subsystem.namespaces.values().any(|ns| Arc::ptr_eq(ns.descriptor.shared(), found.shared())) {
            let what = format!("a namespace on bdev {}", params.bdev_name);
            return Err(TargetError::Present { nqn: subsystem.nqn.to_string(), what });
        }
        drop(found);
        let owner = format!("NVMe-oF subsystem {}", subsystem.nqn);
        let descriptor = self.0.registry.export(&params.bdev_name, &owner).map_err(bdev)?;
        let info = descriptor.shared().info();
        let namespace = NamespaceConfig {
            nsid,
            descriptor,
            blocks: info.blocks,
            block_bytes: info.block_bytes,
            uuid: identity.uuid,
            nguid: identity.nguid,
            eui64: identity.eui64,
            anagrpid,
        };
        let bdev = namespace.descriptor.shared().uuid();
        let ptpl_file = params.ptpl_file.as_deref();
        let reservations = self.adopt_reservations((subsystem.nqn, nsid), bdev, ptpl_file)?;
        let ((), answers) = self.change(&subsystem.nqn, |config| {
            config.namespaces.insert(nsid, namespace);
            config.reservations.insert(nsid, reservations);
            Ok(())
        })?;
        self.all(answers, "add a namespace").await?;
        let name = subsystem.nqn;
        let looked = self
            .0
            .reactors
            .tell(move |cx| GroupCell::of(cx).and_then(|cell| cell.channel_error(&name, nsid)));
        let errors = self.all(looked, "add a namespace").await?;
        let Some(reason) = errors.into_iter().flatten().next() else { return Ok(nsid.0) };
        self.remove_ns(nqn, nsid.0).await?;
        let name = params.bdev_name.clone();
        Err(TargetError::Channel { name, nsid: nsid.0, nqn: subsystem.nqn.to_string(), reason })
    }

    /// `nvmf_subsystem_remove_ns`: returns when none of its I/O is under way.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::TimedOut`] when I/O does not end.
    pub async fn remove_ns(&self, nqn: &str, nsid: u32) -> Result<(), TargetError> {
        let name = self.nvm_subsystem(nqn, "have namespaces")?.nqn;
        let (removed, answers) = self.change(&name, |config| {
            config.namespaces.remove(&Nsid(nsid)).ok_or_else(|| missing(config, format!("namespace {nsid}")))
        })?;
        drop(removed);
        self.forget_reservations();
        self.all(answers, "remove a namespace").await?;
        self.wait_until(&format!("I/O of namespace {nsid} of {name}"), GroupCell::is_drained).await
    }

    /// `nvmf_subsystem_add_host`. A host with secrets must authenticate itself.
    ///
    /// # Errors
    /// [`TargetError::Present`], [`TargetError::Full`], a name that is none.
    pub async fn add_host(&self, nqn: &str, host: &str, keys: HostKeys) -> Result<(), TargetError> {
        if keys.psk.is_some() {
            self.enable_tls().await?;
        }
        let keys = (!keys.is_empty()).then(|| Arc::new(keys));
        let host = parse_nqn("host", host)?;
        let name = self.nvm_subsystem(nqn, "have a list of hosts")?.nqn;
        let ((), mut answers) = self.change(&name, |config| {
            if config.hosts.len() >= HOSTS_MAX {
                let owner = format!("subsystem {name}");
                return Err(TargetError::Full { what: "hosts", owner, max: HOSTS_MAX });
            }
            if config.hosts.insert(host, HostConfig { nqn: host, keys }).is_some() {
                let what = format!("host {host}");
                return Err(TargetError::Present { nqn: name.to_string(), what });
            }
            Ok(())
        })?;
        answers.extend(self.publish_discovery());
        self.publish_psks()?;
        self.all(answers, "add a host").await.map(drop)
    }

    /// `nvmf_subsystem_remove_host`: its connections end, unless any host is allowed.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn remove_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        let host = parse_nqn("host", host)?;
        let name = self.nvm_subsystem(nqn, "have a list of hosts")?.nqn;
        let (_, mut answers) = self.change(&name, |config| {
            config.hosts.remove(&host).ok_or_else(|| missing(config, format!("host {host}")))
        })?;
        answers.extend(self.publish_discovery());
        self.publish_psks()?;
        self.forget_psks(name, host);
        self.all(answers, "remove a host").await.map(drop)
    }

    /// `nvmf_subsystem_allow_any_host`; hosts that are not on the list lose their connections when it is switched off.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`].
    pub async fn allow_any_host(&self, nqn: &str, allow: bool) -> Result<(), TargetError> {
        let name = self.nvm_subsystem(nqn, "be closed to hosts")?.nqn;
        let ((), mut answers) = self.change(&name, |config| {
            config.allow_any_host = allow;
            Ok(())
        })?;
        answers.extend(self.publish_discovery());
        self.all(answers, "allow any host").await.map(drop)
    }

    /// `nvmf_subsystem_add_listener`; returns the address with the port that was picked where 0 was asked for.
    ///
    /// # Errors
    /// An address that cannot be had, [`TargetError::Present`], [`TargetError::NoTransport`].
    pub async fn add_listener(&self, nqn: &str, address: &ListenAddress) -> Result<SocketAddr, TargetError> {
        self.add_listener_with(nqn, address, &ListenOptions::default()).await
    }

    /// As [`Self::add_listener`], with options.
    ///
    /// # Errors
    /// As [`Self::add_listener`]; an option that makes no sense.
    pub async fn add_listener_with(
        &self,
        nqn: &str,
        address: &ListenAddress,
        options: &ListenOptions,
    ) -> Result<SocketAddr, TargetError> {
        let wanted = address.addr()?;
        let subsystem = self.subsystem(nqn)?;
        let ana = options.paths(&subsystem)?;
        if self.0.state.borrow().options.is_none() {
            return Err(TargetError::NoTransport { trtype: "TCP".to_owned() });
        }
        if subsystem.listeners.iter().any(|listener| listener.addr == wanted) {
            return Err(present(&subsystem, wanted));
        }
        if subsystem.listeners.len() >= LISTENERS_MAX {
            let owner = format!("subsystem {}", subsystem.nqn);
            return Err(TargetError::Full { what: "listeners", owner, max: LISTENERS_MAX });
        }
        let secure = options.secure_channel;
        let (addr, portid) = self.open_portal(wanted, secure).await?;
        let changed = self.change(&subsystem.nqn, |config| {
            if config.listeners.iter().any(|listener| listener.addr == addr) {
                return Err(present(config, addr));
            }
            config.listeners.push(ListenerConfig { ana, secure, ..ListenerConfig::tcp(portid, addr) });
            Ok(())
        });
        let mut answers = match changed {
            Ok(((), answers)) => answers,
            Err(error) => {
                self.close_portal(addr).await?;
                return Err(error);
            }
        };
        answers.extend(self.publish_discovery());
        self.all(answers, "add a listener").await?;
        Ok(addr)
    }

    /// `nvmf_subsystem_remove_listener`: returns when the connections that came to the subsystem by it are gone.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::TimedOut`] when I/O does not end.
    pub async fn remove_listener(&self, nqn: &str, address: &ListenAddress) -> Result<(), TargetError> {
        let addr = address.addr()?;
        let name = self.subsystem(nqn)?.nqn;
        let (portid, mut answers) = self.change(&name, |config| {
            let found = config.listeners.iter().position(|listener| listener.addr == addr);
            let found = found.ok_or_else(|| missing(config, format!("listener {addr}")))?;
            Ok(config.listeners.remove(found).portid)
        })?;
        answers.extend(self.publish_discovery());
        // After the change: whoever is let in by the old generation is found here.
        answers.extend(self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.disconnect_listener(&name, portid);
            }
        }));
        self.all(answers, "remove a listener").await?;
        self.close_portal(addr).await?;
        let what = format!("the connections to {name} by listener {addr}");
        self.wait_until(&what, move |cell| !cell.uses_portal(&name, portid)).await
    }

    /// Listens on an address unless it is listened on already.
    async fn open_portal(&self, wanted: SocketAddr, secure: bool) -> Result<(SocketAddr, u16), TargetError> {
        let (portid, reactor) = {
            let state = self.0.state.borrow();
            if let Some(portal) = state.portals.get(&wanted) {
                return same_channel(wanted, portal.secure, secure).map(|()| (wanted, portal.portid));
            }
            let used = |id: &u16| state.portals.values().any(|portal| portal.portid == *id);
            let free = (1..=u16::MAX).find(|id| !used(id)).filter(|_| state.portals.len() < PORTALS_MAX);
            let owner = "the target".to_owned();
            let portid = free.ok_or(TargetError::Full { what: "portals", owner, max: PORTALS_MAX })?;
            (portid, usize::from(portid) % self.0.reactors.len().max(1))
        };
        if secure {
            self.0.state.borrow_mut().secure_portids.insert(portid);
            self.enable_tls().await?;
        }
        let what = format!("listen on {wanted}");
        let Some(handle) = self.0.reactors.get(reactor) else {
            return Err(TargetError::NoTransport { trtype: "TCP".to_owned() });
        };
        let listening = handle
            .call(move |cx| match GroupCell::of(cx) {
                Some(cell) => cell.listen(wanted, portid),
                None => Err(ReactorError::Gone { reactor: cx.id() }),
            })
            .await;
        let addr = listening.and_then(|addr| addr).map_err(TargetError::reactor(what))?;
        self.0.state.borrow_mut().portals.insert(addr, Portal { portid, reactor, secure });
        Ok((addr, portid))
    }

    /// Listens no more on an address that no subsystem uses.
    async fn close_portal(&self, addr: SocketAddr) -> Result<(), TargetError> {
        let portal = {
            let mut state = self.0.state.borrow_mut();
            let used =
                state.subsystems.values().any(|config| config.listeners.iter().any(|l| l.addr == addr));
            if used {
                return Ok(());
            }
            let portal = state.portals.remove(&addr);
            if let Some(portal) = portal {
                state.secure_portids.remove(&portal.portid);
            }
            portal
        };
        let Some((portal, handle)) = portal.and_then(|p| Some((p, self.0.reactors.get(p.reactor)?))) else {
            return Ok(());
        };
        let closed =
            handle.call(move |cx| GroupCell::of(cx).is_some_and(|cell| cell.unlisten(portal.portid)));
        let what = format!("stop listening on {addr}");
        closed.await.map(drop).map_err(TargetError::reactor(what.clone()))?;
        // Discovery controllers and those who have not said yet what they want.
        let ended = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.disconnect_portal(portal.portid);
            }
        });
        self.all(ended, &what).await.map(drop)
    }

    pub(super) fn nvm_subsystem(
        &self,
        nqn: &str,
        what: &'static str,
    ) -> Result<Arc<SubsystemConfig>, TargetError> {
        let config = self.subsystem(nqn)?;
        if config.kind == SubsystemKind::Discovery {
            return Err(TargetError::Discovery { what });
        }
        Ok(config)
    }

    /// Names of all subsystems, in order.
    #[must_use]
    pub fn subsystem_names(&self) -> Vec<Nqn> {
        self.0.state.borrow().subsystems.keys().copied().collect()
    }
}

/// An address has TLS for all subsystems that are reached there, or for none.
fn same_channel(addr: SocketAddr, has: bool, wanted: bool) -> Result<(), TargetError> {
    if has == wanted {
        return Ok(());
    }
    let allowed = format!("{has}, as for the other subsystems at {addr}");
    Err(TargetError::Invalid { parameter: "secure_channel", value: wanted.to_string(), allowed })
}

/// The NSID asked for, or the first free one.
fn free_nsid(config: &SubsystemConfig, wanted: Option<u32>) -> Result<Nsid, TargetError> {
    let max = config.max_namespaces;
    let nqn = config.nqn.to_string();
    let Some(wanted) = wanted.filter(|nsid| *nsid != 0) else {
        let free = (1..=max).map(Nsid).find(|nsid| !config.namespaces.contains_key(nsid));
        let owner = format!("subsystem {nqn}");
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        return free.ok_or(TargetError::Full { what: "namespaces", owner, max });
    };
    if wanted > max {
        return Err(TargetError::Invalid {
            parameter: "nsid",
            value: wanted.to_string(),
            allowed: format!("1 to {max} (max_namespaces of subsystem {nqn})"),
        });
    }
    if config.namespaces.contains_key(&Nsid(wanted)) {
        return Err(TargetError::Present { nqn, what: format!("a namespace {wanted}") });
    }
    Ok(Nsid(wanted))
}

pub(super) fn missing(config: &SubsystemConfig, what: String) -> TargetError {
    TargetError::Missing { nqn: config.nqn.to_string(), what }
}

fn present(config: &SubsystemConfig, addr: SocketAddr) -> TargetError {
    TargetError::Present { nqn: config.nqn.to_string(), what: format!("a listener {addr}") }
}
