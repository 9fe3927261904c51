//! ANA: the states of listeners and the groups of namespaces.

use penstock_spec::nvme::log::ana::AnaState;
use serde_json::{Value, json};

use super::params::{ListenAddress, Namespace};
use super::subsystem::missing;
use super::{Target, TargetError};
use crate::ana::{self, PathStates};
use crate::config::{ListenerConfig, Nsid, SubsystemConfig, SubsystemKind};

/// Options of `nvmf_subsystem_add_listener`.
#[derive(Debug, Clone, Default)]
pub struct ListenOptions {
    /// The state of all ANA groups for hosts that come by the listener; optimized where none is given.
    pub ana_state: Option<String>,
    /// Whether nothing is talked there without TLS. All subsystems of an address have the same.
    pub secure_channel: bool,
}

impl ListenOptions {
    pub(super) fn paths(&self, subsystem: &SubsystemConfig) -> Result<PathStates, TargetError> {
        let Some(name) = &self.ana_state else { return Ok(PathStates::default()) };
        let state = parse_state(name)?;
        // The default may be said to a subsystem that reports nothing.
        if state != AnaState::OPTIMIZED {
            check_reporting(subsystem)?;
        }
        Ok(PathStates::new(state))
    }
}

impl Namespace {
    pub(super) fn ana_group(&self, subsystem: &SubsystemConfig, nsid: Nsid) -> Result<u32, TargetError> {
        match self.anagrpid {
            // An NSID above the number of groups has its place among them all the same.
            None | Some(0) => Ok(nsid.0.saturating_sub(1) % subsystem.max_ana_groups.max(1) + 1),
            Some(group) => {
                check_reporting(subsystem)?;
                check_group(subsystem, group)
            }
        }
    }
}

impl Target {
    /// `nvmf_subsystem_listener_set_ana_state`: of one group, or of all. When it returns, no command that came by a path
    /// that is closed now is with a bdev, and its hosts have been told.
    ///
    /// # Errors
    /// A subsystem without ANA reporting, a state or group that there is not, [`TargetError::Missing`];
    /// [`TargetError::TimedOut`] when commands do not end: the path is closed all the same.
    pub async fn set_ana_state(
        &self,
        nqn: &str,
        address: &ListenAddress,
        state: &str,
        anagrpid: Option<u32>,
    ) -> Result<(), TargetError> {
        let addr = address.addr()?;
        let state = parse_state(state)?;
        let subsystem = self.nvm_subsystem(nqn, "have ANA states")?;
        check_reporting(&subsystem)?;
        let group = anagrpid.filter(|group| *group != 0);
        if let Some(group) = group {
            check_group(&subsystem, group)?;
        }
        let name = subsystem.nqn;
        let (portid, answers) = self.change(&name, |config| {
            let nqn = config.nqn.to_string();
            let found = config.listeners.iter_mut().find(|listener| listener.addr == addr);
            let listener = found.ok_or(TargetError::Missing { nqn, what: format!("listener {addr}") })?;
            listener.ana.set(group, state);
            Ok(listener.portid)
        })?;
        self.all(answers, "change an ANA state").await?;
        let what = format!("commands that came to {name} by listener {addr}");
        self.wait_until(&what, move |cell| cell.path_is_quiet(&name, portid)).await
    }

    /// `nvmf_subsystem_set_ns_ana_group`.
    ///
    /// # Errors
    /// A subsystem without ANA reporting, a group that there is not, [`TargetError::Missing`]; as
    /// [`Self::set_ana_state`] where the new group is closed on a path.
    pub async fn set_ns_ana_group(&self, nqn: &str, nsid: u32, anagrpid: u32) -> Result<(), TargetError> {
        let subsystem = self.nvm_subsystem(nqn, "have namespaces")?;
        check_reporting(&subsystem)?;
        check_group(&subsystem, anagrpid)?;
        let name = subsystem.nqn;
        let (portids, answers) = self.change(&name, |config| {
            let portids: Vec<u16> = config.listeners.iter().map(|listener| listener.portid).collect();
            let found = config.namespaces.get_mut(&Nsid(nsid));
            match found {
                Some(namespace) => namespace.anagrpid = anagrpid,
                None => return Err(missing(config, format!("namespace {nsid}"))),
            }
            Ok(portids)
        })?;
        self.all(answers, "change an ANA group").await?;
        let what = format!("commands to namespace {nsid} of {name} by paths that are closed to it");
        self.wait_until(&what, move |cell| portids.iter().all(|portid| cell.path_is_quiet(&name, *portid)))
            .await
    }
}

fn parse_state(name: &str) -> Result<AnaState, TargetError> {
    ana::state_of(name).ok_or_else(|| TargetError::Invalid {
        parameter: "ana_state",
        value: format!("{name:?}"),
        allowed: format!("one of {}", ana::names()),
    })
}

fn check_reporting(subsystem: &SubsystemConfig) -> Result<(), TargetError> {
    if subsystem.ana_reporting {
        return Ok(());
    }
    Err(TargetError::NoAna { nqn: subsystem.nqn.to_string() })
}

fn check_group(subsystem: &SubsystemConfig, anagrpid: u32) -> Result<u32, TargetError> {
    if (1..=subsystem.max_ana_groups).contains(&anagrpid) {
        return Ok(anagrpid);
    }
    Err(TargetError::Invalid {
        parameter: "anagrpid",
        value: anagrpid.to_string(),
        allowed: format!("1 to {} (max_ana_groups of {})", subsystem.max_ana_groups, subsystem.nqn),
    })
}

/// `ana_states` of a listener, as SPDK tells them; absent where nothing is reported.
pub(super) fn told_states(config: &SubsystemConfig, listener: &ListenerConfig) -> Option<Value> {
    if !config.ana_reporting || config.kind != SubsystemKind::Nvm {
        return None;
    }
    let tell = |group| json!({ "ana_group": group, "ana_state": ana::name_of(listener.ana.state(group)) });
    Some((1..=config.max_ana_groups).map(tell).collect())
}

/// The calls that give a listener its states again.
pub(super) fn state_calls(config: &SubsystemConfig, listener: &ListenerConfig) -> Vec<(&'static str, Value)> {
    let call = |(group, state)| {
        let params = json!({
            "nqn": config.nqn.as_str(),
            "listen_address": ListenAddress::tcp(listener.addr),
            "ana_state": ana::name_of(state),
            "anagrpid": group,
        });
        ("nvmf_subsystem_listener_set_ana_state", params)
    };
    listener.ana.others().map(call).collect()
}
