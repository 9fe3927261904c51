//! What the target tells of itself, in SPDK's shapes.

use std::fmt::Write as _;
use std::net::SocketAddr;

use penstock_security::chap::Policy;
use penstock_spec::nvmf::Nqn;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::path::{state_calls, told_states};
use super::{ListenAddress, Target, TargetError};
use crate::ana;
use crate::config::{HostConfig, ListenerConfig, NamespaceConfig, SubsystemConfig, SubsystemKind};
use crate::group::GroupCell;

/// One controller, as a reactor tells of it.
#[derive(Debug, Clone)]
struct ControllerInfo {
    cntlid: u16,
    discovery: bool,
    hostnqn: Nqn,
    hostid: [u8; 16],
    local: SocketAddr,
    qids: Vec<u16>,
}

impl Target {
    /// `nvmf_get_transports`.
    #[must_use]
    pub fn get_transports(&self) -> Value {
        let state = self.0.state.borrow();
        state.options.iter().filter_map(|options| serde_json::to_value(&**options).ok()).collect()
    }

    /// `nvmf_get_subsystems`: all, or the one named.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`].
    pub fn get_subsystems(&self, nqn: Option<&str>) -> Result<Value, TargetError> {
        if let Some(nqn) = nqn {
            return Ok(json!([subsystem(&*self.subsystem(nqn)?)]));
        }
        let state = self.0.state.borrow();
        // The discovery subsystem first, as SPDK has it.
        let kind = |kind| state.subsystems.values().filter(move |config| config.kind == kind);
        let ordered = kind(SubsystemKind::Discovery).chain(kind(SubsystemKind::Nvm));
        Ok(ordered.map(|config| subsystem(config)).collect())
    }

    /// `nvmf_subsystem_get_listeners`.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`].
    pub fn get_listeners(&self, nqn: &str) -> Result<Value, TargetError> {
        let config = self.subsystem(nqn)?;
        let tell = |listener: &ListenerConfig| {
            let mut told = json!({ "address": address(listener.addr) });
            if let (Some(states), Some(object)) = (told_states(&config, listener), told.as_object_mut()) {
                object.insert("ana_states".to_owned(), states);
            }
            told
        };
        Ok(config.listeners.iter().map(tell).collect())
    }

    /// `nvmf_subsystem_get_controllers`.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`]; what a reactor says.
    pub async fn get_controllers(&self, nqn: &str) -> Result<Value, TargetError> {
        let controllers = self.controllers(nqn).await?;
        let tell = |c: ControllerInfo| {
            json!({
                "cntlid": c.cntlid,
                "cntrltype": if c.discovery { "discovery" } else { "io" },
                "hostnqn": c.hostnqn.as_str(),
                "hostid": Uuid::from_bytes(c.hostid).to_string(),
                "num_io_qpairs": c.qids.len(),
            })
        };
        Ok(controllers.into_iter().map(tell).collect())
    }

    /// `nvmf_subsystem_get_qpairs`.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`]; what a reactor says.
    pub async fn get_qpairs(&self, nqn: &str) -> Result<Value, TargetError> {
        let controllers = self.controllers(nqn).await?;
        let tell = |c: ControllerInfo| {
            let qids = std::iter::once(0).chain(c.qids);
            qids.map(move |qid| {
                json!({ "cntlid": c.cntlid, "qid": qid, "state": "active",
                    "hostnqn": c.hostnqn.as_str(), "listen_address": address(c.local) })
            })
        };
        Ok(controllers.into_iter().flat_map(tell).collect())
    }

    /// `nvmf_get_stats`; the clock of the reactors counts nanoseconds.
    ///
    /// # Errors
    /// What a reactor says.
    pub async fn get_stats(&self) -> Result<Value, TargetError> {
        let answers = self.0.reactors.tell(|cx| GroupCell::of(cx).map(|cell| cell.stats()));
        let stats = self.all(answers, "read the statistics of the target").await?;
        let mut groups = Vec::new();
        for (handle, stats) in self.0.reactors.iter().zip(stats) {
            let Some(stats) = stats else { continue };
            let mut group = Map::new();
            group.insert("name".to_owned(), json!(format!("reactor_{}", handle.id())));
            if let Ok(Value::Object(counters)) = serde_json::to_value(stats) {
                group.extend(counters);
            }
            group.insert("transports".to_owned(), json!([{ "trtype": "TCP" }]));
            groups.push(Value::Object(group));
        }
        Ok(json!({ "tick_rate": 1_000_000_000_u64, "poll_groups": groups }))
    }

    /// The calls that make this configuration again, in order: method and parameters, for `save_config`.
    #[must_use]
    pub fn config_calls(&self) -> Vec<(&'static str, Value)> {
        let state = self.0.state.borrow();
        let mut calls = Vec::new();
        if *state.auth_policy != Policy::default() {
            calls.push(("nvmf_set_config", auth_policy(&state.auth_policy)));
        }
        if let Some(options) = &state.options {
            calls.push(("nvmf_create_transport", json!(**options)));
        }
        calls.extend(self.discovery_calls());
        for config in state.subsystems.values() {
            let nqn = config.nqn.as_str();
            if config.kind == SubsystemKind::Nvm {
                calls.push(("nvmf_create_subsystem", created(config)));
            }
            for host in config.hosts.values() {
                let mut params = json!({ "nqn": nqn, "host": host.nqn.as_str() });
                add_key_names(&mut params, host);
                calls.push(("nvmf_subsystem_add_host", params));
            }
            for ns in config.namespaces.values() {
                calls.push((
                    "nvmf_subsystem_add_ns",
                    json!({ "nqn": nqn, "namespace": namespace(config, ns, false) }),
                ));
            }
            for listener in &config.listeners {
                let mut params = json!({ "nqn": nqn, "listen_address": address(listener.addr) });
                if let (true, Some(object)) = (config.ana_reporting, params.as_object_mut()) {
                    object.insert("ana_state".to_owned(), json!(ana::name_of(listener.ana.all())));
                }
                if let (true, Some(object)) = (listener.secure, params.as_object_mut()) {
                    object.insert("secure_channel".to_owned(), json!(true));
                }
                calls.push(("nvmf_subsystem_add_listener", params));
                calls.extend(state_calls(config, listener));
            }
        }
        calls
    }

    async fn controllers(&self, nqn: &str) -> Result<Vec<ControllerInfo>, TargetError> {
        let nqn = self.subsystem(nqn)?.nqn;
        let answers = self.0.reactors.tell(move |cx| {
            let mut found = Vec::new();
            if let Some(cell) = GroupCell::of(cx) {
                cell.for_each_controller(|controller, _| {
                    let params = controller.params();
                    if params.subsystem.nqn == nqn {
                        found.push(ControllerInfo {
                            cntlid: params.cntlid,
                            discovery: controller.is_discovery(),
                            hostnqn: params.hostnqn,
                            hostid: params.hostid,
                            local: params.local,
                            qids: controller.shared().queue_ids().collect(),
                        });
                    }
                });
            }
            found
        });
        let mut all: Vec<_> = self.all(answers, "list controllers").await?.into_iter().flatten().collect();
        all.sort_by_key(|controller| controller.cntlid);
        Ok(all)
    }
}

fn auth_policy(policy: &Policy) -> Value {
    let digests: Vec<_> = policy.hashes.iter().map(|hash| hash.name()).collect();
    let groups: Vec<_> = policy.groups.iter().map(|group| group.name()).collect();
    json!({ "dhchap_digests": digests, "dhchap_dhgroups": groups })
}

fn address(addr: SocketAddr) -> Value {
    json!(ListenAddress::tcp(addr))
}

fn created(config: &SubsystemConfig) -> Value {
    let mut value = json!({
        "nqn": config.nqn.as_str(),
        "allow_any_host": config.allow_any_host,
        "serial_number": config.serial_number,
        "model_number": config.model_number,
        "max_namespaces": config.max_namespaces,
        "min_cntlid": config.min_cntlid,
        "max_cntlid": config.max_cntlid,
        "ana_reporting": config.ana_reporting,
        "dmrsl": config.dmrsl,
        "wzsl": config.wzsl,
        "enable_nssr": config.enable_nssr,
        "duplicate_host": config.duplicate_host,
        "command_quiesce_ms": config.command_quiesce_ms,
    });
    if let (true, Some(object)) = (config.ana_reporting, value.as_object_mut()) {
        object.insert("max_ana_groups".to_owned(), json!(config.max_ana_groups));
    }
    value
}

fn subsystem(config: &SubsystemConfig) -> Value {
    let listeners = config.listeners.iter().map(|listener: &ListenerConfig| address(listener.addr));
    let hosts = config.hosts.values().map(|host| {
        let mut value = json!({ "nqn": host.nqn.as_str() });
        add_key_names(&mut value, host);
        value
    });
    let mut value = json!({
        "nqn": config.nqn.as_str(),
        "subtype": match config.kind { SubsystemKind::Nvm => "NVMe", SubsystemKind::Discovery => "Discovery" },
        "listen_addresses": listeners.collect::<Vec<_>>(),
        "allow_any_host": config.allow_any_host,
        "hosts": hosts.collect::<Vec<_>>(),
    });
    if let (SubsystemKind::Nvm, Some(object)) = (config.kind, value.as_object_mut()) {
        let namespaces: Vec<_> = config.namespaces.values().map(|ns| namespace(config, ns, true)).collect();
        for (key, value) in [
            ("serial_number", json!(config.serial_number)),
            ("model_number", json!(config.model_number)),
            ("max_namespaces", json!(config.max_namespaces)),
            ("passthrough", json!(false)),
            ("min_cntlid", json!(config.min_cntlid)),
            ("max_cntlid", json!(config.max_cntlid)),
            ("dmrsl", json!(config.dmrsl)),
            ("wzsl", json!(config.wzsl)),
            ("namespaces", json!(namespaces)),
        ] {
            object.insert(key.to_owned(), value);
        }
    }
    value
}

/// The names of a host's keys; the keys themselves are never told.
fn add_key_names(value: &mut Value, host: &HostConfig) {
    let (Some(object), Some(keys)) = (value.as_object_mut(), &host.keys) else { return };
    let names = &keys.names;
    let all = [
        ("psk", &names.psk),
        ("dhchap_key", &names.dhchap_key),
        ("dhchap_ctrlr_key", &names.dhchap_ctrlr_key),
    ];
    for (key, name) in all {
        if let Some(name) = name {
            object.insert(key.to_owned(), json!(name));
        }
    }
}

/// `compatible`: with SPDK's older `name` beside `bdev_name`.
fn namespace(config: &SubsystemConfig, ns: &NamespaceConfig, compatible: bool) -> Value {
    let bdev = ns.descriptor.shared().name();
    let mut value =
        json!({ "nsid": ns.nsid.0, "bdev_name": bdev, "nguid": hex(&ns.nguid), "uuid": ns.uuid.to_string() });
    if let Some(object) = value.as_object_mut() {
        if compatible {
            object.insert("name".to_owned(), json!(bdev));
        }
        if ns.eui64 != [0; 8] {
            object.insert("eui64".to_owned(), json!(hex(&ns.eui64)));
        }
        if let Some(path) = config.reservations.get(&ns.nsid).and_then(|known| known.ptpl_file.as_ref()) {
            object.insert("ptpl_file".to_owned(), json!(path));
        }
        if config.ana_reporting {
            object.insert("anagrpid".to_owned(), json!(ns.anagrpid));
        }
    }
    value
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        write!(text, "{byte:02X}").ok();
        text
    })
}
