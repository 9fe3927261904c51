//! Methods about the configuration as a whole, and how the live objects become calls that make them again.

use std::rc::Rc;

use penstock_bdev::Bdev;
use penstock_bdev::qos::{QosLimits, limits_json};
use penstock_reactor::PollMode;
use serde_json::{Value, json};

use crate::daemon::App;
use crate::daemon::config::{Call, Calls, SubsystemCalls};
use crate::methods::{nvme, reactor};
use crate::params;
use crate::rpc::param::Off;
use crate::rpc::{Kind, RpcError, Table};

/// The subsystems in order of initialisation, and what each stands on.
pub(crate) const SUBSYSTEMS: [(&str, &[&str]); 6] = [
    ("keyring", &[]),
    ("penstock", &[]),
    ("bdev", &["penstock", "keyring"]),
    ("nvmf", &["bdev"]),
    ("iscsi", &["bdev"]),
    ("vhost_blk", &["bdev"]),
];

params! {
    /// Of `framework_get_config`.
    GetConfig {
        /// Which subsystem; framework_get_subsystems lists them.
        name: String,
        /// Batches, which there are none of. Default: false.
        with_batches: Option<bool>,
    }
}

params! {
    /// One call of a configuration.
    ConfigCall {
        /// The method.
        method: String,
        /// Its parameters.
        params: Option<Value>,
    }
}

params! {
    /// One subsystem of a configuration.
    ConfigSubsystem {
        /// Its name.
        subsystem: String,
        /// Its calls, in order.
        config: Option<Vec<ConfigCall>>,
    }
}

params! {
    /// Of `load_config`.
    LoadConfig {
        /// The subsystems with their calls, as save_config returns them.
        subsystems: Vec<ConfigSubsystem>,
    }
}

params! {
    /// Of `save_config`.
    SaveConfig {
        /// Not supported: the daemon writes no files but its own; see --state.
        filename: Option<Off>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "framework_get_config",
            Kind::Read,
            "The calls that make a subsystem as it is now.",
            get_config,
        )
        .add(
            "save_config",
            Kind::Read,
            "The calls that make the whole configuration as it is now, in the shape of SPDK's save_config.",
            save_config,
        )
        .add(
            "load_config",
            Kind::Change,
            "Runs the calls of a configuration in order. The first that is refused ends it, named; those before stay done.",
            load_config,
        );
}

async fn get_config(app: Rc<App>, params: GetConfig) -> Result<Value, RpcError> {
    let live = live(&app).subsystems.into_iter().find(|found| found.subsystem == params.name);
    let Some(found) = live else {
        let names = SUBSYSTEMS.map(|(name, _)| name).join(", ");
        let message = format!("there is no subsystem {:?}; there are {names}", params.name);
        return Err(RpcError::not_found(message));
    };
    let calls = found.config.unwrap_or_default();
    Ok(calls.into_iter().map(|call| json!({"method": call.method, "params": call.params})).collect())
}

async fn save_config(app: Rc<App>, _params: SaveConfig) -> Result<Value, RpcError> {
    serde_json::to_value(live(&app)).map_err(|error| RpcError::internal(error.to_string()))
}

async fn load_config(app: Rc<App>, params: LoadConfig) -> Result<Value, RpcError> {
    let call = |call: ConfigCall| Call { method: call.method, params: call.params };
    let subsystems = params.subsystems.into_iter().map(|one| SubsystemCalls {
        subsystem: one.subsystem,
        config: one.config.map(|calls| calls.into_iter().map(call).collect()),
    });
    let calls = Calls { subsystems: subsystems.collect() };
    app.replay(&calls).await.map_err(|(method, error)| {
        RpcError::new(error.code, format!("load_config: {method} was refused: {}", error.message))
    })?;
    Ok(Value::Bool(true))
}

/// The calls that make the daemon as it is now.
pub(crate) fn live(app: &Rc<App>) -> Calls {
    let parts = SUBSYSTEMS.map(|(name, _)| {
        let calls = match name {
            "keyring" => keyring(app),
            "bdev" => bdevs(app),
            "nvmf" => nvmf(app),
            "iscsi" => iscsi(app),
            "vhost_blk" => vhost(app),
            _ => reactors(app),
        };
        SubsystemCalls { subsystem: name.to_owned(), config: Some(calls) }
    });
    Calls { subsystems: parts.into() }
}

/// Names and paths of keys; what is in the files is nobody's business.
fn keyring(app: &Rc<App>) -> Vec<Call> {
    let call = |(name, path): (&str, &std::path::Path)| Call {
        method: "keyring_file_add_key".to_owned(),
        params: Some(json!({ "name": name, "path": path })),
    };
    app.keyring.borrow().iter().map(call).collect()
}

fn reactors(app: &Rc<App>) -> Vec<Call> {
    let changed = app.reactors.iter().filter(|reactor| reactor.poll_mode() != app.poll_mode);
    let call = |reactor: &penstock_reactor::ReactorHandle| {
        let mut params = json!({"reactor": reactor.id().0, "mode": reactor::mode_name(reactor.poll_mode())});
        if let (PollMode::Adaptive { spin_ns }, Some(params)) = (reactor.poll_mode(), params.as_object_mut())
        {
            params.insert("spin_us".to_owned(), json!(spin_ns / 1000));
        }
        Call { method: "penstock_reactor_set_poll_mode".to_owned(), params: Some(params) }
    };
    changed.map(call).collect()
}

fn bdevs(app: &Rc<App>) -> Vec<Call> {
    let configs =
        app.registry.list().into_iter().filter(|bdev| !bdev.shared().is_removed()).map(|bdev| bdev.config());
    // A part of a split has none of its own.
    let made = configs
        .filter(|(method, _)| !method.is_empty())
        .map(|(method, params)| Call { method: method.to_owned(), params: Some(params) });
    nvme(app).into_iter().chain(made).chain(ceilings(app)).collect()
}

/// NVMe controllers, whose bdevs come with them: before whatever stands on those.
fn nvme(app: &Rc<App>) -> Vec<Call> {
    let options = nvme::options_json(&app.nvme).map(|params| ("bdev_nvme_set_options", params));
    let controllers = app.nvme.configs().into_iter().chain(app.remote.configs());
    let controllers = controllers.map(|params| ("bdev_nvme_attach_controller", params));
    // After the others, which are to have their names.
    let hotplug = nvme::hotplug_json(&app.nvme).map(|params| ("bdev_nvme_set_hotplug", params));
    let policies = app.remote.policy_configs().into_iter();
    let policies = policies.map(|params| ("bdev_nvme_set_multipath_policy", params));
    let call = |(method, params): (&str, Value)| Call { method: method.to_owned(), params: Some(params) };
    options.into_iter().chain(controllers).chain(hotplug).chain(policies).map(call).collect()
}

/// What bdev_set_qos_limit set.
fn ceilings(app: &Rc<App>) -> Vec<Call> {
    let limited = app
        .registry
        .list()
        .into_iter()
        .filter(|bdev| !bdev.shared().is_removed() && bdev.shared().qos_limits() != QosLimits::default());
    let call = |bdev: std::sync::Arc<dyn Bdev>| {
        let mut params = limits_json(bdev.shared());
        if let Some(members) = params.as_object_mut() {
            members.insert("name".to_owned(), json!(bdev.shared().name()));
        }
        Call { method: "bdev_set_qos_limit".to_owned(), params: Some(params) }
    };
    limited.map(call).collect()
}

fn vhost(app: &Rc<App>) -> Vec<Call> {
    let calls = app.vhost.config_calls().into_iter();
    calls.map(|(method, params)| Call { method: method.to_owned(), params: Some(params) }).collect()
}

fn nvmf(app: &Rc<App>) -> Vec<Call> {
    let calls = app.target.config_calls().into_iter();
    let publish = app.publishes_mdns().then(|| ("nvmf_publish_mdns_prr", json!({})));
    let calls = calls.chain(publish);
    calls.map(|(method, params)| Call { method: method.to_owned(), params: Some(params) }).collect()
}

fn iscsi(app: &Rc<App>) -> Vec<Call> {
    let calls = app.iscsi.config_calls().into_iter();
    calls.map(|(method, params)| Call { method: method.to_owned(), params: Some(params) }).collect()
}
